"""Self-training: after the supervised training, rounds that also learn from pseudo-labels of unlabelled scenes.

OUT/round-0               the supervised training: a model
OUT/targets/NAME          the unlabelled scenes, as training reads them
OUT/round-1/pseudo/NAME   the same with what round-0 says about them: labelled scenes
OUT/round-1               the training with these as well: a model; and so on
OUT                       the model of the last round
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from l4s_geo.data.crops import Area
from l4s_geo.data.ondisk import IMAGE, open_area
from l4s_geo.errors import InputError, OutputError
from l4s_geo.models.card import CARD, Card
from l4s_geo.progress import Progress
from l4s_geo.train import parallel
from l4s_geo.train.recipe import Round
from l4s_geo.train.run import TrainOptions
from l4s_geo.train.targets import Target, copy_target, find_targets
from l4s_geo.train.teacher import Selected, label, normalizer_of
from l4s_geo.train.trainer import train

#: Of the regions with pseudo-labels, for batch norms per domain.
TARGET_DOMAIN = 1

#: Folder of the labels that a round learns from.
PSEUDO = "pseudo"


def train_rounds(options: TrainOptions, unlabelled: Sequence[str], progress: Progress) -> Card:
    """Train as the recipe says, with its rounds of self-training where there are unlabelled scenes.

    Args:
        options: Of the run; ``minutes`` are for all rounds together, ``steps`` for a network of the first training.
        unlabelled: Scenes (file, folder or glob; ``PATH@UNITS`` states their units), or folders of Landslide4Sense
            patches.
        progress: One stage per training and per target.

    Returns:
        Card of the last round; its ``training`` says under ``rounds`` how many pixels were selected.

    Raises:
        InputError: Data or options that cannot be used, or unlabelled scenes for a recipe without rounds.
        OutputError: The directory holds rounds of an earlier run, which is not to be resumed.
    """
    rounds = options.recipe.rounds
    if not unlabelled:
        return train(options, progress)
    if not rounds:
        raise InputError(
            f"This recipe ({options.recipe.title}) does not learn from unlabelled scenes. Leave --unlabelled away, or "
            "take a recipe with [[rounds]], such as kingdrone, seek or tanmlh."
        )
    with parallel.processes(options.device):
        targets = parallel.by_first(lambda: _prepared(options, unlabelled))
        card = _once(_part(options, 0), (), progress)
        record: list[dict[str, Any]] = []
        for number, how in enumerate(rounds, 1):
            part = _part(options, number)
            selected = _labelled(part, how, targets, folder_of(options, number - 1), progress)
            teachers = how.teachers or tuple(n.name for n in card.networks)
            record.append(_entry(how, teachers, part.recipe.networks, selected))
            card = _once(part, [_area(part, t.name, card) for t in targets], progress)
        return parallel.by_first(lambda: _publish(card, folder_of(options, len(rounds)), options.out, record))


def _prepared(options: TrainOptions, unlabelled: Sequence[str]) -> list[Target]:
    """The targets, once it is clear that the run can be made."""
    earlier = sorted(p.name for p in options.out.glob("round-*"))
    if earlier and not options.resume:
        raise OutputError(f"{options.out} holds {earlier[0]} of an earlier run. Add --resume, or choose another name.")
    return find_targets(unlabelled, options.data.bands, options.data.resolution)


def _labelled(part: TrainOptions, how: Round, targets: Sequence[Target], model: Path, progress: Progress) -> Selected:
    """Pseudo-labels of the targets for a round, by the model of the training before."""
    folder, data = part.out.parent / "targets", part.data

    def work() -> Selected:
        images = [copy_target(t, folder / t.name, data.bands, data.resolution) for t in targets]
        return label(targets, images, part.out / PSEUDO, model, how, part, progress)

    return parallel.by_first(work)


def folder_of(options: TrainOptions, number: int) -> Path:
    """Model directory of a round; 0 is the supervised training."""
    return options.out / f"round-{number}"


def _part(options: TrainOptions, number: int) -> TrainOptions:
    """What one training of the run is to do."""
    recipe = options.recipe
    lengths = [1.0, *(r.length for r in recipe.rounds)]
    part = replace(
        options,
        out=folder_of(options, number),
        recipe=replace(recipe, rounds=()),
        minutes=options.minutes * lengths[number] / sum(lengths) if options.minutes else None,
        seed=options.seed + 100 * number,
    )
    if number == 0:
        return part
    how = recipe.rounds[number - 1]
    steps = options.steps or (None if options.minutes else recipe.steps)
    return replace(
        part,
        recipe=replace(part.recipe, networks=how.networks or recipe.networks),
        steps=max(1, round(steps * how.length)) if steps else None,
        init=folder_of(options, number - 1) if how.warm else None,
    )


def _once(part: TrainOptions, targets: Sequence[Area], progress: Progress) -> Card:
    """Train, unless a run that is resumed has done so."""
    if part.resume and (part.out / CARD).is_file():
        return Card.load(part.out)
    return train(part, progress, targets)


def _area(part: TrainOptions, name: str, card: Card) -> Area:
    """A target with its pseudo-labels, standardized as its teacher saw it; its pixels stay on disk."""
    folder = part.out / PSEUDO / name
    normalizer = normalizer_of(folder / IMAGE, card)
    return open_area(folder, part.data.bands, normalizer=normalizer, name=name, domain=TARGET_DOMAIN)


def _entry(how: Round, teachers: Sequence[str], networks: Sequence[str], selected: Selected) -> dict[str, Any]:
    """What the card says of a round."""
    return {
        "select": asdict(how)["select"],
        "teachers": list(teachers),
        "networks": list(networks),
        "selected": selected,
    }


def _publish(card: Card, folder: Path, out: Path, record: list[dict[str, Any]]) -> Card:
    """Make the model of the last round that of the whole run."""
    for network in card.networks:
        shutil.copyfile(folder / network.weights, out / network.weights)
    final = replace(card, training={**card.training, "rounds": record})
    final.save(out)
    return final
