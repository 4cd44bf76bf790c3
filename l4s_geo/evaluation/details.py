"""What an evaluation says beside the pixels: objects, edges, calibration, thresholds, and doubt that ranks errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4s_geo.evaluation import boundary
from l4s_geo.evaluation.comparison import Pair, Strip, pixel_metres
from l4s_geo.evaluation.objects import MATCHES, SIZES, ObjectPairs, Objects, object_numbers, object_score
from l4s_geo.evaluation.reliability import (
    calibration_score,
    calibration_sums,
    reliability_curve,
    risk_curve,
    risk_score,
    risk_sums,
)
from l4s_geo.metrics import IGNORE, Blocked, Interval, ThresholdCurve

Floats = NDArray[np.float64]

#: F-measures whose best thresholds are told, and how much more recall counts in them than precision.
BETAS = {"f1": 1.0, "f2": 2.0, "f0.5": 0.5}

#: Sizes of objects in words.
SIZE_NAMES = (
    f"below {SIZES[0]:,} m²",
    *(f"{low:,} to {high:,} m²" for low, high in pairwise(SIZES)),
    f"{SIZES[-1]:,} m² and more",
)

#: What errors are ranked by. The probability's doubt is how likely an answer is wrong if the probability is right; the
#: networks' disagreement, the band ``uncertainty``, is added to it. The uncertainty of an object is that of its surest
#: pixel, as in the polygons that ``map`` draws.
DOUBTS = {
    "probability": "pixels, by the probability's own doubt",
    "uncertainty": "pixels, with the networks' disagreement",
    "objects_probability": "mapped objects, by the probability's mean doubt",
    "objects_uncertainty": "mapped objects, by their uncertainty",
}


@dataclass(frozen=True)
class Score:
    """Figures with their intervals; NaN where one is not defined."""

    values: Mapping[str, float]
    intervals: Mapping[str, Interval]

    def part(self, start: str) -> Score:
        """Those whose name starts so, without that."""
        names = {name.removeprefix(start): name for name in self.values if name.startswith(start)}
        values = {short: self.values[name] for short, name in names.items()}
        return Score(values, {short: self.intervals[name] for short, name in names.items()})

    def to_dict(self) -> dict[str, Any]:
        """As JSON: figures by name and ``intervals``; None for NaN."""
        intervals = {name: [or_none(v) for v in pair] for name, pair in self.intervals.items()}
        return {name: or_none(value) for name, value in self.values.items()} | {"intervals": intervals}


@dataclass(frozen=True)
class Details:
    """Figures beside those of the pixels.

    Attributes:
        objects: By ``match/size/figure`` as in ``object_score``.
        numbers: (2, sizes + 1, 3) of objects as in ``object_numbers``.
        edges: Boundary precision, recall and F1.
        tolerance: Pixels by which an edge may be off.
        pixel_m: Side of a pixel in metres.
        curve: Counts of pixels by threshold; the rest is None too without probabilities.
        calibration: As in ``calibration_score``.
        reliability: (3, bins) as in ``reliability_curve``.
        risk: As in ``risk_score``, by what errors are ranked by.
        risk_curves: Coverage and risk, likewise.
    """

    objects: Score
    numbers: Floats
    edges: Score
    tolerance: int
    pixel_m: float
    curve: ThresholdCurve | None
    calibration: Score | None
    reliability: Floats | None
    risk: Mapping[str, Score]
    risk_curves: Mapping[str, tuple[Floats, Floats]]

    def best_thresholds(self) -> dict[str, dict[str, float]]:
        """By F-measure its best threshold, and ``f`` and the figures there; empty without landslides or probabilities.

        Thresholds that were chosen on the labels they are measured on flatter the map.
        """
        if self.curve is None or not self.curve.counts[1].sum():
            return {}
        found = {}
        for name, beta in BETAS.items():
            threshold, counts = self.curve.best_f(beta)
            values = {"precision": counts.precision, "recall": counts.recall, "f": counts.f_beta(beta)}
            found[name] = {"threshold": threshold} | values
        return found

    def sweep(self, steps: int = 100) -> dict[str, list[float]]:
        """Precision, recall and F-measures at thresholds from 0 to 1."""
        if self.curve is None:
            return {}
        thresholds = [k / steps for k in range(steps + 1)]
        counts = [self.curve.counts_at(t) for t in thresholds]
        by_beta = {name: [c.f_beta(beta) for c in counts] for name, beta in BETAS.items()}
        shares = {"precision": [c.precision for c in counts], "recall": [c.recall for c in counts]}
        return {"threshold": thresholds} | shares | by_beta

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; figures that are not defined are None."""
        edges = {"tolerance_px": self.tolerance, "tolerance_m": self.tolerance * self.pixel_m} | self.edges.to_dict()
        found: dict[str, Any] = {"objects": self._objects(), "boundary": edges}
        if self.curve is not None and self.calibration is not None and self.reliability is not None:
            names = ("pixels", "mean_probability", "landslide_share")
            bins = [dict(zip(names, map(or_none, row), strict=True)) for row in self.reliability.T.tolist()]
            found["calibration"] = self.calibration.to_dict() | {"bins": bins}
            best = {n: {k: or_none(v) for k, v in values.items()} for n, values in self.best_thresholds().items()}
            found["thresholds"] = best
            found["sweep"] = {name: [or_none(v) for v in values] for name, values in self.sweep().items()}
        if self.risk:
            found["risk_coverage"] = {name: score.to_dict() for name, score in self.risk.items()}
        return found

    def _objects(self) -> dict[str, Any]:
        def of_size(row: int, size: str | int) -> dict[str, Any]:
            counts = {}
            for side, numbers in zip(("mapped", "reference"), self.numbers[:, row].tolist(), strict=True):
                counts[side] = dict(zip(("number", *MATCHES), map(int, numbers), strict=True))
            return counts | {match: self.objects.part(f"{match}/{size}/").to_dict() for match in MATCHES}

        ends = zip((0, *SIZES), (*SIZES, None), strict=True)
        sizes = [{"from_m2": a, "to_m2": b} | of_size(k + 1, k) for k, (a, b) in enumerate(ends)]
        return of_size(0, "all") | {"by_size": sizes}

    def lines(self) -> Iterator[str]:
        """For people."""
        mapped, reference = self.numbers[:, 0, 0].astype(int)
        yield f"objects     {mapped:,} mapped, {reference:,} in the truth"
        for match, words in zip(MATCHES, ("overlapping", "IoU > 0.5"), strict=True):
            yield f"  {words:<12}{_shown(self.objects.part(f'{match}/all/'))}"
        for k, name in enumerate(SIZE_NAMES):
            mapped, reference = self.numbers[:, k + 1, 0].astype(int)
            parts = [self.objects.values[f"overlap/{k}/{figure}"] for figure in ("precision", "recall", "f1")]
            shown = "  ".join(number(v) for v in parts)
            yield f"  {name:<24}{mapped:>7,} mapped {reference:>7,} in the truth, overlapping P, R, F1  {shown}"
        yield f"edges       within {self.tolerance} pixels ({self.tolerance * self.pixel_m:.0f} m)"
        yield f"  {'':<12}{_shown(self.edges)}"
        if self.calibration is not None:
            names = {"ece": "ECE", "ece_mapped": "ECE of mapped pixels", "brier": "Brier score"}
            yield "probabilities"
            for key, words in names.items():
                yield f"  {words:<22}{self.calibration.values[key]:.4f}  {_interval(self.calibration.intervals[key])}"
            for name, best in self.best_thresholds().items():
                yield (
                    f"  best {name.upper():<6}{best['f']:.4f} at threshold {best['threshold']:.3f} "
                    f"(precision {number(best['precision'])}, recall {number(best['recall'])})"
                )
        if self.risk:
            yield "errors ranked by doubt: area under the risk-coverage curve; ranked by chance"
            for name, score in self.risk.items():
                area, rate = score.values["aurc"], score.values["error_rate"]
                yield f"  {DOUBTS[name]:<50}{area:.5f}  {_interval(score.intervals['aurc'], 5)}; {rate:.5f}"


