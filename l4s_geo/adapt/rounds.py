"""The rounds of an adaptation: label the scenes, learn from the labels, look at what came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l4s_geo.adapt.guard import Limits, Signs, faults, histogram, signs_of, under_other_light
from l4s_geo.adapt.labels import Labels, write_focus
from l4s_geo.adapt.method import Method
from l4s_geo.adapt.options import AdaptOptions
from l4s_geo.adapt.report import RoundEntry
from l4s_geo.adapt.thresholds import by_preset
from l4s_geo.data.crops import Area, seed_of
from l4s_geo.data.ondisk import open_area
from l4s_geo.evaluation.evaluate import evaluate
from l4s_geo.metrics import Counts
from l4s_geo.models.card import CARD, Card
from l4s_geo.models.registry import Model
from l4s_geo.normalize import Normalizer
from l4s_geo.outputs import writing
from l4s_geo.progress import Progress
from l4s_geo.train.pseudo import Certain
from l4s_geo.train.recipe import Round
from l4s_geo.train.rounds import PSEUDO, TARGET_DOMAIN
from l4s_geo.train.run import TrainOptions
from l4s_geo.train.split import DataOptions
from l4s_geo.train.targets import IMAGE, Target, grid_of
from l4s_geo.train.teacher import (
    SELECTED,
    Given,
    Selected,
    Teacher,
    answer,
    normalizer_of,
    read_selected,
    select,
    teacher_of,
)
from l4s_geo.train.trainer import train

#: What another way of standardizing must gain in consistency, and how many times more it may map at most.
WORTH, GROWTH = 0.05, 4.0

#: Share of a scene's rows that a method with patience does not learn from, and the most such rows.
WITHHELD, MOST_ROWS = 0.15, 1024

#: Share of the patches that show the surroundings of given polygons.
GIVEN = 0.3

#: Ends the name of a folder that shows the surroundings of the given polygons alone, so that they are seen often.
FOCUS = "-given"

#: Minutes between two checkpoints, and between two looks of a method with patience.
VALIDATE = 0.5


@dataclass(frozen=True)
class Run:
    """What all rounds share.

    Attributes:
        options: As asked for.
        method: How.
        given_card: Of the starting model.
        targets: Scenes.
        images: Their copies.
        labels: Polygons, if there are any.
        progress: Of the work.
    """

    options: AdaptOptions
    method: Method
    given_card: Card
    targets: Sequence[Target]
    images: Sequence[Path]
    labels: Labels | None
    progress: Progress

    @property
    def card(self) -> Card:
        """Of the starting model with its networks taken at their word, as signs and maps of the rounds take them."""
        return self.given_card.uncalibrated()

    def folder(self, number: int) -> Path:
        """Model directory of a round."""
        return self.options.out / f"round-{number}"

    def pseudo(self, number: int) -> Path:
        """Folder of the labels that a round learns from."""
        return self.folder(number) / PSEUDO

    def answers(self, number: int, kind: str = "answers") -> list[Path]:
        """What the model of a round says about each scene."""
        return [self.folder(number) / kind / f"{t.name}.tif" for t in self.targets]

    def given(self) -> list[Given]:
        """By scene, a reader of the given labels; nothing without labels."""
        return [self.labels.labels_on(grid_of(image)) for image in self.images] if self.labels else []

    def before(self) -> list[Path]:
        """What the starting model, as it was given, says about each scene."""
        found = self.answers(0, "before")
        return found if found[0].exists() else self.answers(0)


def first(run: Run, folder: Path) -> dict[str, float]:
    """Make round 0: the starting model, with the way of standardizing that suits the scenes best.

    That is the one under which its answers change least in other light (``guard.under_other_light``), if it gains
    enough and does not map many times more.

    Args:
        run: What all rounds share.
        folder: Directory of the starting model.

    Returns:
        Consistency by way of standardizing; empty if there was no choice.
    """
    note = run.folder(0) / "statistics.json"
    if note.is_file():
        done: dict[str, float] = json.loads(note.read_text())
        return done
    own = run.card.normalization
    with writing(run.folder(0)):
        run.folder(0).mkdir(exist_ok=True)
        for network in run.card.networks:
            shutil.copyfile(folder / network.weights, run.folder(0) / network.weights)
        run.card.save(run.folder(0))
    looks = {}
    for name in dict.fromkeys((own, *run.method.start.normalizations)):
        teacher = _teacher(run, 0, replace(run.card, normalization=name))
        run.progress.start(f"trying statistics: {name}", 1)
        looks[name] = under_other_light(teacher, run.images, run.card.thresholds["balanced"])
        run.progress.finish()
    share, steady = looks[own]
    fit = {n: c for n, (s, c) in looks.items() if c >= steady + WORTH and s <= GROWTH * share}
    chosen = replace(run.card, normalization=max(fit, key=lambda n: fit[n]) if fit else own)
    if chosen.normalization != own:
        _look(run, _teacher(run, 0, run.card), run.answers(0, "before"))
    chosen.save(run.folder(0))
    _look(run, _teacher(run, 0, chosen), run.answers(0))
    found = {n: round(c, 4) for n, (_, c) in looks.items()} if len(looks) > 1 else {}
    with writing(note):
        note.write_text(json.dumps(found) + "\n")
    return found


def learn(run: Run, number: int, how: Round, start: Signs) -> RoundEntry:
    """Do a round: label the scenes, train, and look at them again.

    Args:
        run: What all rounds share.
        number: Of the round, from 1.
        how: The labels are chosen.
        start: Signs of round 0, which the guard compares with.
    """
    note = run.folder(number) / "round.json"
    if note.is_file():
        return entry_from(json.loads(note.read_text()))
    part = _part(run, number, how)
    selected = _select(run, number, how, part)
    areas, withheld = _areas(run, number)
    card = Card.load(part.out) if (part.out / CARD).is_file() else train(part, run.progress, areas, withheld)
    before = Card.load(run.folder(0))
    card = replace(card, normalization=before.normalization, statistics=before.statistics, crf={})
    card.save(part.out)
    _look(run, _teacher(run, number, card), run.answers(number))
    counts, given = histogram(run.answers(number)), run.given()
    thresholds = by_preset(counts, histogram(run.answers(number), given) if given else None)
    replace(card, thresholds=thresholds, threshold_split="not tuned: by the expected area").save(part.out)
    entry = entry_of(run, number, selected, start)
    with writing(note):
        note.write_text(json.dumps(asdict(entry), indent=1) + "\n")
    return entry


def entry_of(run: Run, number: int, selected: Selected, start: Signs | None = None) -> RoundEntry:
    """Signs of a round's model, what the guard says to them, and figures where there is truth."""
    card, origin = Card.load(run.folder(number)), Card.load(run.folder(0))
    threshold = card.thresholds["balanced"]
    signs = signs_of(
        _teacher(run, number, card),
        run.images,
        run.answers(number),
        run.answers(0),
        (threshold, origin.thresholds["balanced"]),
        run.given(),
    )
    found = tuple(faults(start, signs, Limits())) if start else ()
    return RoundEntry(number, selected, signs, found, figures(run, run.answers(number), threshold))


