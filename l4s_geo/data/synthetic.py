"""Synthetic Sentinel-2 scenes with terrain and truth, for the demo, the tests and as hard negatives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from l4s_geo.data import landcover as cover
from l4s_geo.data.patches import UNKNOWN
from l4s_geo.data.scars import scars
from l4s_geo.data.sensor import BAND_COUNT, paint, sense, sunlight, vary, veil
from l4s_geo.data.terrain_noise import (
    PIXEL_M,
    Floats,
    Ground,
    flood,
    fractal,
    make_ground,
    ramp,
)
from l4s_geo.errors import InputError, OutputError

BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "slope", "dem")

#: Side of the smallest landscape that is made; smaller scenes are its corner.
SMALLEST = 64

Range = tuple[float, float]


@dataclass(frozen=True)
class Theme:
    """Ranges from which a scene's landscape is drawn.

    Attributes:
        steepness: Upper quartile of the slope, degrees.
        valley: Depth of valley fill, metres.
        farmland: Slope up to which land is farmed, degrees; negative for none.
        town: Share of farmable land that is built up.
        breadth: Factor on the width of river beds.
        gravel: Share of the beds that is bare.
        lake: Share of open water.
        barren: Share of land without forest, from the summits down.
        clearings: Share of felled forest.
        snow: Share of snow.
        cloud: Share of cloud.
        haze: Of the air; 1 doubles the scattered light.
        roads: Number of roads and tracks.
    """

    steepness: Range = (24, 38)
    valley: Range = (2, 25)
    farmland: Range = (3, 9)
    town: Range = (0, 0.2)
    breadth: Range = (0.4, 1.6)
    gravel: Range = (0.2, 1)
    lake: Range = (-0.3, 0.05)
    barren: Range = (-0.2, 0.1)
    clearings: Range = (0, 0.1)
    snow: Range = (0, 0)
    cloud: Range = (-0.1, 0.06)
    haze: Range = (-0.05, 0.25)
    roads: Range = (0, 5)


THEMES = {
    "mixed": Theme(),
    "fields": Theme(steepness=(1, 9), farmland=(7, 14), town=(0, 0.06), clearings=(0, 0.3), barren=(-1, 0)),
    "town": Theme(steepness=(1, 14), farmland=(6, 12), town=(0.3, 0.95), barren=(-1, 0)),
    "water": Theme(steepness=(4, 36), breadth=(1, 4.5), lake=(-0.3, 0.5), gravel=(0, 1.2)),
    "snow": Theme(steepness=(5, 38), snow=(0.03, 0.9), barren=(0, 0.8)),
    "cloud": Theme(steepness=(2, 36), cloud=(0.1, 0.75), haze=(0, 0.9)),
    "bare": Theme(steepness=(10, 38), barren=(0.3, 1), farmland=(-3, 6)),
    "forest": Theme(steepness=(6, 38), clearings=(0, 0.6), farmland=(-5, 3), breadth=(0, 0.8)),
}

#: Themes that serve as landscapes without landslides in training.
NEGATIVE_THEMES = ("fields", "town", "water", "snow", "cloud", "bare", "forest", "mixed")


@dataclass(frozen=True)
class SyntheticScene:
    """A made-up scene on a 10 m grid.

    Attributes:
        bands: The 14 names of the Landslide4Sense order, slope (degrees) and dem (metres) last.
        image: (14, h, w) float32; spectral bands are whole Sentinel-2 L1C digital numbers, 0 where not valid.
        truth: (h, w) uint8: 1 landslide, 0 other.
        valid: (h, w) bool: False in the nodata corner.
        transform: Pixel to map coordinates.
        crs: UTM.
    """

    bands: tuple[str, ...]
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    transform: Affine
    crs: CRS


def make_scene(height: int, width: int, seed: int, *, landslides: bool = True, theme: str = "mixed") -> SyntheticScene:
    """Make a scene; equal arguments give equal scenes, every seed another landscape, season, sun and air.

    Args:
        height: Rows, at least 1.
        width: Columns, at least 1.
        seed: Of the random generator, not negative.
        landslides: Whether fresh landslides cover 2 to 6 % of it, in green forest (less where too little is
            steep).
        theme: One of ``THEMES``; all but "mixed" are meant for ``landslides=False``.

    Raises:
        InputError: The theme is unknown, the size is not positive or the seed is negative.
    """
    if theme not in THEMES:
        raise InputError(f"Unknown theme {theme!r} of a synthetic scene: choose one of {', '.join(THEMES)}.")
    if height < 1 or width < 1:
        raise InputError(f"A synthetic scene of {height} x {width} pixels cannot be made: both must be at least 1.")
    if seed < 0:
        raise InputError(f"The seed of a synthetic scene must not be negative, but is {seed}.")
    rng = np.random.default_rng([seed, sorted(THEMES).index(theme)])
    shape = (max(height, SMALLEST), max(width, SMALLEST))
    drawn = {name: rng.uniform(*between) for name, between in vars(THEMES[theme]).items()}
    ground = make_ground(rng, shape, drawn["steepness"], drawn["valley"])
    ground, depth = flood(ground, max(drawn["lake"], 0))
    reflectance, slid = _surface(ground, depth, rng, drawn, rng.uniform(0.025, 0.05) if landslides else 0.0)
    spectral, opacity = _atmosphere(reflectance, ground, rng, drawn)
    valid = _swath(rng, shape, always=landslides)
    truth = ((slid > 0.5) & (opacity < 0.5) & valid).astype(np.uint8)
    image = np.concatenate([spectral * valid, ground.slope[None], ground.dem[None]])[:, :height, :width]
    corner = Affine(PIXEL_M, 0, 300000 + PIXEL_M * (seed % 1000), 0, -PIXEL_M, 2600000)
    part = np.s_[:height, :width]
    return SyntheticScene(BANDS, image, truth[part], valid[part], corner, CRS.from_epsg(32651))


def _surface(
    ground: Ground, depth: Floats, rng: np.random.Generator, drawn: dict[str, float], slides: float
) -> tuple[Floats, Floats]:
    """Surface reflectance (12, h, w) and the share of landslides in every pixel (h, w)."""
    shape = ground.dem.shape
    image = np.zeros((BAND_COUNT, *shape), np.float32)
    season = "lush" if slides else str(rng.choice(list(cover.FORESTS)))
    cover.forest(image, ground, rng, season)
    cover.clearings(image, ground, rng, drawn["clearings"])
    if drawn["barren"] > 0:
        odds = (ground.dem - ground.dem.mean()) / (ground.dem.std() + 1) + 0.5 * fractal(rng, shape, 50, 2.8)
        line = float(np.quantile(odds, 1 - drawn["barren"]))
        cover.bare(image, ground, rng, ramp(odds, line, line + 0.3))
    farm = cover.level(ground, drawn["farmland"])
    if farm.any():
        crops = str(rng.choice(list(cover.CROPS)))
        woods = ramp(fractal(rng, shape, 60, 3.3), rng.uniform(0.3, 2.5), 0.2)
        cover.fields(image, ground, rng, (farm * (woods > 0.5)).astype(np.float32), crops)
        built = fractal(rng, shape, rng.uniform(40, 200), 3.2)
        line = float(np.quantile(built, 1 - drawn["town"]))
        cover.town(image, rng, farm * ramp(built, line, line + 0.1))
    cover.roads(image, ground, rng, round(drawn["roads"]), 15)
    slid = np.zeros(shape, np.float32)
    if slides:
        slid = scars(image, ground, rng, slides, farm < 0.5)
    wet = cover.rivers(image, ground, rng, drawn["breadth"], drawn["gravel"])
    if drawn["lake"] > 0:
        wet = np.maximum(wet, cover.lake(image, depth, rng))
    return image, slid * (1 - wet)


def _atmosphere(
    image: Floats, ground: Ground, rng: np.random.Generator, drawn: dict[str, float]
) -> tuple[Floats, Floats]:
    """Snow, sun, air, clouds and sensor: digital numbers (12, h, w) and the opacity of the clouds (h, w)."""
    azimuth, elevation = rng.uniform(110, 200), rng.uniform(28, 62)
    light = sunlight(ground, azimuth, elevation, rng.uniform(0.7, 1.1))
    if drawn["snow"] > 0:
        cover.snow(image, ground, rng, drawn["snow"], light - 1)
    opacity = np.zeros_like(light)
    if drawn["cloud"] > 0:
        opacity = cover.clouds(rng, light.shape, drawn["cloud"])
        light *= 1 - 0.9 * cover.shadow(opacity, azimuth, elevation, rng.uniform(20, 200))
    image = veil(image, light, rng, drawn["haze"])
    bright = (0.75 + 0.25 * opacity) * cover.grain(rng, light.shape, 0.08, 30)
    paint(image, vary(rng, "cloud", 0.15, 0.02), opacity, bright)
    return sense(image, rng), opacity


def _swath(rng: np.random.Generator, shape: tuple[int, int], *, always: bool) -> NDArray[np.bool_]:
    """Valid pixels: a slanted corner is missing, as at the edge of a swath."""
    valid = np.ones(shape, bool)
    if not always and rng.random() > 0.2:
        return valid
    rows, columns = np.indices(shape, dtype=np.float32)
    r, c = rng.uniform(0.08, 0.3, 2) * shape
    valid[rows / r + columns / c < 1] = False
    return valid if rng.random() < 0.5 else np.ascontiguousarray(valid[:, ::-1])


def write_scene(scene: SyntheticScene, folder: str | Path) -> dict[str, Path]:
    """Write ``scene.tif`` (12 described uint16 bands, nodata 0), ``dem.tif`` (metres) and ``truth.tif``.

    ``truth.tif`` holds 1 landslide, 0 other, 255 where the scene has no data.

    Returns:
        The paths under "scene", "dem" and "truth".

    Raises:
        OutputError: The folder cannot be written to.
    """
    folder = Path(folder)
    spectral = scene.image[:BAND_COUNT].astype(np.uint16)
    truth = np.where(scene.valid, scene.truth, UNKNOWN).astype(np.uint8)
    layers: dict[str, tuple[NDArray[Any], int | None, tuple[str, ...]]] = {
        "scene": (spectral, 0, scene.bands[:BAND_COUNT]),
        "dem": (scene.image[-1:], None, scene.bands[-1:]),
        "truth": (truth[None], UNKNOWN, ("landslide",)),
    }
    paths = {name: folder / f"{name}.tif" for name in layers}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (data, nodata, bands) in layers.items():
            _write(paths[name], data, nodata, bands, scene)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise OutputError(f"Cannot write the synthetic scene to {folder}: {error}. Choose another folder.") from error
    return paths


def _write(path: Path, data: NDArray[Any], nodata: int | None, bands: tuple[str, ...], scene: SyntheticScene) -> None:
    count, height, width = data.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=data.dtype.name,
        crs=scene.crs, transform=scene.transform, nodata=nodata, compress="deflate", tiled=True,
        blockxsize=256, blockysize=256,
    ) as target:  # fmt: skip
        target.write(data)
        target.descriptions = bands
