"""Pseudo-labels: which pixels of an unlabelled target a network's own answer is good enough to learn from.

The three ways of the winners of Landslide4Sense (Ghorbanzadeh et al. 2022, IEEE JSTARS 15,
doi:10.1109/JSTARS.2022.3220845). Labels are 0 background, 1 landslide, 255 not used; pixels without a probability (NaN)
are not used. Shares are of a whole target, which may be larger than memory: ``Doubts`` counts it window by window,
then the labels are made window by window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from l4s_geo.data.patches import SOFT, STEPS, UNKNOWN
from l4s_geo.errors import InputError

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

#: The upper half of a float32, its sign bit aside: bins are 1/128 of their value wide, however small it is.
BINS = 1 << 15


class Doubts:
    """How many pixels of each class are how doubtful: counted by window, in memory that does not grow.

    Doubt is any number from 0 on. Confident networks differ in the fifth decimal, so that bins of equal width would
    hold half the scene each; bins here have equal relative width.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, BINS), np.int64)

    def update(self, landslide: NDArray[np.bool_], doubt: Floats) -> None:
        """Count pixels by class and doubt (both of any equal shape); NaN is left out."""
        seen = ~np.isnan(doubt)
        for counts, chosen in zip(self.counts, (seen & ~landslide, seen & landslide), strict=True):
            counts += np.bincount(_bin(doubt[chosen]), minlength=BINS)

    def limits(self, background: float, landslide: float) -> tuple[int, int]:
        """Last bin, by class, of those that hold the least doubtful share of it (-1: the class is empty)."""
        found = []
        for counts, share in zip(self.counts, (background, landslide), strict=True):
            wanted = int(np.ceil(share * counts.sum()))
            found.append(int(np.searchsorted(np.cumsum(counts), wanted)) if wanted else -1)
        return found[0], found[1]

    def plain_limits(self, share: float) -> tuple[int, int]:
        """Last bin, the same for both classes, of those that hold the least doubtful share of all pixels."""
        wanted = int(np.ceil(share * self.counts.sum()))
        last = int(np.searchsorted(np.cumsum(self.counts.sum(0)), wanted)) if wanted else -1
        return last, last


def _bin(doubt: Floats) -> NDArray[np.int64]:
    """Bins in the order of the numbers: positive floats sort as their bits do."""
    bits = np.ascontiguousarray(np.abs(doubt), np.float32).view(np.uint32)
    return (bits >> 16).astype(np.int64)


def least_doubtful(landslide: NDArray[np.bool_], doubt: Floats, limits: tuple[int, int]) -> Labels:
    """Labels of the pixels up to the limit of their class, 255 elsewhere."""
    seen = ~np.isnan(doubt)
    kept = seen & (_bin(np.where(seen, doubt, 0)) <= np.where(landslide, limits[1], limits[0]))
    return np.where(kept, landslide, UNKNOWN).astype(np.uint8)


