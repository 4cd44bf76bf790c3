"""Whether probabilities mean what they say, and whether doubt ranks errors. Arrays in, figures out."""

from __future__ import annotations

from math import log, nan

import numpy as np
from numpy.typing import NDArray

from l4s_geo.metrics import Blocked, ratio

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

#: Bins of probability, of equal width, as in Guo et al. 2017.
BINS = 15

#: Ends of the bins of uncertainty: small ones are told apart as well as large ones.
_DOUBTS = np.geomspace(1e-6, 1, 120).astype(np.float32)


def calibration_sums(
    prob: NDArray[np.float32], landslide: Bools, mapped: Bools, columns: NDArray[np.int64], blocks: int
) -> Floats:
    """Sums for ``calibration_score``.

    Args:
        prob: (n,) probability of landslide of some pixels.
        landslide: (n,) their truth.
        mapped: (n,) whether they are mapped.
        columns: (n,) column of blocks they lie in.
        blocks: Number of these.

    Returns:
        (blocks, 6 * BINS + 1): number, sum of the probabilities and landslides by bin, first of the pixels that are not
        mapped, then of the mapped; and the sum of the squared errors.
    """
    bins = np.minimum((prob * BINS).astype(np.int64), BINS - 1) + BINS * mapped
    key = columns * (2 * BINS) + bins
    size = blocks * 2 * BINS
    sums = [np.bincount(key, w, size).reshape(blocks, -1) for w in (None, prob, landslide)]
    squares = np.bincount(columns, (prob.astype(np.float64) - landslide) ** 2, blocks)
    return np.hstack([*sums, squares[:, None]])


def calibration_score(table: Floats) -> Blocked:
    """Calibration from (blocks, columns) sums of ``calibration_sums``.

    Figures:

    - ``ece``: expected calibration error (Naeini et al. 2015, AAAI; Guo et al. 2017, ICML), the distance between mean
      probability and share of landslides, averaged over the bins by their pixels.
    - ``ece_mapped``: the same over the mapped pixels only. Most pixels of a scene are certain background, and
      hide in ``ece`` how far the others are off.
    - ``brier``: mean squared error of the probabilities (Brier 1950).
    """
    return Blocked(table, _calibration)


def reliability_curve(sums: Floats) -> Floats:
    """Number of pixels, mean probability and share of landslides (3, BINS); the last two NaN for an empty bin."""
    number, prob, landslide = sums[:-1].reshape(3, 2, BINS).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.stack([number, prob / number, landslide / number])


def _calibration(sums: Floats) -> dict[str, float]:
    number, prob, landslide = sums[:-1].reshape(3, 2, BINS)
    off = np.abs(prob.sum(axis=0) - landslide.sum(axis=0)).sum()
    off_mapped = np.abs(prob[1] - landslide[1]).sum()
    pixels = number.sum()
    return {
        "ece": ratio(off, pixels),
        "ece_mapped": ratio(off_mapped, number[1].sum()),
        "brier": ratio(sums[-1], pixels),
    }


def risk_sums(doubt: NDArray[np.float32] | Floats, wrong: Bools, block: NDArray[np.int64], blocks: int) -> Floats:
    """Sums for ``risk_score``.

    Args:
        doubt: (n,) uncertainty from 0 to 1 of some answers, NaN for those to leave out.
        wrong: (n,) whether they are wrong.
        block: (n,) block that they belong to.
        blocks: Number of these.

    Returns:
        (blocks, columns): number and errors by bin of uncertainty, lowest first.
    """
    known = np.isfinite(doubt)
    bins = len(_DOUBTS) + 1
    key = block[known] * bins + np.searchsorted(_DOUBTS, doubt[known].astype(np.float32))
    counts = [np.bincount(key[chosen], minlength=blocks * bins) for chosen in (slice(None), wrong[known])]
    return np.hstack([c.reshape(blocks, bins) for c in counts]).astype(np.float64)


def risk_score(table: Floats) -> Blocked:
    """Risk and coverage (Geifman & El-Yaniv 2017, NeurIPS) from (blocks, columns) sums of ``risk_sums``.

    Answers are trusted from the most certain on. The *coverage* is the share that is trusted, the *risk* the share
    of these that are wrong. Figures:

    - ``aurc``: area under the risk over the coverage; uncertainty without any meaning gives ``error_rate``.
    - ``excess_aurc``: what of it a perfect ranking would save (Geifman et al. 2019, ICLR).
    - ``error_rate``: risk when all are trusted.
    """
    return Blocked(table, _risk)


def risk_curve(sums: Floats) -> tuple[Floats, Floats]:
    """Coverage and risk, at the end of every bin that holds something."""
    number, errors = sums.reshape(2, -1)
    held = number > 0
    trusted = np.cumsum(number[held])
    return trusted / number.sum(), np.cumsum(errors[held]) / trusted


def _risk(sums: Floats) -> dict[str, float]:
    number, errors = sums.reshape(2, -1)
    held = number > 0
    number, errors = number[held], errors[held]
    if not len(number):
        return {"aurc": nan, "excess_aurc": nan, "error_rate": nan}
    n, e = np.cumsum(number), np.cumsum(errors)
    n_before, e_before = n - number, e - errors
    # The order within a bin is by chance: errors come evenly there, and the area has a closed form.
    growth = np.log(n[1:] / n_before[1:])
    area = e[-1] + ((e_before - errors * n_before / number)[1:] * growth).sum()
    aurc, rate = float(area / n[-1]), float(e[-1] / n[-1])
    best = rate + (1 - rate) * log(1 - rate) if rate < 1 else 1.0
    return {"aurc": aurc, "excess_aurc": aurc - best, "error_rate": rate}
