"""Figures of a landslide map against labels, pixel by pixel, and their intervals. Arrays in, figures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from l4s_geo.errors import InputError

#: Label of pixels whose truth is unknown.
IGNORE = 255

#: Steps of a threshold curve between 0 and 1.
BINS = 1000

#: Figures that ``Counts`` offers, in the order they are reported.
FIGURES = ("precision", "recall", "f1", "iou")

#: Samples of a bootstrap.
SAMPLES = 1000

#: Lower and upper end.
Interval = tuple[float, float]


@dataclass(frozen=True)
class Counts:
    """Confusion counts of the class landslide, in pixels; they add up over blocks and scenes."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> int:
        """Pixels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def precision(self) -> float:
        """Share of the mapped pixels that are landslide; NaN when nothing was mapped."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the landslide pixels that were mapped; NaN when there are none."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN when nothing was mapped and nothing was to be mapped."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard index) of the class landslide; NaN as for ``f1``."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    def f_beta(self, beta: float) -> float:
        """F-measure in which recall counts ``beta`` times as much as precision (van Rijsbergen 1979)."""
        weight = beta**2
        return ratio((1 + weight) * self.tp, (1 + weight) * self.tp + weight * self.fn + self.fp)

    def figures(self) -> dict[str, float]:
        """Every figure of ``FIGURES`` by name."""
        return {name: getattr(self, name) for name in FIGURES}


