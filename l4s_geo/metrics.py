"""Pixel figures of a landslide map against labels. Arrays in, counts and figures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4s_geo.errors import InputError

#: Label of pixels whose truth is unknown.
IGNORE = 255

#: Steps of a threshold curve between 0 and 1.
BINS = 1000

#: Figures that ``Counts`` offers, in the order they are reported.
FIGURES = ("precision", "recall", "f1", "iou")


def _ratio(part: int, whole: int) -> float:
    """Quotient, NaN for 0 / 0: the figure is not defined, which is neither good nor bad."""
    return part / whole if whole else nan


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
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the landslide pixels that were mapped; NaN when there are none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN when nothing was mapped and nothing was to be mapped."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard index) of the class landslide; NaN as for ``f1``."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

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


def bootstrap(
    blocks: Sequence[Counts], *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of P, R, F1 and IoU over spatial blocks (Efron 1979, Ann. Statist. 7).

    Neighbouring pixels are not independent, blocks nearly are, so whole blocks are drawn with replacement.

    Args:
        blocks: Counts of the blocks; blocks without a labelled pixel take no part.
        samples: Bootstrap samples.
        level: Share of the samples inside the interval.
        seed: Of the random numbers; the same seed gives the same intervals.

    Returns:
        ``(low, high)`` by the names of ``FIGURES``, NaN where a figure is defined in no sample.
    """
    table = np.array([astuple(b) for b in blocks if b.total], np.int64).reshape(-1, 4)
    if not len(table):
        return dict.fromkeys(FIGURES, (nan, nan))
    rng = np.random.default_rng(seed)
    share = np.full(len(table), 1 / len(table))
    # One sample at a time: a full (samples, blocks) table would be large for a country.
    sums = [rng.multinomial(len(table), share) @ table for _ in range(samples)]
    drawn = [Counts(*(int(n) for n in row)).figures() for row in sums]
    tails = ((1 - level) / 2, (1 + level) / 2)
    return {name: _interval(np.array([d[name] for d in drawn]), tails) for name in FIGURES}


def _interval(values: NDArray[np.float64], tails: tuple[float, float]) -> tuple[float, float]:
    """Quantiles of the values that are defined."""
    defined = values[np.isfinite(values)]
    if not defined.size:
        return nan, nan
    low, high = np.quantile(defined, tails)
    return float(low), float(high)


@dataclass(frozen=True)
class Evaluation:
    """Figures of one comparison. Pixels are those of the common grid that have a label.

    Attributes:
        pred: What was evaluated.
        truth: What it was compared with.
        threshold: Probability from which a pixel counts as mapped.
        rows: First row and end of the compared rows of the grid.
        grid: The common grid in words.
        counts: Confusion counts, in pixels.
        unseen: Labelled pixels that the prediction did not see; they count as not mapped.
        blocks: Blocks of 128 x 128 pixels with labels.
        intervals: 95 % bootstrap interval over these blocks, by figure.
    """

    pred: str
    truth: str
    threshold: float
    rows: tuple[int, int]
    grid: str
    counts: Counts
    unseen: int
    blocks: int
    intervals: dict[str, tuple[float, float]]

    @property
    def unseen_share(self) -> float:
        """Share of the labelled pixels that the prediction did not see."""
        return self.unseen / self.counts.total

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; figures that are not defined are None."""
        figures = {name: _or_none(value) for name, value in self.counts.figures().items()}
        intervals = {name: [_or_none(v) for v in pair] for name, pair in self.intervals.items()}
        plain = asdict(self) | {"rows": list(self.rows), "intervals": intervals}
        return plain | figures | {"unseen_share": self.unseen_share}

    def text(self) -> str:
        """The same for people, a few lines."""
        c = self.counts
        lines = [f"{self.pred} against {self.truth}, threshold {self.threshold:g}"]
        for name, value in c.figures().items():
            low, high = self.intervals[name]
            shown = f"{value:.4f}  (95 % interval {low:.4f} to {high:.4f})"
            lines.append(f"  {name:<10}{shown if isfinite(value) else 'not defined'}")
        lines.append(f"  pixels    tp {c.tp:,}  fp {c.fp:,}  fn {c.fn:,}  tn {c.tn:,}")
        lines.append(f"  blocks    {self.blocks:,} of 128 x 128 pixels, drawn for the intervals")
        lines.append(f"  grid      {self.grid}, rows {self.rows[0]} to {self.rows[1] - 1}")
        if self.unseen:
            lines.append(f"  not seen  {self.unseen_share:.2%} of the labelled pixels, counted as not mapped")
        return "\n".join(lines)


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if isfinite(value) else None
