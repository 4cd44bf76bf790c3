"""Rasters as small pictures with transparent gaps; strips are averaged, so that no scene is in memory as a whole."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from l4s_geo.raster import Layered, row_windows
from l4s_geo.scene import Grid, Scene
from l4s_geo.scene.bands import TERRAIN_BANDS

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

#: Longer side of a picture in pixels, and pixels of a scene that are read at a time.
LONGEST, AT_ONCE = 2000, 1 << 20

#: Quantiles between which an image is stretched.
STRETCH = (0.02, 0.98)

#: Colours from low to high, and the opacity of the lowest and of all from a tenth on: what is not there stays clear.
PROBABILITY = ("#ffeda0", "#feb24c", "#fc4e2a", "#b10026")
DENSITY = ("#f2e9f7", "#c994c7", "#8856a7", "#4d004b")

#: Shades of a coloured picture.
SHADES = 64


@dataclass(frozen=True)
class Picture:
    """A picture in a place.

    Attributes:
        pixels: (H, W, 4) red, green, blue and opacity.
        transform: From its pixels to coordinates.
        caption: What it shows.
    """

    pixels: Bytes
    transform: Affine
    caption: str = ""

    def data_uri(self) -> str:
        """As WebP, lossy but for what is transparent."""
        return self._encoded("webp", quality=80, method=4)

    def flat_uri(self) -> str:
        """As PNG, for pictures of few colours."""
        return self._encoded("png", optimize=True)

    def _encoded(self, kind: str, **how: int) -> str:
        from PIL import Image

        image, buffer = Image.fromarray(self.pixels, "RGBA"), BytesIO()
        if kind == "png":
            image = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        image.save(buffer, kind, **how)
        return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Stretch:
    """What of each band is black and what is white; the same for every image that is to be compared."""

    low: Floats
    high: Floats

    @classmethod
    def of(cls, bands: Floats) -> Stretch:
        """Between the quantiles ``STRETCH`` of the bands (C, H, W), NaN left out."""
        seen = bands[:, np.isfinite(bands).all(axis=0)]
        if not seen.size:
            seen = np.array([[0.0, 1.0]] * len(bands))
        low, high = np.quantile(seen, STRETCH, axis=1).astype(np.float32)
        return cls(low, np.maximum(high, low + np.float32(1e-6)))

    def __call__(self, bands: Floats) -> Bytes:
        """Bands (C, H, W) as (H, W, 4), transparent where NaN; one band becomes grey."""
        seen = np.isfinite(bands).all(axis=0)
        share = (bands - self.low[:, None, None]) / (self.high - self.low)[:, None, None]
        levels = np.nan_to_num(np.clip(share, 0, 1) * 255).astype(np.uint8)
        colour = levels if len(levels) == 3 else levels[[0, 0, 0]]
        return np.stack([*(colour * seen), np.where(seen, np.uint8(255), np.uint8(0))], axis=-1)


def shown_bands(bands: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Which bands of a scene are shown as red, green and blue, or as grey, and how to say it; none of terrain alone."""
    spectral = [b for b in bands if b not in TERRAIN_BANDS]
    if {"B4", "B3", "B2"} <= {*spectral}:
        return ("B4", "B3", "B2"), "natural colours (B4, B3, B2)"
    if len(spectral) >= 3:
        return tuple(spectral[:3]), f"false colours: {', '.join(spectral[:3])} as red, green and blue"
    return tuple(spectral[:1]), f"band {spectral[0]} in grey" if spectral else ""


def scene_bands(scene: Scene, names: Sequence[str], longest: int = LONGEST) -> tuple[Floats, Affine]:
    """Bands (C, H, W) of a whole scene, NaN where nothing is valid, and from their pixels to coordinates.

    Raises:
        InputError: A file is damaged.
    """

    def read(window: Window) -> Floats:
        image, valid = scene.read(window, names)
        image[:, ~valid] = np.nan
        return image

    return decimated(scene.grid, read, longest)


def layer_values(raster: Layered, layer: str, longest: int = LONGEST) -> tuple[Floats, Affine]:
    """A layer (H, W) of a whole raster, NaN where nothing was seen, and from its pixels to coordinates."""
    values, transform = decimated(raster.grid, lambda window: raster.read(window, layer)[None], longest)
    return values[0], transform


def decimated(grid: Grid, read: Callable[[Window], Floats], longest: int) -> tuple[Floats, Affine]:
    """Means of square blocks of pixels.

    Args:
        grid: Of what is read.
        read: Gives (C, h, w) of a window, NaN where nothing is known.
        longest: Longer side of the result at most.

    Returns:
        (C, H, W), NaN where a block has only NaN; and from its pixels to coordinates.
    """
    side = -(-max(grid.shape) // longest)
    rows = side * max(1, AT_ONCE // (grid.width * side))
    strips = [_block_means(read(window), side) for window in row_windows(grid, rows)]
    return np.concatenate(strips, axis=1), grid.transform * Affine.scale(side)


def _block_means(values: Floats, side: int) -> Floats:
    """Of (C, h, w) by blocks of ``side`` pixels; the last ones may be smaller."""
    if side == 1:
        return values
    known = np.isfinite(values)
    sums, counts = (_block_sums(x, side) for x in (np.where(known, values, np.float32(0)), known.astype(np.float32)))
    means: Floats = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means


def _block_sums(values: Floats, side: int) -> Floats:
    _, h, w = values.shape
    rows = np.add.reduceat(values, np.arange(0, h, side), axis=1)
    sums: Floats = np.add.reduceat(rows, np.arange(0, w, side), axis=2)
    return sums


def coloured(values: Floats, colours: Sequence[str], top: float) -> Bytes:
    """Values (H, W) as (H, W, 4): colours from 0 to ``top``, the lowest fading out, transparent where NaN."""
    shade = np.linspace(0, 1, SHADES)
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours])
    table = np.column_stack(
        [np.interp(shade, np.linspace(0, 1, len(stops)), channel) for channel in stops.T]
        + [255 * np.clip(shade * 10 - 0.2, 0, 1)]
    )
    index = np.nan_to_num(np.clip(values / top, 0, 1) * (SHADES - 1)).round().astype(np.intp)
    pixels: Bytes = table.round().astype(np.uint8)[index]
    pixels[np.isnan(values)] = 0
    return pixels


def relief(elevation: Floats, pixel: float) -> Bytes:
    """Elevations (H, W) in metres as (H, W, 4) of shaded relief, lit from the upper left at 45 degrees (Horn 1981).

    Args:
        elevation: NaN where unknown.
        pixel: Metres of a pixel.
    """
    if min(elevation.shape) < 2:
        return np.zeros((*elevation.shape, 4), np.uint8)
    down, right = np.gradient(elevation, pixel)
    light = (1 + (right + down) / np.sqrt(2)) / np.sqrt(2 * (1 + right**2 + down**2))
    grey = np.nan_to_num(60 + 195 * np.clip(light, 0, 1)).astype(np.uint8)
    known = np.isfinite(light)
    return np.stack([*(grey * known,) * 3, np.where(known, np.uint8(255), np.uint8(0))], axis=-1)


def veil(hidden: NDArray[np.bool_]) -> Bytes:
    """(H, W, 4) that dims what is hidden, in stripes."""
    step = max(4, round(max(hidden.shape) / 160))
    stripe = np.add.outer(*map(np.arange, hidden.shape)) % step < max(1, step // 4)
    pixels = np.zeros((*hidden.shape, 4), np.uint8)
    pixels[hidden] = (235, 235, 235, 150)
    pixels[hidden & stripe] = (90, 90, 90, 170)
    return pixels
