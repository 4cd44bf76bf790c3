"""What an adaptation did and whether to trust it: one page for people, the same facts for programs, and pictures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from l4s_geo.adapt import pictures
from l4s_geo.adapt.guard import Signs
from l4s_geo.adapt.page import FIGURES, SIGNS, Picture, page
from l4s_geo.adapt.views import Maps
from l4s_geo.outputs import writing
from l4s_geo.train.targets import grid_of

PAGE, FACTS = "report.html", "report.json"


@dataclass(frozen=True)
class RoundEntry:
    """One round.

    Attributes:
        number: 0 is the starting model.
        selected: By target, pixels that were labelled ``background`` and ``landslide``, and ``not used``; empty for 0.
        signs: Of the model at its end.
        faults: Why the guard refused it; empty if it is safe.
        figures: ``precision``, ``recall`` and ``f1`` against the truth, all targets together, where there is truth.
    """

    number: int
    selected: dict[str, dict[str, int]]
    signs: Signs
    faults: tuple[str, ...]
    figures: dict[str, float] | None = None


@dataclass(frozen=True)
class TargetFiles:
    """Rasters of a target, all on one grid but for the truth.

    Attributes:
        name: Of the target.
        image: uint16, bands by description; its internal mask is where it is valid.
        before: Of the starting model: float32 layers ``probability`` and ``uncertainty`` (variance), NaN not seen.
        after: The same of the model that is kept.
        labels: uint8 pseudo-labels of round 1, 2, ...: 0, 1, 255 not used; maybe none.
        truth: Raster of labels or polygons, in any CRS.
    """

    name: str
    image: Path
    before: Path
    after: Path
    labels: tuple[Path, ...]
    truth: Path | None = None


@dataclass(frozen=True)
class Report:
    """All that a report tells.

    Attributes:
        model: Name of the starting model.
        method: Of the adaptation.
        adapted: Whether a round is kept; else the starting model is.
        kept: Number of the round that is kept, 0 if none.
        verdict: One or two plain sentences.
        normalization: Consistency of the starting model by normalization that was tried; maybe none.
        chosen_normalization: The one on the card.
        threshold_before: Probability from which on the starting model maps a landslide.
        threshold_after: The same of the model that is kept.
        rounds: From round 0 on.
        targets: Their rasters.
        settings: What was asked for, JSON types.
        given: Polygons or pixels by class that the user gave; maybe none.
        figures_before: Of the starting model against the truth, where round 0 has another normalization than it.
    """

    model: str
    method: str
    adapted: bool
    kept: int
    verdict: str
    normalization: dict[str, float]
    chosen_normalization: str
    threshold_before: float
    threshold_after: float
    rounds: tuple[RoundEntry, ...]
    targets: tuple[TargetFiles, ...]
    settings: dict[str, Any]
    given: dict[str, int]
    figures_before: dict[str, float] | None = None


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.html`` (with its pictures inside), ``report.json`` and the pictures as PNG files.

    Nothing of the page is loaded from elsewhere, names are escaped, and paths are cut down to file names.

    Args:
        report: What to tell.
        folder: Where to; made if needed. An earlier report is replaced.

    Returns:
        The page.

    Raises:
        InputError: The truth of a target cannot be laid over it.
        OutputError: There is no space.
    """
    maps = [_maps(report, t) for t in report.targets]
    names = [re.sub(r"[^A-Za-z0-9.-]+", "_", t.name)[:40] for t in report.targets]
    curves = Picture("curves.png", _curves_png(report), "The signs over the rounds")
    facts = _facts(report, maps)
    shown = {
        target.name: [*_pictures(target, both, f"{number}-{name}")]
        for number, (target, both, name) in enumerate(zip(report.targets, maps, names, strict=True), 1)
    }
    with writing(folder / PAGE):
        folder.mkdir(parents=True, exist_ok=True)
        for picture in chain([curves], *shown.values()):
            if isinstance(picture, Picture):
                (folder / picture.name).write_bytes(picture.png)
        (folder / FACTS).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(page(facts, curves, shown), encoding="utf-8")
    return folder / PAGE


def _maps(report: Report, target: TargetFiles) -> Maps:
    """Both maps, or only the starting model's where it is kept."""
    if not report.adapted:
        return Maps(target.image, target.before, None, (report.threshold_before, report.threshold_before))
    return Maps(target.image, target.before, target.after, (report.threshold_before, report.threshold_after))


def _facts(report: Report, maps: Sequence[Maps]) -> dict[str, Any]:
    """The report in JSON types, without paths, with the counts of pixels by target."""
    targets = {}
    for target, both in zip(report.targets, maps, strict=True):
        width, height = grid_of(target.image).pixel_size_m()
        targets[target.name] = {
            "image": target.image,
            "truth": target.truth,
            "pixel_m2": width * height,
            "pixels": both.count(),
        }
    facts: dict[str, Any] = _plain({**vars(report), "rounds": [asdict(r) for r in report.rounds], "targets": targets})
    return facts


def _plain(value: Any) -> Any:
    """JSON types: no number that is not finite, of paths and addresses the last part only."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, str) and ("://" in value or PurePath(value).is_absolute()):
        return PurePath(value.partition("?")[0]).name
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _curves_png(report: Report) -> bytes:
    """Values by round; NaN where there is none."""
    rounds = report.rounds
    learnt = [math.nan] * len(rounds)
    for i, r in enumerate(rounds):
        slides, ground = (sum(c.get(k, 0) for c in r.selected.values()) for k in ("landslide", "background"))
        if slides + ground:
            learnt[i] = 100 * slides / (slides + ground)
    shares = {"of the ground mapped": [100 * r.signs.share for r in rounds]}
    if any(r.selected for r in rounds):
        shares["of the pixels learnt from"] = learnt
    others = {name: [getattr(r.signs, s) for r in rounds] for s, (name, _) in SIGNS.items() if s != "share"}
    panels = {"Landslide, %": shares, "Other signs": others}
    if any(r.figures for r in rounds):
        panels["Against the truth"] = {
            name: [(r.figures or {}).get(key, math.nan) for r in rounds] for key, name in FIGURES.items()
        }
    return pictures.curves_picture(panels, [r.number for r in rounds if r.faults], report.kept)


def _pictures(target: TargetFiles, maps: Maps, prefix: str) -> Iterator[Picture | str]:
    """Maps, uncertainty where there is any, and pseudo-labels where there are some."""
    thresholds = f"{maps.thresholds[0]:.3g}" + (f" before and {maps.thresholds[1]:.3g} after" if maps.after else "")
    caption = f"The scene and its map. A pixel is mapped from a probability of {thresholds} on. Grey: not seen."
    yield Picture(f"{prefix}-map.png", pictures.map_picture(maps, target.truth), caption)
    uncertainty = pictures.uncertainty_picture(target.before, maps.after)
    if uncertainty is None:
        yield "There is no picture of the uncertainty, because it is 0 everywhere: the model was asked only once."
    else:
        caption = "How far the model's answers were apart (variance). The darker, the more they agreed."
        yield Picture(f"{prefix}-uncertainty.png", uncertainty, caption)
    if target.labels:
        caption = "Pixels that the model labelled itself. Those without a colour were labelled as background."
        yield Picture(f"{prefix}-labels.png", pictures.labels_picture(target.image, target.labels), caption)
