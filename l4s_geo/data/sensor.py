"""Synthetic Sentinel-2: spectra of ground covers, the light of the sun, the air and the instrument."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from l4s_geo.data.terrain_noise import PIXEL_M, Floats, Ground, fractal, ramp

#: B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12, the spectral bands of Landslide4Sense.
BAND_COUNT = 12

#: Surface reflectance times 10000 of ground covers at B2, B3, B4, B8, B11 and B12 in full sun: typical
#: values of Sentinel-2; the scatter between scenes is added where they are used.
SPECTRA: dict[str, tuple[float, ...]] = {
    "broadleaf": (180, 380, 230, 2900, 1500, 620),
    "conifer": (130, 240, 170, 1900, 850, 380),
    "lush": (190, 460, 260, 3400, 1700, 700),
    "dry_forest": (230, 410, 420, 2200, 1900, 1000),
    "autumn": (240, 430, 640, 2300, 1900, 1000),
    "autumn_red": (250, 340, 760, 2200, 1900, 1000),
    "leafless": (380, 520, 660, 1500, 1900, 1200),
    "grass": (330, 640, 520, 2900, 2200, 1200),
    "meadow": (260, 640, 330, 3900, 1900, 900),
    "dry_grass": (520, 820, 1100, 2300, 2900, 1900),
    "heath": (320, 460, 560, 1800, 2000, 1200),
    "crop": (260, 600, 300, 4400, 1800, 850),
    "young_crop": (380, 780, 620, 3100, 2100, 1200),
    "ripe": (650, 1050, 1250, 2700, 3000, 2000),
    "stubble": (900, 1300, 1750, 2700, 3500, 2700),
    "soil_dark": (420, 560, 720, 1200, 1900, 1600),
    "soil": (700, 950, 1300, 1900, 3000, 2600),
    "soil_red": (520, 780, 1450, 2100, 3000, 2600),
    "soil_pale": (1300, 1700, 2200, 2900, 3700, 3200),
    "plastic": (2600, 2700, 2700, 3000, 2600, 2200),
    "gravel": (900, 1000, 1060, 1250, 1500, 1400),
    "sand": (1200, 1450, 1700, 2100, 2700, 2400),
    "rock": (900, 1000, 1120, 1400, 1900, 1700),
    "rock_dark": (500, 560, 640, 900, 1300, 1200),
    "scar_brown": (640, 900, 1350, 2000, 2900, 2300),
    "scar_grey": (900, 1080, 1250, 1600, 2300, 1900),
    "scar_pale": (1250, 1550, 1900, 2400, 3200, 2700),
    "water": (180, 170, 90, 50, 20, 15),
    "water_green": (260, 420, 200, 90, 30, 20),
    "water_muddy": (620, 850, 900, 350, 60, 40),
    "asphalt": (800, 880, 940, 1150, 1300, 1200),
    "concrete": (1700, 1850, 1950, 2200, 2400, 2200),
    "roof_red": (700, 900, 1700, 2100, 2500, 2200),
    "roof_grey": (950, 1030, 1080, 1300, 1500, 1400),
    "roof_dark": (480, 520, 560, 750, 1000, 950),
    "roof_blue": (1700, 1400, 900, 1300, 1300, 1100),
    "roof_white": (3600, 3700, 3700, 3800, 3300, 3000),
    "snow": (8200, 8200, 8000, 7300, 800, 700),
    "cloud": (6500, 6400, 6300, 6700, 4200, 3300),
}

#: Reflectance of the clear atmosphere over black ground (times 10000) and its transmission, per band.
PATH = np.array([900, 575, 330, 172, 150, 130, 110, 90, 30, 4, 10, 6], np.float32)
TRANSMISSION = np.array([0.78, 0.84, 0.88, 0.92, 0.93, 0.94, 0.95, 0.95, 0.35, 0.003, 0.96, 0.97], np.float32)

#: Side of a native pixel of each band in 10 m pixels.
NATIVE = (6, 1, 1, 1, 2, 2, 2, 1, 6, 6, 2, 2)


def spectrum(name: str) -> Floats:
    """The twelve bands of a cover: the red edge between red and near infrared is steep in plants only."""
    b2, b3, b4, b8, b11, b12 = SPECTRA[name]
    plant = float(np.clip((b8 / max(b4, 1.0) - 1.5) / 4, 0, 1))
    edge = [0.12 + 0.13 * (1 - plant), 0.68 - 0.18 * plant, 0.9 - 0.05 * plant]
    b5, b6, b7 = (b4 + (b8 - b4) * e for e in edge)
    return np.array([0.9 * b2, b2, b3, b4, b5, b6, b7, b8, b8, b8, b11, b12], np.float32)


def vary(rng: np.random.Generator, name: str, brightness: float = 0.15, colour: float = 0.06) -> Floats:
    """A cover's spectrum as one place has it (standard deviations of the log), (12,) float32."""
    tilt = rng.normal(0, colour) * np.linspace(-1.5, 1, BAND_COUNT) + rng.normal(0, colour / 2, BAND_COUNT)
    varied: Floats = (spectrum(name) * np.exp(rng.normal(0, brightness) + tilt)).astype(np.float32)
    return varied


