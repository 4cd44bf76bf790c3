"""Ways of self-training without labels: recipes for the networks of a model that exists already."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from l4s_geo.errors import InputError
from l4s_geo.normalize import OF_THE_SCENE
from l4s_geo.train import recipe as recipes
from l4s_geo.train.recipe import Recipe
from l4s_geo.train.tables import fill, one_of

METHODS = Path(__file__).parent / "methods"

#: What ``normalizations`` may name.
CANDIDATES = (*OF_THE_SCENE, "model")


@dataclass(frozen=True)
class Start:
    """What comes before and around the rounds.

    Attributes:
        normalizations: Ways to standardize the scenes that are tried before, as a card names them; the model's own
            if there are none.
        fixed_teacher: The starting model says all labels; otherwise the model of the round before.
        repeat: Times that the last of the rounds is done.
    """

    normalizations: tuple[str, ...] = ()
    repeat: int = 1
    fixed_teacher: bool = False


@dataclass(frozen=True)
class Method:
    """How a model is fitted to new scenes: the trainings, whose stages are those of each round, and their start."""

    recipe: Recipe
    start: Start


def load(name: str, networks: tuple[str, ...], bands: tuple[str, ...], rounds: int | None = None) -> Method:
    """A method of the package by name, or from a TOML file in the same form, for the networks of a model.

    Args:
        name: Of the method, or a file.
        networks: That learn.
        bands: Of the model.
        rounds: Number of rounds instead of the method's; the last one is repeated.

    Raises:
        InputError: There is none, or it has a field that does not exist or makes no sense.
    """
    path, table = recipes.read(name, METHODS, "method")
    where = f"Method {path.name}"
    start: Start = fill(Start, {f.name: table.pop(f.name) for f in fields(Start) if f.name in table}, where)
    for name in start.normalizations:
        one_of(name, CANDIDATES, f"{where}: normalizations")
    recipe = recipes.parse({**table, "networks": list(networks), "bands": list(bands)}, where)
    if not recipe.rounds:
        raise InputError(f"{where} has no rounds: write at least one table [[rounds]].")
    *before, last = recipe.rounds
    found = (*before, *(last,) * max(1, start.repeat if rounds is None else rounds - len(before)))
    return Method(replace(recipe, rounds=found[:rounds]), start)
