"""Fit a model to new scenes without labels: rounds of self-training, each under a guard that needs no labels either.

OUT/adapt.json              what was asked for
OUT/targets/NAME            the scenes, as the networks see them; gone when the run is complete
OUT/round-0                 the starting model, with the statistics that suit the scenes
OUT/round-1/pseudo/NAME     what a model says about a scene: labels that the next one learns from
OUT/round-1                 the model that has learnt from them; and so on
OUT                         the model of the best round, and report.html
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from l4s_geo.adapt.guard import Limits, histogram, nothing_to_learn
from l4s_geo.adapt.labels import check_on_targets, read_labels
from l4s_geo.adapt.method import load
from l4s_geo.adapt.options import AdaptOptions, claimed
from l4s_geo.adapt.report import PAGE, Report, RoundEntry, TargetFiles, write_report
from l4s_geo.adapt.rounds import Run, entry_from, entry_of, figures, first, learn
from l4s_geo.calibration import SELF_TRAINING, Calibration
from l4s_geo.errors import InputError
from l4s_geo.expectation import expected_f1
from l4s_geo.models import registry
from l4s_geo.models.card import CARD, Card
from l4s_geo.outputs import writing
from l4s_geo.progress import Progress
from l4s_geo.results import limited_cache
from l4s_geo.train.pseudo import Soft
from l4s_geo.train.targets import IMAGE, copy_target, find_targets, grid_of
from l4s_geo.vector import existing


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        card: Of the model that was written.
        kept: The round that it is of; 0 is the starting model.
        verdict: Why, in plain words.
        rounds: All rounds.
        report: The page that says it all.
        before: Figures of the starting model as it was given, where there is truth.
    """

    card: Card
    kept: int
    verdict: str
    rounds: tuple[RoundEntry, ...]
    report: Path
    before: dict[str, float] | None = None

    def summary(self) -> dict[str, Any]:
        """For programs."""
        return {
            "adapted": self.card.adapted,
            "kept": self.kept,
            "verdict": self.verdict,
            "normalization": self.card.normalization,
            "threshold": self.card.thresholds["balanced"],
            "before": self.before,
            "rounds": [asdict(r) for r in self.rounds],
            "report": str(self.report),
        }


def adapt(options: AdaptOptions, progress: Progress) -> Adapted:
    """Fit a model to scenes and write it as a model directory, with a report.

    Raises:
        InputError: A scene, labels or an option cannot be used.
        ModelError: The model cannot be used.
        OutputError: The directory is in use, or there is no space.
    """
    model = registry.find(options.model)
    for network in model.card.networks:
        registry.load_network(model, network)  # what is wrong with its weights is found before any work
    for path in (*options.truth, *(text.partition("@")[0] for text in options.source)):
        existing(path)
    networks = options.networks or tuple(n.name for n in model.card.networks)
    method = load(options.method, networks, model.card.bands, options.rounds)
    labels = read_labels(options.labels) if options.labels else None
    bands, resolution = model.card.bands, model.card.resolution_m
    targets = find_targets(options.scenes, bands, resolution, options.bands)
    if options.truth and len(options.truth) != len(targets):
        raise InputError(f"There are {len(targets)} scenes and {len(options.truth)} --truth. Give one for each scene.")
    with limited_cache(), claimed(options):
        if (options.out / CARD).is_file():
            return _finished(options)
        copies = [options.out / "targets" / t.name for t in targets]
        images = [
            copy_target(t, folder, bands, resolution, aoi=options.aoi, masks=options.masks, clouds=options.clouds)
            for t, folder in zip(targets, copies, strict=True)
        ]
        if labels:
            check_on_targets(labels, [grid_of(image) for image in images])
        run = Run(options, method, model.card, targets, images, labels, progress)
        tried = first(run, model.folder)
        rounds = [entry_of(run, 0, {})]
        reasons = () if labels else tuple(nothing_to_learn(rounds[0].signs, Limits()))
        for number, how in enumerate(() if reasons else method.recipe.rounds, 1):
            rounds.append(learn(run, number, how, rounds[0].signs))
            if rounds[-1].faults:
                break
        return _finish(run, tuple(rounds), reasons, tried)


def _finish(run: Run, rounds: tuple[RoundEntry, ...], reasons: tuple[str, ...], tried: dict[str, float]) -> Adapted:
    """Publish the last round that the guard found safe, and report."""
    out = run.options.out
    kept = max(r.number for r in rounds if not r.faults)
    best, start = Card.load(run.folder(kept)), run.card
    adapted = kept > 0 or best.normalization != start.normalization
    verdict = _verdict(run, rounds, reasons, kept, best)
    before = figures(run, run.before(), start.thresholds["balanced"])
    card = replace(
        best,
        name=out.name,
        version="1",
        adapted=adapted,
        metrics={},
        training={
            "from": {
                "name": start.name,
                "version": start.version,
                "sha256": {n.name: n.sha256 for n in start.networks},
            },
            "settings": run.options.named() | {"scenes": [t.name for t in run.targets]},
            "kept": kept,
            "verdict": verdict,
            "rounds": [asdict(r) for r in rounds],
            "before": before,
        },
    )
    with writing(out):
        for network in card.networks:
            shutil.copyfile(run.folder(kept) / network.weights, out / network.weights)
        page = write_report(_report(run, rounds, tried, card, verdict), out)
        card = card.calibrated(_calibration(run, kept))
        card.save(out)
        _tidy(out)
    return Adapted(card, kept, verdict, rounds, page, before)