class Selection(Protocol):
    """A way to choose pixels, in two passes over the target: ``count`` all windows, then make their ``labels``.

    ``prob`` and ``uncertainty`` are of one shape; a pixel is landslide from ``threshold`` on.
    """

    @property
    def method(self) -> str:
        """Its name in a recipe."""

    def count(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> None:
        """First pass: take a window into account."""

    def labels(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> Labels:
        """Second pass: labels of a window."""


@dataclass(frozen=True)
class Confident:
    """Kingdrone: every pixel whose probability is at least ``level``, of either class.

    Attributes:
        method: Its name in a recipe.
        level: Probability, over 0.5.
    """

    method: Literal["confident"] = "confident"
    level: float = 0.7

    def __post_init__(self) -> None:
        if not 0.5 < self.level <= 1:
            raise InputError(f"'level' must be over 0.5 and at most 1, not {self.level!r}.")

    def count(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> None:
        """Nothing to count: a pixel is judged by itself."""

    def labels(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> Labels:
        """Labels of a window."""
        return confident(prob, self.level)


@dataclass(frozen=True)
class TopShare:
    """SEEK: the most confident ``share`` of the pixels of each class (in the paper 50, 70, 90 and 100 %).

    Attributes:
        method: Its name in a recipe.
        share: Over 0, at most 1.
        balanced: Of each class; otherwise of all pixels, which leaves few landslides.
    """

    method: Literal["top-share"] = "top-share"
    share: float = 1.0
    balanced: bool = True

    def __post_init__(self) -> None:
        _check_share("share", self.share)

    def count(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> None:
        """Count a window by the probability of the other class."""
        doubts.update(*_by_probability(prob, threshold))

    def labels(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> Labels:
        """Labels of a window."""
        limits = doubts.limits(self.share, self.share) if self.balanced else doubts.plain_limits(self.share)
        return least_doubtful(*_by_probability(prob, threshold), limits)


@dataclass(frozen=True)
class Certain:
    """Tanmlh: the pixels of lowest uncertainty, a share of each class, by Monte-Carlo dropout.

    Attributes:
        method: Its name in a recipe.
        background: Share of the background that is kept.
        landslide: Share of the landslides that is kept.
        passes: Stochastic passes, over which the variance of the logits is the uncertainty.
        dropout: Share that is dropped after the first convolution.
    """

    method: Literal["certain"] = "certain"
    background: float = 0.9
    landslide: float = 0.7
    passes: int = 10
    dropout: float = 0.3

    def __post_init__(self) -> None:
        _check_share("background", self.background)
        _check_share("landslide", self.landslide)
        if self.passes < 2 or not 0 < self.dropout < 1:
            raise InputError(
                f"'passes' must be 2 or more and 'dropout' between 0 and 1, not {self.passes} and {self.dropout}."
            )

    def count(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> None:
        """Count a window by its uncertainty."""
        doubts.update(prob >= threshold, uncertainty)

    def labels(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> Labels:
        """Labels of a window."""
        return least_doubtful(prob >= threshold, uncertainty, doubts.limits(self.background, self.landslide))


@dataclass(frozen=True)
class Soft:
    """Every pixel, with its probability as label: the knowledge of the teacher, doubts included (Hinton et al. 2015).

    Hard labels make a network surer than it should be, so that the threshold of the teacher no longer fits it.

    Attributes:
        method: Its name in a recipe.
    """

    method: Literal["soft"] = "soft"

    def count(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> None:
        """Nothing to count: all pixels are taken."""

    def labels(self, doubts: Doubts, prob: Floats, uncertainty: Floats, threshold: float) -> Labels:
        """Labels of a window, as ``SOFT`` has them."""
        steps = np.rint(np.nan_to_num(prob) * STEPS) + SOFT
        return np.where(np.isnan(prob), UNKNOWN, steps).astype(np.uint8)


def probabilities(truth: torch.Tensor) -> torch.Tensor:
    """Labels with probabilities among them as float: 0, 1 and between, 255 unknown; other labels as they are."""
    soft = (truth >= SOFT) & (truth != UNKNOWN)
    return torch.where(soft, (truth - SOFT) / STEPS, truth.float()) if soft.any() else truth


def classes(labels: Labels, threshold: float = 0.5) -> Labels:
    """Labels with probabilities among them as 0, 1 and 255."""
    soft = (labels >= SOFT) & (labels != UNKNOWN)
    return np.where(soft, labels >= SOFT + threshold * STEPS, labels).astype(np.uint8)


#: By the ``method`` that a recipe names.
METHODS: dict[str, type[Confident] | type[TopShare] | type[Certain] | type[Soft]] = {
    "soft": Soft,
    "confident": Confident,
    "top-share": TopShare,
    "certain": Certain,
}


def confident(prob: Floats, level: float) -> Labels:
    """Landslide where ``prob >= level``, background where ``prob <= 1 - level``, else 255.

    The first place of Landslide4Sense took 0.7 (Ghorbanzadeh et al. 2022, IEEE JSTARS 15,
    doi:10.1109/JSTARS.2022.3220845).

    Args:
        prob: Probability of landslide, of any shape.
        level: Over 0.5.
    """
    return np.select([prob >= level, prob <= 1 - level], [1, 0], UNKNOWN).astype(np.uint8)


def top_share(prob: Floats, threshold: float, share: float) -> Labels:
    """The most confident ``share`` of the pixels of each class, 255 elsewhere.

    The second place of Landslide4Sense tried 50, 70, 90 and 100 % (Ghorbanzadeh et al. 2022, IEEE JSTARS 15,
    doi:10.1109/JSTARS.2022.3220845).

    Args:
        prob: Probability of landslide over the whole target, of any shape.
        threshold: Probability from which on a pixel is landslide.
        share: Over 0, at most 1. Pixels within 1/128 of the last one's probability of the other class are kept as well.
    """
    return _whole(TopShare(share=share), prob, prob, threshold)


def certain(
    mean: Floats, uncertainty: Floats, threshold: float, background: float = 0.9, landslide: float = 0.7
) -> Labels:
    """The pixels of lowest uncertainty, a share of each class, 255 elsewhere.

    The third place of Landslide4Sense kept 90 % of the background and 70 % of the landslides (Ghorbanzadeh et al. 2022,
    IEEE JSTARS 15, doi:10.1109/JSTARS.2022.3220845). One limit for both classes would leave few landslides, of which
    networks are less certain.

    Args:
        mean: Mean probability of landslide of several stochastic passes over the whole target, of any shape.
        uncertainty: Variance of their logits, same shape.
        threshold: Probability from which on a pixel is landslide.
        background: Share of the background that is kept.
        landslide: Share of the landslides that is kept. Pixels within 1/128 of the last one's uncertainty are kept too.
    """
    return _whole(Certain(background=background, landslide=landslide), mean, uncertainty, threshold)


def _whole(how: Selection, prob: Floats, uncertainty: Floats, threshold: float) -> Labels:
    doubts = Doubts()
    how.count(doubts, prob, uncertainty, threshold)
    return how.labels(doubts, prob, uncertainty, threshold)


def _by_probability(prob: Floats, threshold: float) -> tuple[NDArray[np.bool_], Floats]:
    """Class, and probability of the other class as doubt."""
    landslide = prob >= threshold
    return landslide, np.where(landslide, 1 - prob, prob)


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InputError(f"{name!r} must be over 0 and at most 1, not {value!r}.")
