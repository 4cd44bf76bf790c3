"""Score a network on labelled areas with the code that maps scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from l4s_geo.calibration import Outcomes, describe, fit
from l4s_geo.data.crops import Area
from l4s_geo.ensemble import Ensemble
from l4s_geo.inference import predict
from l4s_geo.metrics import ThresholdCurve
from l4s_geo.tiling import Tiling

#: Thresholds by what they weigh: recall counts ``beta`` times as much as precision (van Rijsbergen 1979).
BETAS = {"balanced": 1.0, "recall": 2.0, "precision": 0.5}


#: Contrasts that a threshold has to serve: how much landslides stand out differs by about this between regions.
CONTRASTS = (1.25, 1.0, 0.8)

#: What of the F-measure a lower threshold may cost: networks are less sure of landslides where they never learnt.
SLACK = 0.005


class On(Protocol):
    """Where to run."""

    device: torch.device
    dtype: torch.dtype


class Tuned(NamedTuple):
    """What validation areas decide; thresholds are of what the networks say, as ``Card.calibrated`` takes them.

    Attributes:
        thresholds: By preset.
        figures: On the areas, by preset.
        outcomes: Pixels of the areas by what the networks say of them.
    """

    thresholds: dict[str, float]
    figures: dict[str, Any]
    outcomes: Outcomes

    def calibration(self, split: Sequence[str]) -> dict[str, Any]:
        """For the card, see ``calibration_on``."""
        return calibration_on(self.outcomes, split)


def answers(
    ensemble: Ensemble, areas: Sequence[Area], patch: int, overlap: float = 0.5
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """The ensemble's mean probability, not calibrated, and the truth (h, w) of some areas, in strips."""
    stride = max(1, round(patch * (1 - overlap)))
    for area in areas:
        tiling = Tiling(area.truth.shape[0], area.truth.shape[1], patch, stride)
        for row, p, _ in predict(area.standardized_rows, tiling, ensemble, batch_size=16):
            yield p.mean(axis=0), area.truth[row : row + p.shape[1]]


def threshold_curve(ensemble: Ensemble, areas: Sequence[Area], patch: int, overlap: float = 0.5) -> ThresholdCurve:
    """Counts at every threshold of the ensemble's mean probability over the labelled pixels of some areas."""
    curve = ThresholdCurve()
    for prob, truth in answers(ensemble, areas, patch, overlap):
        curve.update(prob, truth)
    return curve


def calibration_on(outcomes: Outcomes, split: Sequence[str]) -> dict[str, Any]:
    """A card's ``calibration`` by outcomes on blocks of data; empty where they say nothing about the networks."""
    found = fit(outcomes)
    return {} if found is None else describe(found, outcomes, split)


def score(net: nn.Module, areas: Sequence[Area], on: On, patch: int) -> dict[str, float]:
    """Best F1 over all thresholds, the threshold, and F1 at 0.5."""
    curve = threshold_curve(Ensemble([net], on.device, on.dtype), areas, patch, overlap=0.25)
    threshold, best = curve.best_f(1.0)
    return {"f1": best.f1, "threshold": threshold, "f1_at_0.5": curve.counts_at(0.5).f1}


def tune(
    networks: Sequence[nn.Module],
    areas: Sequence[Area],
    device: torch.device,
    dtype: torch.dtype,
    patch: int,
) -> Tuned:
    """Thresholds of the best F1, F2 and F0.5 on validation areas (0.5 without any), and what else they decide.

    A threshold that is tuned on one region alone does not fit the next, where landslides stand out less or more. It
    is therefore tuned on the areas as they are and with more and less contrast, and is the lowest of those that are
    about as good; the figures and the outcomes are of the areas as they are, alone.
    """
    plain, outcomes = ThresholdCurve(), Outcomes()
    if not areas:
        return Tuned(dict.fromkeys(BETAS, 0.5), {}, outcomes)
    ensemble = Ensemble(networks, device, dtype)
    varied = threshold_curve(ensemble, [a.with_contrast(g) for a in areas for g in CONTRASTS], patch)
    for prob, truth in answers(ensemble, areas, patch):
        plain.update(prob, truth)
        outcomes.update(prob, truth)
    thresholds, figures = {}, {}
    for name, beta in BETAS.items():
        thresholds[name] = round(varied.best_f(beta, SLACK)[0], 3)
        counts = plain.counts_at(thresholds[name])
        figures[name] = {k: round(getattr(counts, k), 4) for k in ("precision", "recall", "f1")}
    return Tuned(thresholds, {f"validation ({', '.join(a.name for a in areas)})": figures}, outcomes)