def figures(run: Run, answers: Sequence[Path], threshold: float) -> dict[str, float] | None:
    """Precision, recall and F1 in the frames of all scenes together, if defined, without the polygons learnt from."""
    options = run.options
    if not options.truth:
        return None
    counts = Counts()
    for path, truth in zip(answers, options.truth, strict=True):
        counts += evaluate(path, truth, threshold=threshold, aoi=options.aoi or path, exclude=options.labels).counts
    return {k: round(v, 4) for k, v in counts.figures().items() if k != "iou" and isfinite(v)}


def entry_from(values: dict[str, Any]) -> RoundEntry:
    """From the JSON that was made of one."""
    signs = Signs(**values["signs"])
    return RoundEntry(**{**values, "signs": signs, "faults": tuple(values["faults"])})


def _teacher(run: Run, number: int, card: Card, how: Round | None = None) -> Teacher:
    """The networks of a round, that see as a card says."""
    return teacher_of(Model(card, run.folder(number)), _part(run, max(1, number), run.method.recipe.rounds[0]), how)


def _look(run: Run, teacher: Teacher, paths: Sequence[Path]) -> None:
    """Write what a model says about each scene; answers that are there are of an earlier run and are kept."""
    for target, image, path in zip(run.targets, run.images, paths, strict=True):
        if not path.is_file():
            torch.manual_seed(seed_of(run.options.seed, *path.parts[-3:]))  # of dropout
            answer(target, image, path, teacher, run.progress)


