"""Calibration: of what networks say, probabilities that mean it. Arrays and tensors in, the same out.

Networks are too sure of themselves. Platt scaling puts the log-odds of what they say on a line, ``slope * z +
intercept``, which labelled pixels that they did not learn from decide (Platt 1999, "Probabilistic Outputs for Support
Vector Machines"). With an intercept of 0 this is temperature scaling (Guo et al. 2017, ICML); crops for training hold
more landslides than scenes do, so that one is needed. The slope is positive: nothing changes in the order of the
pixels, and a map at a threshold is the map at the calibrated threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from l4s_geo.evaluation.reliability import BINS
from l4s_geo.metrics import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32] | NDArray[np.float64]

#: Of the log-odds that are told apart: all that float32 has near 1, in steps that no figure here notices.
_REACH, _STEP = 16.0, 0.05

#: Middles of these steps.
_CENTRES = np.arange(-_REACH + _STEP / 2, _REACH, _STEP)

#: On a card, the method of networks that are taken at their word: they have learnt their own answers, doubts included.
SELF_TRAINING = "self-training"

#: A flatter line says that the networks do not know landslides from the rest.
MIN_SLOPE = 0.05


@dataclass(frozen=True)
class Calibration:
    """A line on log-odds; this one changes nothing unless told otherwise.

    Attributes:
        slope: More than 0; below 1 the networks are too sure.
        intercept: Below 0 they find too many landslides.
    """

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, prob: Tensor) -> Tensor:
        """Calibrated probabilities of a tensor; NaN stays NaN."""
        if self == Calibration():
            return prob
        if prob.device.type == "cpu":
            # torch computes the last values of a tensor in another way than the others, so that they would depend on
            # where rows are cut; numpy does not
            return prob.new_tensor(self._by_odds(np.ascontiguousarray(prob.numpy())))
        return (prob.logit() * self.slope + self.intercept).sigmoid()

    def _by_odds(self, prob: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same with the fast functions of numpy: the odds against, to the power of the slope."""
        with np.errstate(divide="ignore", over="ignore"):
            against = np.exp(np.log((1 - prob) / prob) * np.float32(self.slope) - np.float32(self.intercept))
            calibrated: NDArray[np.float32] = 1 / (1 + against)
        return calibrated

    def apply(self, prob: Any) -> Any:
        """The same of an array or a number."""
        if self == Calibration():
            return prob
        if isinstance(prob, np.ndarray) and prob.dtype == np.float32:
            return self._by_odds(prob)
        return expit(self.slope * logit(prob) + self.intercept)

    def inverse(self, prob: Any) -> Any:
        """What networks said, from calibrated probabilities."""
        return Calibration(1 / self.slope, -self.intercept / self.slope).apply(prob)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From a card's ``calibration``; an empty one changes nothing, and neither does one by self-training.

        Raises:
            ValueError: It is of another kind or out of range.
        """
        if not values or values.get("method") == SELF_TRAINING:
            return cls()
        found = cls(float(values.get("slope", "nan")), float(values.get("intercept", "nan")))
        if values.get("method") != "platt" or not (isfinite(found.slope + found.intercept) and found.slope > 0):
            raise ValueError(f"calibration needs the method platt or {SELF_TRAINING}, a slope above 0, an intercept")
        return found


@dataclass(frozen=True)
class Calibrations:
    """Those of several models whose networks are averaged, each by the number of its networks.

    Attributes:
        parts: Number of networks and calibration of each model, in the order of the networks.
    """

    parts: tuple[tuple[int, Calibration], ...]

    def members(self, members: Tensor) -> Tensor:
        """What each network says (K, ...), by the calibration of its model."""
        found, first = members.new_empty(members.shape), 0
        for number, calibration in self.parts:
            found[first : first + number] = calibration(members[first : first + number])
            first += number
        return found

    def mean(self, members: Tensor) -> Tensor:
        """Calibrated mean of what the networks say, (K, ...) to (...).

        The mean of a model's networks is calibrated, not each of them: this is what its calibration was fitted to.
        """
        if self._same is not None:
            return self._same(members.mean(0))
        total, first = members.new_zeros(members.shape[1:]), 0
        for number, calibration in self.parts:
            total += number * calibration(members[first : first + number].mean(0))
            first += number
        return total / first

    def apply(self, prob: Any) -> Any:
        """Calibrated probability where all models say the same."""
        if self._same is not None:
            return self._same.apply(prob)
        return sum(n * c.apply(prob) for n, c in self.parts) / sum(n for n, _ in self.parts)

    def inverse(self, prob: Any) -> Any:
        """What all models would have to say for a calibrated probability."""
        if self._same is not None:
            return self._same.inverse(prob)
        return expit(np.interp(logit(prob), logit(self.apply(expit(_CENTRES))), _CENTRES))

    @property
    def _same(self) -> Calibration | None:
        """The only one, if all are alike."""
        first, *others = (calibration for _, calibration in self.parts)
        return first if all(c == first for c in others) else None


class Outcomes:
    """Pixels by what networks say of them, landslide and background, streaming: 10 kB, however many pixels pass."""

    def __init__(self) -> None:
        #: Rows: background, landslide.
        self.counts = np.zeros((2, len(_CENTRES)), np.int64)

    def update(self, prob: NDArray[np.float32], truth: NDArray[np.uint8]) -> None:
        """Count the labelled pixels of an array.

        Args:
            prob: Landslide probability, NaN where not seen; such pixels are not counted.
            truth: Labels of the same shape: 1 landslide, 255 unknown, anything else background.
        """
        known = (truth != IGNORE) & np.isfinite(prob)
        steps = (logit(prob[known]) + _REACH) / _STEP
        bins = np.clip(steps, 0, len(_CENTRES) - 1).astype(np.int64)
        landslide = truth[known] == 1
        for counts, chosen in zip(self.counts, (~landslide, landslide), strict=True):
            counts += np.bincount(bins[chosen], minlength=len(_CENTRES))

    def ece(self, calibration: Calibration) -> float:
        """Expected calibration error as in ``l4s_geo.evaluation.reliability.calibration_score``."""
        prob, number = calibration.apply(expit(_CENTRES)), self.counts.sum(axis=0)
        bins = np.minimum((prob * BINS).astype(np.int64), BINS - 1)
        off = np.bincount(bins, number * prob - self.counts[1], BINS)
        return float(np.abs(off).sum() / max(1, number.sum()))


def fit(outcomes: Outcomes) -> Calibration | None:
    """The line under which the outcomes are most likely; None where there is no such line that rises.

    As in Platt 1999 the targets are a little off 0 and 1, so that few pixels that happen to be told apart without error
    do not make a step of the line.
    """
    from scipy.optimize import minimize

    counts = outcomes.counts.astype(np.float64)
    background, landslide = counts.sum(axis=1)
    if not background or not landslide:
        return None
    number = counts.sum(axis=0)
    wanted = counts[1] * (landslide + 1) / (landslide + 2) + counts[0] / (background + 2)

    def loss(line: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = line[0] * _CENTRES + line[1]
        error = number * expit(z) - wanted
        gradient = np.array([error @ _CENTRES, error.sum()])
        return float((number * np.logaddexp(0, z) - wanted * z).sum() / number.sum()), gradient / number.sum()

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return Calibration(round(float(slope), 6), round(float(intercept), 6)) if slope >= MIN_SLOPE else None


def describe(calibration: Calibration, outcomes: Outcomes, split: Sequence[str]) -> dict[str, Any]:
    """A card's ``calibration``: the line, what it was fitted on, and the ECE there without and with it."""
    background, landslide = outcomes.counts.sum(axis=1).tolist()
    return {
        "method": "platt",
        "slope": calibration.slope,
        "intercept": calibration.intercept,
        "split": ", ".join(split),
        "pixels": {"background": background, "landslide": landslide},
        "ece": {
            "before": round(outcomes.ece(Calibration()), 4),
            "after": round(outcomes.ece(calibration), 4),
        },
    }
