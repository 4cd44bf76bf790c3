"""Does the dense CRF help this ensemble, and with which parameters? Measured on validation areas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from l4s_geo.crf import CrfParams, available, refine_blocks, to_uint8
from l4s_geo.data.crops import Area
from l4s_geo.ensemble import Ensemble
from l4s_geo.inference import predict
from l4s_geo.metrics import Counts, ThresholdCurve
from l4s_geo.settings import at_threshold
from l4s_geo.tiling import Tiling

#: The CRF is switched on by default from this gain of F1 on: the best of many candidates on one area flatters itself.
#: Raised from 0.003 after the bundled ensemble had gained 0.0046 and its sibling 0.002.
WORTH = 0.005

Layers = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]


def candidates() -> Iterator[CrfParams]:
    """Settings to try: how strong, how wide, how sensitive to colour."""
    for (smooth, appearance), sxy, srgb in product([(0.0, 0.5), (0.5, 0.5), (0.5, 1.5)], (3.0, 10.0), (5.0, 15.0)):
        yield CrfParams(gaussian_compat=smooth, bilateral_compat=appearance, bilateral_sxy=sxy, bilateral_srgb=srgb)


def probabilities(ensemble: Ensemble, area: Area, patch: int, stride: int) -> Layers:
    """Probability (h, w), colours (h, w, 3) and truth (h, w) of a validation area."""
    tiling = Tiling(area.truth.shape[0], area.truth.shape[1], patch, stride)
    rows = [p.mean(axis=0) for _, p, _ in predict(area.standardized_rows, tiling, ensemble, batch_size=16)]
    prob = np.where(area.valid[:], np.concatenate(rows), np.float32(np.nan)).astype(np.float32)
    image, _ = area.standardized_rows(0, area.truth.shape[0])
    return prob, to_uint8(image[:3]), area.truth[:]


def refined(layers: Layers, params: CrfParams) -> NDArray[np.float32]:
    """The probabilities after the CRF, (h, w)."""
    prob, image, _ = layers
    out = np.empty_like(prob)

    def part(window: Window) -> tuple[slice, slice]:
        return window.toslices()  # type: ignore[no-any-return]

    h, w = prob.shape
    for window, values in refine_blocks(h, w, lambda at: prob[part(at)], lambda at: image[part(at)], params):
        out[part(window)] = values
    return out


def tune_crf(ensemble: Ensemble, areas: Sequence[Area], threshold: float, patch: int, stride: int) -> dict[str, Any]:
    """Try all candidates and record what they do to F1 at the ensemble's threshold.

    Returns:
        For the card: ``default`` (on or off), ``params`` of the best one, ``f1_without`` and ``f1_with`` at the
        threshold, ``tried`` (number of candidates).
    """
    if not areas or not available():
        return {"default": False, "params": {}, "tried": 0}
    layers = [probabilities(ensemble, area, patch, stride) for area in areas]
    without = _counts([(p, truth) for p, _, truth in layers], threshold)
    tried: list[tuple[float, CrfParams]] = []
    for params in candidates():
        found = at_threshold(params, threshold)
        counts = _counts([(refined(layer, found), layer[2]) for layer in layers], threshold)
        tried.append((counts.f1, params))
    best, params = max(tried, key=lambda pair: pair[0])
    return {
        "default": best - without.f1 >= WORTH,
        "params": params.to_dict(),
        "f1_without": round(without.f1, 4),
        "f1_with": round(best, 4),
        "tried": len(tried),
    }


def _counts(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.uint8]]], threshold: float) -> Counts:
    curve = ThresholdCurve()
    for prob, truth in pairs:
        curve.update(prob, truth)
    return curve.counts_at(threshold)