def _part(run: Run, number: int, how: Round) -> TrainOptions:
    """The training of a round."""
    options, recipe, card = run.options, run.method.recipe, run.card
    share = how.length / sum(r.length for r in recipe.rounds)
    before = run.folder(number - 1)
    warm = how.warm and {*recipe.networks} <= {n.name for n in Card.load(before).networks}
    return TrainOptions(
        data=DataOptions(
            options.source,
            card.bands,
            synthetic=recipe.synthetic,
            negative_share=recipe.negative_share,
            compression=card.compression,
            resolution=card.resolution_m,
        ),
        out=run.folder(number),
        name=options.out.name,
        recipe=replace(recipe, rounds=(), batch_size=options.batch_size or recipe.batch_size),
        minutes=options.minutes * share if options.minutes else None,
        steps=max(1, round((options.steps or recipe.steps) * how.length)),
        seed=options.seed + 100 * number,
        init=before if warm else None,
        resume=True,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        validate_minutes=VALIDATE,
    )


def _select(run: Run, number: int, how: Round, part: TrainOptions) -> Selected:
    """Labels of all scenes, by the model that teaches this round."""
    out = run.pseudo(number)
    if (out / SELECTED).is_file():
        return read_selected(out)
    knows = 0 if run.method.start.fixed_teacher else number - 1
    card, said = Card.load(run.folder(knows)), run.answers(knows)
    if isinstance(how.select, Certain):
        said = run.answers(knows, "doubts")
        _look(run, _teacher(run, knows, card, how), said)
    selected = select(run.targets, run.images, said, out, how.select, card.thresholds["balanced"], run.given())
    if run.labels:
        for target in run.targets:
            write_focus(run.labels, out / target.name, out / f"{target.name}{FOCUS}")
    return selected


def _areas(run: Run, number: int) -> tuple[list[Area], list[Area]]:
    """What a round learns from, and what it is watched on where the method has patience."""
    card = Card.load(run.folder(0))
    areas, withheld = [], []
    for folder in sorted(p for p in run.pseudo(number).iterdir() if p.is_dir()):
        normalizer = normalizer_of(folder / IMAGE, card)
        height = grid_of(folder / IMAGE).height
        end = height - int(WITHHELD * height) if run.method.recipe.patience else height

        def area(rows: int | None, folder: Path = folder, normalizer: Normalizer = normalizer) -> Area:
            return open_area(
                folder, card.bands, normalizer=normalizer, name=folder.name, domain=TARGET_DOMAIN, rows=rows
            )

        areas.append(area(end))
        if end < height and not folder.name.endswith(FOCUS):
            withheld.append(area(None).rows(end, min(height, end + MOST_ROWS)))
    return _focused([a for a in areas if a.labelled]), [a for a in withheld if a.labelled]


def _focused(areas: list[Area]) -> list[Area]:
    """Give the surroundings of given polygons their share of the patches, however small they are."""
    given = np.array([a.name.endswith(FOCUS) for a in areas])
    roots = np.sqrt([a.labelled for a in areas])
    near, whole = roots[given].sum(), roots[~given].sum()
    if not near or not whole:
        return areas
    weight = float(GIVEN / (1 - GIVEN) * whole / near)
    return [replace(a, weight=weight) if g else a for a, g in zip(areas, given, strict=True)]
