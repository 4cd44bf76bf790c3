"""Synthetic landslides: bare scars with tongues that run down the steepest slope."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from l4s_geo.data.landcover import grain
from l4s_geo.data.sensor import paint, vary
from l4s_geo.data.terrain_noise import Floats, Ground, Mask, downhill, fractal, ramp

#: Slopes (degrees) below which none starts and at which they start most often.
STEEP = (18.0, 32.0)

#: Landslides in a scene at most.
MOST = 8192


def scars(image: Floats, ground: Ground, rng: np.random.Generator, share: float, free: Mask) -> Floats:
    """Paint landslides in place.

    Args:
        image: (12, h, w) surface reflectance.
        ground: The relief.
        rng: Source of all that is random.
        share: Part of all pixels to cover; less is covered where steep slopes are few.
        free: (h, w) pixels where a landslide may start.

    Returns:
        Share of each pixel that lies in landslides, (h, w).
    """
    inside = _within(ground, rng, share, free)
    shape = inside.shape
    cover = ramp(inside, -rng.uniform(0.4, 1), rng.uniform(0.4, 1))
    fresh, other = rng.choice(["scar_brown", "scar_grey", "scar_pale", "soil", "sand"], 2)
    worn = 0.7 + 0.3 * ramp(inside, 0, rng.uniform(1, 4))
    texture = worn * grain(rng, shape, rng.uniform(0.02, 0.06), 3) * grain(rng, shape, rng.uniform(0.08, 0.2), 15, 3)
    paint(image, vary(rng, str(fresh), 0.2), cover, texture)
    mixed = ramp(fractal(rng, shape, 30, 3), -0.5, 2)
    paint(image, vary(rng, str(other), 0.2), cover * mixed, texture)
    return cover


def _within(ground: Ground, rng: np.random.Generator, share: float, free: Mask) -> Floats:
    """Pixels from the rim of the landslides, positive inside, about -9 far outside, (h, w)."""
    shape = ground.dem.shape
    inside = np.full(shape, -9, np.float32)
    steep = ndimage.gaussian_filter(ground.slope, 2)
    odds = ramp(steep, *STEEP) * ramp(ground.hand, 5, 30) * free
    odds = odds * np.exp(rng.uniform(0.5, 1.8) * fractal(rng, shape, rng.uniform(60, 200), 3))
    if not odds.any():
        return inside
    dem = ndimage.gaussian_filter(ground.dem, 3)
    typical, spread = rng.uniform(11, 28), rng.uniform(0.4, 0.6)
    starts = rng.choice(odds.size, MOST, p=(odds / odds.sum(dtype=np.float64)).ravel())
    for count, start in enumerate(starts):
        if count % 8 == 0 and (inside > 0).sum() >= share * odds.size:
            break
        length = float(np.clip(typical * np.exp(rng.normal(0, spread)), 5, 60))
        row, column = divmod(int(start), shape[1])
        _carve(inside, dem, rng, (row, column), length)
    return inside + rng.uniform(0.3, 0.9) * fractal(rng, shape, 12, 3) * (inside > -3)


def _carve(inside: Floats, dem: Floats, rng: np.random.Generator, start: tuple[int, int], length: float) -> None:
    """Raise ``inside`` to that of one more landslide: a head, a narrower track and a blunt toe."""
    path = list(downhill(dem, *start, steps=round(length)))
    if len(path) < 0.5 * length:
        return
    head = max(length * rng.uniform(0.06, 0.18), 1.1)
    track = max(head * rng.uniform(0.3, 0.8), 0.8)
    along = np.linspace(0, 1, len(path))
    radius = np.interp(along, [0, 0.12, 0.4, 0.85, 1], [0.6 * head, head, track, track, 0.7 * track])
    for (row, column), r in zip(path, radius, strict=True):
        reach = int(r) + 3
        r0, c0 = max(round(row) - reach, 0), max(round(column) - reach, 0)
        part = inside[r0 : round(row) + reach + 1, c0 : round(column) + reach + 1]
        rows, columns = np.ogrid[r0 : r0 + part.shape[0], c0 : c0 + part.shape[1]]
        np.maximum(part, r - np.hypot(rows - row, columns - column), out=part)