def or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if isfinite(value) else None


def number(value: float | None, digits: int = 3) -> str:
    """A figure as text."""
    return "–" if value is None or not isfinite(value) else f"{value:.{digits}f}"


def _interval(pair: Interval, digits: int = 4) -> str:
    return f"({number(pair[0], digits)} to {number(pair[1], digits)})"


def _shown(score: Score) -> str:
    """Precision, recall and F1 with their intervals."""
    words = {"precision": "precision", "recall": "recall", "f1": "F1"}
    return "  ".join(f"{w} {number(score.values[k])} {_interval(score.intervals[k], 3)}" for k, w in words.items())


class Tally:
    """Collects the details, strip by strip.

    Args:
        block: Side of a block in pixels, and rows of a strip.
        threshold: Probability from which a pixel counts as mapped.
        tolerance: Pixels by which an edge may be off.
        pair: What is compared.
    """

    def __init__(self, block: int, threshold: float, tolerance: int, pair: Pair) -> None:
        self._block, self._threshold, self._tolerance, self._grid = block, threshold, tolerance, pair.grid
        has = {"probability": pair.has_probabilities, "uncertainty": pair.has_uncertainty}
        doubts = [name for name, there in has.items() if there]
        self._pairs = ObjectPairs(block, doubts)
        self._curve = ThresholdCurve() if pair.has_probabilities else None
        self._edges: list[NDArray[np.int64]] = []
        self._calibration: list[Floats] = []
        self._risks: dict[str, list[Floats]] = {name: [] for name in doubts}
        self._labelled: list[NDArray[np.bool_]] = []

    @property
    def halo(self) -> int:
        """Rows that strips need above and below."""
        return boundary.halo(self._tolerance)

    def add(self, strip: Strip) -> None:
        """Go on with the next strip."""
        wide, core = strip.prob >= self._threshold, strip.core
        edges = boundary.edge_sums(wide, strip.landslide, strip.known, core, self._block, self._tolerance)
        self._edges.append(edges)
        prob, mapped, landslide, known = strip.prob[core], wide[core], strip.landslide[core], strip.known[core]
        self._labelled.append(np.logical_or.reduceat(known.any(axis=0), np.arange(0, known.shape[1], self._block)))
        doubts: dict[str, NDArray[np.float32]] = {}
        if self._curve is not None:
            self._curve.update(prob, np.where(known, landslide, IGNORE).astype(np.uint8))
            doubts["probability"] = np.where(mapped, 1 - prob, prob)
        if strip.uncertainty is not None:
            doubts["uncertainty"] = np.minimum(doubts["probability"] + strip.uncertainty[core], np.float32(1))
        self._pairs.add(mapped, landslide, known, strip.pixel_m2, doubts)
        if self._curve is not None:
            self._add_pixels(prob, mapped, landslide, known, doubts)

    def _add_pixels(
        self,
        prob: NDArray[np.float32],
        mapped: NDArray[np.bool_],
        landslide: NDArray[np.bool_],
        known: NDArray[np.bool_],
        doubts: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Count the labelled pixels that were seen."""
        counted = known & np.isfinite(prob)
        columns = np.nonzero(counted)[1] // self._block
        blocks = len(self._labelled[-1])
        p, yes, truth = prob[counted], mapped[counted], landslide[counted]
        self._calibration.append(calibration_sums(p, truth, yes, columns, blocks))
        for name, doubt in doubts.items():
            self._risks[name].append(risk_sums(doubt[counted], yes != truth, columns, blocks))

    def measures(self) -> dict[str, Blocked]:
        """Sums by block that has a labelled pixel, in order, after the last strip."""
        labelled = np.concatenate(self._labelled)
        blocks = np.flatnonzero(labelled)
        mapped, reference = self._pairs.end()
        found = {
            "objects": object_score(mapped, reference, blocks),
            "edges": boundary.edge_score(np.concatenate(self._edges)[labelled]),
        }
        if self._curve is not None:
            found["calibration"] = calibration_score(np.concatenate(self._calibration)[labelled])
        by_object = {"probability": mapped.means, "uncertainty": mapped.lows}
        for name, parts in self._risks.items():
            found[name] = risk_score(np.concatenate(parts)[labelled])
            found[f"objects_{name}"] = risk_score(_object_risk(mapped, by_object[name][name], blocks))
        return found

    def details(self, measures: Mapping[str, Blocked], intervals: Mapping[str, dict[str, Interval]]) -> Details:
        """The figures, from ``measures`` and their intervals."""
        scores = {name: Score(measure.score(), intervals[name]) for name, measure in measures.items()}
        sums = {name: measure.table.sum(axis=0).astype(np.float64) for name, measure in measures.items()}
        risks = [name for name in DOUBTS if name in measures and sums[name].any()]
        return Details(
            objects=scores["objects"],
            numbers=object_numbers(sums["objects"]),
            edges=scores["edges"],
            tolerance=self._tolerance,
            pixel_m=sqrt(prod(pixel_metres(self._grid))),
            curve=self._curve,
            calibration=scores.get("calibration"),
            reliability=reliability_curve(sums["calibration"]) if self._curve is not None else None,
            risk={name: scores[name] for name in risks},
            risk_curves={name: risk_curve(sums[name]) for name in risks},
        )


def _object_risk(objects: Objects, doubt: Floats, blocks: NDArray[np.int64]) -> Floats:
    """Mapped objects are wrong where they overlap no landslide."""
    return risk_sums(doubt, ~objects.overlap, np.searchsorted(blocks, objects.block), len(blocks))