def _labelled(
    truth: NDArray[np.uint8], ignore: int, valid: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of labelled landslide and labelled background."""
    known = truth != ignore if valid is None else (truth != ignore) & valid
    landslide = known & (truth == 1)
    return landslide, known & ~landslide


def confusion(
    pred: NDArray[np.bool_],
    truth: NDArray[np.uint8],
    ignore: int = IGNORE,
    valid: NDArray[np.bool_] | None = None,
) -> Counts:
    """Compare a mask with labels of the same shape.

    Args:
        pred: Mapped as landslide.
        truth: 1 landslide, ``ignore`` unknown, anything else background.
        ignore: Label whose pixels are not counted.
        valid: Pixels to count at all; None counts every labelled one.

    Returns:
        Counts of the labelled (and valid) pixels.
    """
    landslide, background = _labelled(truth, ignore, valid)
    tp = int(np.count_nonzero(landslide & pred))
    fp = int(np.count_nonzero(background & pred))
    return Counts(tp=tp, fp=fp, fn=int(np.count_nonzero(landslide)) - tp, tn=int(np.count_nonzero(background)) - fp)


def block_counts(pred: NDArray[np.bool_], truth: NDArray[np.uint8], block: int) -> list[Counts]:
    """Counts of a strip, one for every ``block`` columns from the left (the last may be narrower).

    Args:
        pred: (h, w) mapped as landslide.
        truth: (h, w) labels as for ``confusion``.
        block: Columns of a block, in pixels.
    """
    return [confusion(pred[:, c : c + block], truth[:, c : c + block]) for c in range(0, pred.shape[1], block)]


class ThresholdCurve:
    """Confusion counts at 1001 thresholds at once, streaming: 16 kB, however many pixels pass.

    Thresholds are the multiples of 1/1000 in float32, and ``prob >= threshold`` is landslide, to the pixel as
    with ``confusion``. Pixels whose probability is NaN were not seen: they are mapped at no threshold.
    """

    #: Upper ends of the bins below 1, as the float32 that a probability is compared with.
    _EDGES = (np.arange(BINS + 1) / BINS).astype(np.float32)

    def __init__(self) -> None:
        #: Rows: background, landslide. Column 0 holds pixels below every threshold, column k + 1 those whose
        #: highest threshold passed is k / 1000.
        self.counts = np.zeros((2, BINS + 2), np.int64)

    def update(
        self,
        prob: NDArray[np.float32],
        truth: NDArray[np.uint8],
        ignore: int = IGNORE,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count the labelled pixels of an array.

        Args:
            prob: Landslide probability, NaN where not seen.
            truth: Labels of the same shape, as for ``confusion``.
            ignore: Label whose pixels are not counted.
            valid: Pixels to count at all; None counts every labelled one.
        """
        landslide, background = _labelled(truth, ignore, valid)
        for counts, chosen in zip(self.counts, (background, landslide), strict=True):
            p = prob[chosen].astype(np.float32, copy=False)
            passed = np.searchsorted(self._EDGES, p, side="right")
            passed[np.isnan(p)] = 0
            counts += np.bincount(passed, minlength=BINS + 2)

    def counts_at(self, threshold: float) -> Counts:
        """Counts with ``prob >= threshold`` as landslide, the threshold rounded to a multiple of 1/1000.

        Raises:
            ValueError: The threshold is not between 0 and 1.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"a threshold lies between 0 and 1, got {threshold}")
        first = round(threshold * BINS) + 1
        fp, tp = (int(n) for n in self.counts[:, first:].sum(axis=1))
        tn, fn = (int(n) for n in self.counts[:, :first].sum(axis=1))
        return Counts(tp=tp, fp=fp, fn=fn, tn=tn)

    def best_f(self, beta: float = 1.0, slack: float = 0.0) -> tuple[float, Counts]:
        """Threshold with the highest F-measure and the counts there.

        Args:
            beta: How much more recall counts than precision; 1 gives F1 (van Rijsbergen 1979).
            slack: What of the F-measure may be given up for a lower threshold: the lowest one within it is taken. With
                0 it is the middle one of the best.

        Raises:
            InputError: No landslide pixel was counted, so no threshold is better than another.
        """
        positives = self.counts[1].sum()
        if not positives:
            raise InputError(
                "A threshold cannot be tuned without a labelled landslide pixel. Give labels with landslides."
            )
        fp, tp = np.cumsum(self.counts[:, :0:-1], axis=1)[:, ::-1]
        f = (1 + beta**2) * tp / (tp + fp + beta**2 * positives)
        best = np.flatnonzero(f >= f.max() - slack)
        threshold = int(best[0 if slack else best.size // 2]) / BINS
        return threshold, self.counts_at(threshold)


@dataclass(frozen=True)
class Blocked:
    """Sums by spatial block, and the figures that follow from them.

    Attributes:
        table: (blocks, columns) sums of every block, which add up over blocks.
        figures: From the (columns,) sums of some blocks to figures by name, NaN where one is not defined.
    """

    table: NDArray[np.int64] | NDArray[np.float64]
    figures: Callable[[NDArray[np.float64]], dict[str, float]]

    def score(self) -> dict[str, float]:
        """Figures of all blocks together."""
        return self.figures(self.table.sum(axis=0).astype(np.float64))


def bootstrap(
    blocks: Sequence[Counts], *, samples: int = SAMPLES, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of P, R, F1 and IoU over spatial blocks, as in ``resample``.

    Args:
        blocks: Counts of the blocks; blocks without a labelled pixel take no part.
        samples: As all below in ``resample``.
        level: Share of the samples inside the interval.
        seed: Of the random numbers.

    Returns:
        ``(low, high)`` by the names of ``FIGURES``, NaN where a figure is defined in no sample.
    """
    return resample([of_counts([b for b in blocks if b.total])], samples=samples, level=level, seed=seed)[0]


def of_counts(blocks: Sequence[Counts]) -> Blocked:
    """The pixel figures of blocks."""
    table = np.array([astuple(b) for b in blocks], np.int64).reshape(-1, 4)
    return Blocked(table, lambda sums: Counts(*(int(n) for n in sums)).figures())


def resample(
    measures: Sequence[Blocked], *, samples: int = SAMPLES, level: float = 0.95, seed: int = 0
) -> list[dict[str, Interval]]:
    """Percentile bootstrap intervals over spatial blocks (Efron 1979, Ann. Statist. 7).

    Neighbouring pixels are not independent, blocks nearly are, so whole blocks are drawn with replacement, the same
    for all measures.

    Args:
        measures: All of the same blocks.
        samples: Bootstrap samples.
        level: Share of the samples inside the interval.
        seed: Of the random numbers; the same seed gives the same intervals.

    Returns:
        For every measure ``(low, high)`` by figure, NaN where a figure is defined in no sample.
    """
    ends = np.cumsum([m.table.shape[1] for m in measures])[:-1]
    table = np.hstack([m.table for m in measures], dtype=np.float64)
    drawn: list[list[dict[str, float]]] = [[] for _ in measures]
    for sums in _draws(table, samples, seed):
        for figures, measure, part in zip(drawn, measures, np.split(sums, ends), strict=True):
            figures.append(measure.figures(part))
    tails = ((1 - level) / 2, (1 + level) / 2)
    return [{name: _interval(np.array([f[name] for f in found]), tails) for name in found[0]} for found in drawn]


def _draws(table: NDArray[np.float64], samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Sums of as many rows of a table as it has, drawn with replacement."""
    rng = np.random.default_rng(seed)
    rows = len(table)
    # Some samples at a time: a full (samples, blocks) table would be large for a country.
    for done in range(0, samples, 50):
        number = min(50, samples - done)
        times = rng.multinomial(rows, np.full(rows, 1 / rows), number) if rows else np.zeros((number, 0))
        yield from times @ table


def _interval(values: NDArray[np.float64], tails: tuple[float, float]) -> tuple[float, float]:
    """Quantiles of the values that are defined."""
    defined = values[np.isfinite(values)]
    if not defined.size:
        return nan, nan
    low, high = np.quantile(defined, tails)
    return float(low), float(high)


def ratio(part: float, whole: float) -> float:
    """Quotient, NaN for 0 / 0: the figure is not defined, which is neither good nor bad."""
    return part / whole if whole else nan


def harmonic_mean(precision: float, recall: float) -> float:
    """F1 of two shares; 0 where one of them is 0, otherwise NaN where one is not defined."""
    if precision > 0 and recall > 0:
        return 2 * precision * recall / (precision + recall)
    return 0.0 if 0 in (precision, recall) else nan
