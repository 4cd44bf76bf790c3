"""Training recipes: declarative files that say how a system is trained."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from l4s_geo.errors import InputError, meant
from l4s_geo.models import zoo
from l4s_geo.normalize import NAMED
from l4s_geo.tiling import PATCH
from l4s_geo.train.augment import Augmentation
from l4s_geo.train.losses import compose
from l4s_geo.train.mixing import Mixing
from l4s_geo.train.pseudo import METHODS, Selection
from l4s_geo.train.tables import fill, one_of, said_of

RECIPES = Path(__file__).parent / "recipes"

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["one-cycle", "cosine", "restarts", "poly", "constant"]


@dataclass(frozen=True)
class Stage:
    """One leg of a training, with an optimizer and a learning-rate cycle of its own.

    Attributes:
        steps: Optimizer steps; where a run is given another budget, its share of that.
        loss: Names of losses with their weights, as ``l4s_geo.train.losses.compose`` takes them.
        optimizer: ``sgd`` is with Nesterov momentum 0.9.
        learning_rate: Highest of the schedule.
        weight_decay: Of the optimizer; biases and norms are spared.
        schedule: Of the learning rate, see ``l4s_geo.train.optimize``.
        warm_up: Share of the stage over which the rate rises linearly.
        frozen: Parts of the network that do not learn, such as ``encoder``.
    """

    steps: int = 10_000
    loss: Mapping[str, Any] = field(default_factory=lambda: {"cross-entropy": 1.0, "jaccard": 1.0})
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    schedule: Schedule = "one-cycle"
    warm_up: float = 0.05
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Round:
    """A further training that also learns from pseudo-labels, which the networks before it give to unlabelled scenes.

    Attributes:
        select: Which pixels get a label, as ``l4s_geo.train.pseudo`` has them.
        networks: Presets that learn; the recipe's if not given.
        teachers: Networks of the training before whose mean probability says the labels; all of them if not given.
        length: Of this training as a multiple of the first one's; a run's ``minutes`` are divided in this proportion.
        warm: Start from the weights of the training before; otherwise as the first training did.
    """

    select: Selection
    networks: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    length: float = 1.0
    warm: bool = True


@dataclass(frozen=True)
class Recipe:
    """How a system is trained.

    Attributes:
        title: What it is, in one line.
        source: Paper or page that it comes from.
        published: Figures that were published for it, and on which data.
        differs: Where this recipe differs from what was published, and why.
        networks: Presets of ``l4s_geo.models.zoo``; several are trained one after another and averaged. A suffix such
            as ``-x2`` is a working scale: the network sees the patches enlarged.
        bands: Input bands.
        stages: In order.
        synthetic: Number of synthetic scenes without landslides to learn from as well.
        negative_share: Share of the patches that are drawn from scenes without landslides.
        batch_size: Patches a step.
        normalization: ``scene`` (each region with its own statistics), ``model`` (all with the mean of the training
            regions), or a name in ``l4s_geo.normalize.NAMED``.
        compression: Of the normalizer: ``asinh`` or ``none``.
        pretrained: Start the encoders from weights of a hub where it can be reached, else from random ones.
        ema: Decay of the averaged weights; 0 takes the last ones.
        patience: Validations without a better F1 after which training stops with the best weights; 0: never.
        augmentation: Strengths.
        mixing: Strengths.
        rounds: Self-training after the supervised one, in order.
        domain_norm: In the rounds, labelled and unlabelled scenes have batch norms of their own; the finished network
            has those of the unlabelled.
    """

    title: str
    source: str
    networks: tuple[str, ...]
    stages: tuple[Stage, ...]
    published: str = ""
    differs: str = ""
    bands: tuple[str, ...] = ("B4", "B3", "B2")
    synthetic: int = 0
    negative_share: float = 0.15
    batch_size: int = 16
    normalization: str = "scene"
    compression: Literal["none", "asinh"] = "asinh"
    pretrained: bool = False
    ema: float = 0.998
    patience: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixing: Mixing = field(default_factory=Mixing)
    rounds: tuple[Round, ...] = ()
    domain_norm: bool = False

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(s.steps for s in self.stages)

    def stage_at(self, share: float) -> tuple[int, float]:
        """Number of the stage that runs after ``share`` of the training, and how much of it is done."""
        done = share * self.steps
        for i, stage in enumerate(self.stages):
            if done < stage.steps or i == len(self.stages) - 1:
                return i, min(1.0, done / stage.steps)
            done -= stage.steps
        raise AssertionError("a recipe has stages")


def names() -> list[str]:
    """Of the recipes that come with the package."""
    return sorted(p.stem for p in RECIPES.glob("*.toml"))


def load(name: str) -> Recipe:
    """A recipe of the package by name, or from a TOML file.

    Raises:
        InputError: There is none, or it has a field that does not exist or makes no sense.
    """
    path, table = read(name, RECIPES, "recipe")
    return parse(table, f"Recipe {path.name}")


def read(name: str, folder: Path, what: str) -> tuple[Path, dict[str, Any]]:
    """A TOML file of a folder by name, or any other by path.

    Args:
        name: Without ``.toml`` in the folder, or a path with it.
        folder: Of the package.
        what: It is, for messages.

    Returns:
        Its path and what it holds.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    known = sorted(p.stem for p in folder.glob("*.toml"))
    path = folder / f"{name}.toml" if name in known else Path(name)
    if path.suffix != ".toml" or not path.is_file():
        raise InputError(
            f"Unknown {what} {name!r}{meant(name, known)}; there are {', '.join(known)}, or give a .toml file."
        )
    try:
        return path, tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise InputError(f"{what.capitalize()} {path} cannot be read: {e}. Compare it with one of the package.") from e


