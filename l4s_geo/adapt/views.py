"""What of a target is shown in a report, read decimated or strip by strip: rasters are never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from l4s_geo.data.patches import UNKNOWN
from l4s_geo.errors import InputError, reason
from l4s_geo.raster import STRIP, row_windows
from l4s_geo.scene import Grid
from l4s_geo.tiling import PATCH
from l4s_geo.train.targets import grid_of
from l4s_geo.vector import is_vector, read_polygons

Floats = NDArray[np.float32]

#: Longer side of a map, in pixels of the picture.
LONGEST = 900

#: The most patches that are shown, and how many beside each other.
PATCHES, COLUMNS = 28, 7

#: What became of the pixels that a model maps.
CHANGES = ("only before", "only after", "both")


@dataclass(frozen=True)
class View:
    """What of a raster is shown: windows in rows of ``columns``, each drawn with ``shape`` (rows, columns)."""

    grid: Grid
    windows: tuple[Window, ...]
    columns: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, grid: Grid, longest: int = LONGEST) -> View:
        """All of a scene, decimated; some of the separate patches of a target that has no place on Earth."""
        if grid.is_local and grid.width == PATCH and grid.height % (2 * PATCH) == 0:
            count = grid.height // (2 * PATCH)
            chosen = np.linspace(0, count - 1, min(count, PATCHES)).round().astype(int)
            windows = tuple(Window(0, 2 * PATCH * int(i), PATCH, PATCH) for i in chosen)
            return cls(grid, windows, min(COLUMNS, len(windows)), (PATCH, PATCH))
        factor = min(1.0, longest / max(grid.shape))
        height, width = (max(1, round(side * factor)) for side in grid.shape)
        return cls(grid, (grid.window(),), 1, (height, width))

    def compose(self, read: Callable[[Window], Floats]) -> Floats:
        """The picture (C, H, W) of what ``read`` gives of every window (C, h, w); NaN between them."""
        pieces = [read(window) for window in self.windows]
        gap = 2 if len(pieces) > 1 else 0
        (h, w), rows = self.shape, math.ceil(len(pieces) / self.columns)
        size = (len(pieces[0]), rows * (h + gap) - gap, self.columns * (w + gap) - gap)
        canvas = np.full(size, np.nan, np.float32)
        for i, piece in enumerate(pieces):
            top, left = i // self.columns * (h + gap), i % self.columns * (w + gap)
            canvas[:, top : top + h, left : left + w] = piece
        return canvas

    def read(self, path: Path, layers: Sequence[int], resampling: Resampling) -> Floats:
        """Layers (counted from 1) of a raster as (C, H, W), NaN where they are not valid."""
        with rasterio.open(path) as file:

            def read(window: Window) -> Floats:
                shape = (len(layers), *self.shape)
                values: Floats = file.read(layers, window=window, out_shape=shape, resampling=resampling).astype("f4")
                if file.nodata is not None:
                    return values
                values[:, file.dataset_mask(window=window, out_shape=self.shape) == 0] = np.nan
                return values

            return self.compose(read)

    @property
    def aspect(self) -> float:
        """Height of the picture by its width."""
        return math.ceil(len(self.windows) / self.columns) * self.shape[0] / (self.columns * self.shape[1])


@dataclass(frozen=True)
class Maps:
    """Two maps of a target: probabilities in layer 1, and thresholds. ``after`` is None where nothing was kept.

    Attributes:
        image: Of the target, bands by description.
        before: Answers of the starting model.
        after: Of the kept one.
        thresholds: Of both.
    """

    image: Path
    before: Path
    after: Path | None
    thresholds: tuple[float, float]

    def became(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Pixels (h, w) as 0 not mapped, else 1 + index in ``CHANGES``; and which of them either model saw."""
        with rasterio.open(self.before) as old, rasterio.open(self.after or self.before) as new:
            before, after = old.read(1, window=window), new.read(1, window=window)
        mapped = (before >= self.thresholds[0]).astype(np.uint8) + 2 * (after >= self.thresholds[1]).astype(np.uint8)
        return mapped, ~(np.isnan(before) & np.isnan(after))

    def count(self) -> dict[str, int]:
        """Pixels by what became of them, and those that either model saw; all of the raster, from top to bottom."""
        counts, seen = np.zeros(1 + len(CHANGES), np.int64), 0
        for window in row_windows(grid_of(self.before)):
            became, known = self.became(window)
            counts += np.bincount(became.ravel(), minlength=len(counts))
            seen += int(np.count_nonzero(known))
        return {"seen": seen} | {name: int(n) for name, n in zip(CHANGES, counts[1:], strict=True)}

    def shares(self, view: View) -> Floats:
        """Share (3, H, W) of every pixel of the picture that is in each of ``CHANGES``; counted before decimation.

        The threshold of a mean would lose every landslide that is smaller than a pixel of the picture.
        """
        return view.compose(lambda window: self._shares(window, view.shape))

    def _shares(self, window: Window, shape: tuple[int, int]) -> Floats:
        rows, columns = (
            np.linspace(0, side, n + 1).round().astype(int)
            for side, n in zip((window.height, window.width), shape, strict=True)
        )
        found = np.empty((len(CHANGES), *shape), np.float32)
        step = max(1, STRIP * shape[0] // int(window.height))
        for first in range(0, shape[0], step):
            edges = rows[first : first + step + 1]
            strip = Window(window.col_off, window.row_off + edges[0], window.width, edges[-1] - edges[0])
            became, _ = self.became(strip)
            areas = np.diff(edges)[:, None] * np.diff(columns)
            for i in range(len(CHANGES)):
                sums = np.add.reduceat((became == i + 1).astype(np.float32), edges[:-1] - edges[0], axis=0)
                found[i, first : first + step] = np.add.reduceat(sums, columns[:-1], axis=1) / areas
        return found


def true_colour(path: Path, view: View) -> Floats:
    """Red, green and blue (H, W, 3), 0 to 1 between the quantiles 0.02 and 0.98 of each; the first band if one lacks.

    NaN where the image is not valid.
    """
    with rasterio.open(path) as file:
        names = list(file.descriptions)
    layers = [names.index(b) + 1 for b in ("B4", "B3", "B2")] if {"B4", "B3", "B2"} <= {*names} else [1, 1, 1]
    bands = view.read(path, layers, Resampling.average)
    stretched = np.full_like(bands, np.nan)
    for band, out in zip(bands, stretched, strict=True):
        if np.isfinite(band).any():
            low, high = np.nanquantile(band, (0.02, 0.98))
            out[:] = np.clip((band - low) / max(high - low, 1), 0, 1)
    return stretched.transpose(1, 2, 0)


def truth_of(path: Path, view: View) -> NDArray[np.bool_]:
    """True landslides (H, W) on the grid of the picture."""
    grid = view.grid
    h, w = view.shape
    small = Grid(grid.crs, grid.transform * Affine.scale(grid.width / w, grid.height / h), w, h)
    if is_vector(path):
        return read_polygons(path).burn(small)(small.window())
    try:
        with (
            rasterio.open(path) as file,
            WarpedVRT(file, **vars(small), resampling=Resampling.nearest, nodata=UNKNOWN) as warped,
        ):
            found: NDArray[np.bool_] = warped.read(1) == 1
            return found
    except RasterioError as e:
        raise InputError(f"Cannot lay {path} over the scene: {reason(e)}. Give labels of the same place.") from e
