"""What probabilities promise about a map made of them: guesses that need no reference data.

All work on counts of pixels by probability, in ``BINS`` bins of equal width from 0 to 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

#: Steps of the histogram of probabilities.
BINS = 1000

#: Below this the user is told to doubt the map. Of 31 maps 18 had a true F1 of 0.5 or more, and none of these was
#: doubted; of the other 13 it was 8, 6 of them of scenes without landslides (docs/trust.md).
DOUBTFUL = 0.5


def count(prob: NDArray[np.float32], wanted: NDArray[np.bool_] | None = None) -> Counts:
    """Pixels by probability.

    Args:
        prob: Of any shape, NaN where not seen, which is not counted.
        wanted: Of the same shape, the only pixels to count.
    """
    seen = ~np.isnan(prob) if wanted is None else ~np.isnan(prob) & wanted
    return np.bincount(np.minimum(prob[seen] * np.float32(BINS), BINS - 1).astype(np.intp), minlength=BINS)


def expected_f1(counts: Counts) -> float:
    """The best F1 that a threshold reaches if each pixel is landslide with its probability; 0 if none is.

    After Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure" (ECML PKDD,
    doi:10.1007/978-3-662-44851-9_15).
    """
    true = counts * _centres()
    hit, mapped = np.cumsum(true[::-1]), np.cumsum(counts[::-1])
    return float((2 * hit / np.maximum(true.sum() + mapped, 1e-9)).max())


def mean(counts: Counts) -> float:
    """Mean probability, which is the share of the ground that should be landslide."""
    return float((counts * _centres()).sum() / max(1, counts.sum()))


def threshold_of_share(counts: Counts, share: float) -> float:
    """The threshold, a multiple of a bin's width, at or above which nearest to a share of the pixels lies.

    The highest of several, so that an empty map stays empty whatever comes.
    """
    above = np.cumsum(counts[::-1]) / max(1, counts.sum())  # from the highest threshold on
    best = int(np.abs(above - share).argmin())
    return (BINS - 1 - best) / BINS


def doubts(expected: float | None) -> list[str]:
    """What the user should know about a map of which so much is expected; nothing where it is not known."""
    if expected is None or expected >= DOUBTFUL:
        return []
    return [
        f"the model doubts that it knows this scene (expected F1 {expected:.2f}): compare the map with the image. If "
        "there are landslides, `--normalize centre` (snow, scree) or `l4s-map adapt` may help"
    ]


def _centres() -> NDArray[np.float64]:
    """Probabilities of bins; almost all pixels lie in the lowest, where half a bin each would be far too much."""
    centre: NDArray[np.float64] = (np.arange(BINS) + 0.5) / BINS
    centre[0] = 0.0
    return centre