def parse(table: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from the table that a file holds.

    Args:
        table: With ``title``, ``source``, ``networks``, and ``stages`` as an array of tables.
        where: For messages.

    Raises:
        InputError: A field that does not exist, is missing, or makes no sense.
    """
    values = dict(table)
    parts: tuple[tuple[str, type], ...] = (("augmentation", Augmentation), ("mixing", Mixing))
    for key, kind in parts:
        values[key] = fill(kind, values.get(key, {}), f"{where}, [{key}]")
    stages = values.get("stages")
    if not isinstance(stages, list) or not stages:
        raise InputError(f"{where} needs at least one stage: write a table [[stages]].")
    values["stages"] = tuple(fill(Stage, s, f"{where}, stage {i}") for i, s in enumerate(stages, 1))
    rounds = values.get("rounds", [])
    if not isinstance(rounds, list):
        raise InputError(f"{where}: write every round as a table [[rounds]].")
    values["rounds"] = tuple(_round(r, f"{where}, round {i}") for i, r in enumerate(rounds, 1))
    recipe: Recipe = fill(Recipe, values, where)
    _check(recipe, where)
    return recipe


def _round(table: object, where: str) -> Round:
    """A round, with the selection that its ``method`` names."""
    if not isinstance(table, Mapping) or not isinstance(table.get("select"), Mapping):
        raise InputError(f'{where} must say which pixels get a label, such as select = {{ method = "confident" }}.')
    method = table["select"].get("method")
    one_of(method, tuple(METHODS), f"{where}: method of select")
    found: Round = fill(Round, {**table, "select": fill(METHODS[method], table["select"], f"{where}, select")}, where)
    return found


def changed(
    recipe: Recipe,
    *,
    learning_rate: float | None = None,
    **fields_: Any,
) -> Recipe:
    """The recipe with what a user wants otherwise.

    Args:
        recipe: To start from.
        learning_rate: Of every stage.
        fields_: Other fields of the recipe; None or nothing keeps the recipe's. New networks also learn in its rounds.

    Raises:
        InputError: That makes no sense.
    """
    if learning_rate is not None:
        fields_["stages"] = tuple(replace(s, learning_rate=learning_rate) for s in recipe.stages)
    if fields_.get("networks"):
        fields_["rounds"] = tuple(replace(r, networks=(), teachers=()) for r in recipe.rounds)
    found = replace(recipe, **{k: v for k, v in fields_.items() if v is not None and v != ()})
    _check(found, "Options")
    return found


def _check(recipe: Recipe, where: str) -> None:
    """What the types of the fields do not say."""
    if not recipe.networks:
        raise InputError(f"{where} names no network.")
    for network in _all_networks(recipe):
        preset, scale = zoo.split_scale(network)
        if preset not in zoo.PRESETS:
            raise InputError(
                f"{where}: unknown network {preset!r}{meant(preset, zoo.PRESETS)}; there are {', '.join(zoo.PRESETS)}."
            )
        if not 0 < scale <= 8 or round(PATCH * scale) % 32:
            raise InputError(
                f"{where}: {network} cannot work, {PATCH} pixels times {scale:g} must be a multiple of 32 up to "
                f"{8 * PATCH}."
            )
    one_of(recipe.compression, ("none", "asinh"), f"{where}: compression")
    one_of(recipe.normalization, ("scene", "model", *NAMED), f"{where}: normalization")
    for name, value, good in (
        ("batch_size", recipe.batch_size, recipe.batch_size >= 2),
        ("synthetic", recipe.synthetic, recipe.synthetic >= 0),
        ("negative_share", recipe.negative_share, 0 <= recipe.negative_share < 1),
        ("ema", recipe.ema, 0 <= recipe.ema < 1),
        ("patience", recipe.patience, recipe.patience >= 0),
    ):
        if not good:
            raise InputError(f"{where}: {name} cannot be {value!r}.")
    for i, stage in enumerate(recipe.stages, 1):
        at = f"{where}, stage {i}"
        one_of(stage.optimizer, get_args(Optimizer), f"{at}: optimizer")
        one_of(stage.schedule, get_args(Schedule), f"{at}: schedule")
        if stage.steps < 1 or stage.learning_rate <= 0 or stage.weight_decay < 0 or not 0 <= stage.warm_up < 1:
            raise InputError(f"{at}: steps and learning_rate must be above 0, weight_decay not below, warm_up in 0..1.")
        with said_of(at):
            loss = compose(stage.loss)
        plain = [n for n in _all_networks(recipe) if zoo.PRESETS[zoo.split_scale(n)[0]][0] != "ImageLevelUnet"]
        if loss.image and plain:
            raise InputError(
                f"{at}: an image-level loss needs networks with an output for whole images (swinls-tiny, "
                f"swinls-base), which {', '.join(plain)} has not."
            )
    _check_rounds(recipe, where)


def _all_networks(recipe: Recipe) -> tuple[str, ...]:
    """Of the first training and of the rounds."""
    return tuple(dict.fromkeys((*recipe.networks, *(n for r in recipe.rounds for n in r.networks))))


def _check_rounds(recipe: Recipe, where: str) -> None:
    """Teachers, and networks that start warm, must have been trained before."""
    before = recipe.networks
    for i, round_ in enumerate(recipe.rounds, 1):
        at = f"{where}, round {i}"
        learning = round_.networks or recipe.networks
        for what, wanted in (("teachers", round_.teachers), ("warm networks", learning if round_.warm else ())):
            missing = [n for n in wanted if n not in before]
            if missing:
                raise InputError(
                    f"{at}: {', '.join(missing)} cannot be among its {what}, for the training before it is of "
                    f"{', '.join(before)}."
                )
        if not 0 < round_.length < float("inf"):
            raise InputError(f"{at}: length must be above 0, not {round_.length!r}.")
        before = learning