def _calibration(run: Run, kept: int) -> dict[str, Any]:
    """Of the model of a round; there is no truth to fit one to.

    Networks that have learnt from their own answers, doubts included, are no longer as sure as when the line of the
    starting model was fitted, and are taken at their word, which is nearer to the truth than that line
    (docs/adapt.md). Networks that have learnt hard labels are as sure as these.
    """
    if kept == 0:
        return run.given_card.calibration
    if not all(isinstance(r.select, Soft) for r in run.method.recipe.rounds):
        return {}
    return {"method": SELF_TRAINING}


def _finished(options: AdaptOptions) -> Adapted:
    """What came of a run that is to be resumed, but was complete, or all but tidy."""
    card = Card.load(options.out)
    made = card.training
    _tidy(options.out)
    entries = tuple(entry_from(values) for values in made["rounds"])
    return Adapted(card, made["kept"], made["verdict"], entries, options.out / PAGE, made["before"])


def _verdict(run: Run, rounds: tuple[RoundEntry, ...], reasons: tuple[str, ...], kept: int, best: Card) -> str:
    """What was done and why, in plain words."""
    said = []
    if best.normalization != run.card.normalization:
        said.append(f"The scenes are standardized by '{best.normalization}' instead of '{run.card.normalization}'.")
    if reasons:
        said.append(f"The starting model cannot teach itself here: {'; '.join(reasons)}. Its weights are kept.")
    elif kept == 0:
        said.append(f"No round was safe: {'; '.join(rounds[1].faults)}. The weights of the starting model are kept.")
    elif rounds[-1].faults:
        said.append(f"Round {kept} is kept; the one after it was not safe: {'; '.join(rounds[-1].faults)}.")
    else:
        said.append(f"Round {kept} is kept; all rounds were safe.")
    return " ".join([*said, *_expected(run, kept, best)])


def _expected(run: Run, kept: int, best: Card) -> Iterator[str]:
    """What the models expect of their maps, where their probabilities are worth it."""
    calibration = _calibration(run, kept)
    if not calibration:
        return
    now = expected_f1(histogram(run.answers(kept), calibration=Calibration.from_dict(calibration)))
    if kept == 0 and best.normalization == run.card.normalization:
        yield f"It expects an F1 of {now:.2f} of its map."
        return
    before = expected_f1(histogram(run.before(), calibration=Calibration.from_dict(run.given_card.calibration)))
    was = f"was {before:.2f} and " if run.given_card.calibration else ""
    yield f"The expected F1 of the map {was}is {now:.2f} (a guess, no measurement)."


def _report(run: Run, rounds: tuple[RoundEntry, ...], tried: dict[str, float], card: Card, verdict: str) -> Report:
    kept = card.training["kept"]
    before, after = run.before(), run.answers(kept)
    targets = tuple(
        TargetFiles(
            name=t.name,
            image=image,
            before=before[i],
            after=after[i],
            labels=tuple(run.pseudo(r.number) / t.name / "labels.tif" for r in rounds[1:]),
            truth=Path(run.options.truth[i]) if run.options.truth else None,
        )
        for i, (t, image) in enumerate(zip(run.targets, run.images, strict=True))
    )
    settings: dict[str, Any] = card.training["settings"]
    return Report(
        model=run.card.name,
        method=run.options.method,
        adapted=card.adapted,
        kept=kept,
        verdict=verdict,
        normalization=tried,
        chosen_normalization=card.normalization,
        threshold_before=run.card.thresholds["balanced"],
        threshold_after=card.thresholds["balanced"],
        rounds=rounds,
        targets=targets,
        settings=settings,
        given=run.labels.polygons if run.labels else {},
        figures_before=card.training["before"],
    )


def _tidy(out: Path) -> None:
    """Remove the copies of the scenes, the answers, and second copies of an ensemble's weights: the bulk of it all."""
    shutil.rmtree(out / "targets", ignore_errors=True)
    for image in out.glob(f"round-*/pseudo/*/{IMAGE}"):
        image.unlink()
    for weights in out.glob("round-*/*/*.safetensors"):
        weights.unlink()
    for folder in out.glob("round-*"):
        for kind in ("answers", "before", "doubts"):
            shutil.rmtree(folder / kind, ignore_errors=True)