def paint(image: Floats, cover: Floats, share: NDArray[np.generic], texture: Floats | float = 1.0) -> None:
    """Lay a cover over the ground, in place.

    Args:
        image: (12, h, w) surface reflectance.
        cover: (12,) spectrum, or (12, h, w) one for every pixel.
        share: (h, w) part of each pixel that the cover takes, 0..1 (or bool).
        texture: (h, w) brightness factor.
    """
    flat, part = image.reshape(len(image), -1), share.ravel()
    at = np.flatnonzero(part)
    colour = cover[:, None] if cover.ndim == 1 else cover.reshape(len(cover), -1)[:, at]
    bright = texture if isinstance(texture, float) else texture.ravel()[at]
    flat[:, at] += part[at].astype(np.float32) * (colour * bright - flat[:, at])


def sunlight(ground: Ground, azimuth: float, elevation: float, softness: float) -> Floats:
    """Share of the light of a level field that reaches every pixel, with cast shadows, (h, w).

    The cosine is raised to ``softness`` (Minnaert), since forest evens out the relief.

    Args:
        ground: The relief.
        azimuth: Of the sun, degrees clockwise from north.
        elevation: Of the sun, degrees.
        softness: 1 is a matt surface, less is flatter.
    """
    down, right = np.gradient(ground.dem, PIXEL_M)
    a, e = np.radians(azimuth), np.radians(elevation)
    toward = (-right * np.sin(a) + down * np.cos(a)) * np.cos(e)
    cosine = (toward + np.sin(e)) / np.sqrt(1 + down**2 + right**2)
    light = np.clip(cosine / np.sin(e), 0, 2.5) ** softness
    for reach in (4, 7, 11, 16, 22, 30):
        dr, dc = round(-reach * np.cos(a)), round(reach * np.sin(a))
        higher = _moved(ground.dem, dr, dc) - ground.dem
        light *= 1 - ramp(higher - reach * PIXEL_M * np.tan(e), 0, 15)
    lit: Floats = light.astype(np.float32)
    return lit


def _moved(x: Floats, down: int, right: int) -> Floats:
    """The value ``down`` rows and ``right`` columns away, the border's beyond the border."""
    h, w = x.shape
    moved: Floats = x[np.clip(np.arange(h) + down, 0, h - 1)[:, None], np.clip(np.arange(w) + right, 0, w - 1)]
    return moved


def veil(image: Floats, light: Floats, rng: np.random.Generator, haze: float) -> Floats:
    """Top-of-atmosphere reflectance: light on the ground, transmission and the haze of the air, (12, h, w).

    Args:
        image: Surface reflectance in full sun, (12, h, w); replaced.
        light: (h, w) direct light, 1 on level ground.
        rng: For the unevenness of the haze.
        haze: 0 is clear; 1 doubles the scattered light and dims the ground.
    """
    amount = haze * (1 + 0.35 * fractal(rng, light.shape, 400, 3.2)).clip(0.1, 3)
    skylight = np.array([0.34, 0.27, 0.2, 0.16, 0.15, 0.13, 0.12, 0.11, 0.11, 0.1, 0.07, 0.05], np.float32)
    for band, sky in enumerate(skylight):
        sky = min(sky * (1 + haze), 0.8)
        image[band] *= (sky + (1 - sky) * light) * TRANSMISSION[band] * (1 - 0.15 * amount)
        image[band] += PATH[band] * (1 + amount)
    return image


def sense(image: Floats, rng: np.random.Generator) -> Floats:
    """Digital numbers (12, h, w) after the blur, noise and coarse bands of the instrument; in place."""
    blur, noise = rng.uniform(0.35, 0.6), rng.uniform(3, 8)
    for band, side in enumerate(NATIVE):
        layer = ndimage.gaussian_filter(image[band], blur) if side == 1 else _coarse(image[band], side)
        layer += noise / side * rng.standard_normal(layer.shape, dtype=np.float32)
        image[band] = np.clip(np.rint(layer), 1, 20000)
    return image


def _coarse(layer: Floats, side: int) -> Floats:
    """Averages over blocks of ``side`` pixels, interpolated back."""
    smooth = ndimage.uniform_filter(layer, side)
    centres = [np.clip(np.arange(n) // side * side + side // 2, 0, n - 1) for n in layer.shape]
    blocks: Floats = ndimage.uniform_filter(smooth[np.ix_(*centres)], side)
    return blocks
