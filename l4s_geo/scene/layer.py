"""Rasters seen through the scene's grid: read as they are where pixels agree, else warped tile by tile."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from l4s_geo.errors import InputError
from l4s_geo.scene.bands import S2_BANDS, TERRAIN_BANDS
from l4s_geo.scene.grid import Grid
from l4s_geo.scene.raster import Raster
from l4s_geo.scene.terrain import slope_degrees
from l4s_geo.scene.warp import Pixels, clip, resample, source_window

#: Makes bands (C', h, w) from a raster's (C, h, w) and validity, on its own grid.
Derive = Callable[[NDArray[np.float32], NDArray[np.bool_], Grid], NDArray[np.float32]]

#: Warping works on fixed tiles of this many rows and columns, so a pixel does not depend on the window it is
#: read in. In so narrow a tile GDAL's linear approximation of the projection errs by 0.02 pixels at most.
TILE_ROWS, TILE_COLS = 128, 256

#: Pixels around that a derived band needs.
HALO = 1

#: Kernels: cubic keeps the texture that models look at, bilinear never overshoots an elevation.
SPECTRAL, TERRAIN = Resampling.cubic, Resampling.bilinear


class Layer:
    """Bands of rasters with the same pixels, on the scene's grid.

    Args:
        rasters: Where the pixels come from.
        names: Of the bands that are read, after ``derive``.
        grid: The scene's.
        resampling: Kernel of warping; widened where pixels get larger.
        derive: Makes the bands from the rasters' own.

    Attributes:
        names: Likewise.
        native: Grid of the rasters.
        derived: Whether the bands are made from the rasters' own.
    """

    def __init__(
        self,
        rasters: Sequence[Raster],
        names: tuple[str, ...],
        grid: Grid,
        resampling: Resampling,
        derive: Derive | None = None,
    ) -> None:
        self.names, self.native, self.derived = names, rasters[0].grid, derive is not None
        self._rasters, self._grid, self._resampling, self._derive = rasters, grid, resampling, derive
        self._direct = self.native.same_pixels(grid)
        self._tiles: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        # the last two rows of tiles serve the next strip, whatever its overlap
        self._keep = 2 * math.ceil(grid.width / TILE_COLS)

    def read(self, window: Window) -> Pixels:
        """Bands (C, h, w) and validity (h, w) of a window inside the grid; whatever where invalid."""
        if self._direct:
            return self._source(window)
        h, w = int(window.height), int(window.width)
        image = np.empty((len(self.names), h, w), np.float32)
        valid = np.empty((h, w), bool)
        for key, tile in self._tiles_of(window):
            rows, tile_rows = _overlap(int(window.row_off), h, key[0] * TILE_ROWS, TILE_ROWS)
            cols, tile_cols = _overlap(int(window.col_off), w, key[1] * TILE_COLS, TILE_COLS)
            image[:, rows, cols] = tile[0][:, tile_rows, tile_cols]
            valid[rows, cols] = tile[1][tile_rows, tile_cols]
        return image, valid

    def _tiles_of(self, window: Window) -> Iterator[tuple[tuple[int, int], Pixels]]:
        """Tiles under a window, warped or remembered."""
        rows = range(int(window.row_off) // TILE_ROWS, -(-int(window.row_off + window.height) // TILE_ROWS))
        cols = range(int(window.col_off) // TILE_COLS, -(-int(window.col_off + window.width) // TILE_COLS))
        for key in product(rows, cols):
            tile = self._tiles.pop(key, None) or self._warp(*key)
            self._tiles[key] = tile
            while len(self._tiles) > self._keep:
                self._tiles.popitem(last=False)
            yield key, tile

    def _warp(self, i: int, j: int) -> Pixels:
        """One tile, cut at the grid's border."""
        row, col = i * TILE_ROWS, j * TILE_COLS
        width, height = min(TILE_COLS, self._grid.width - col), min(TILE_ROWS, self._grid.height - row)
        target = self._grid.part(Window(col, row, width, height))
        window = source_window(self.native, target)
        if window is None:
            return np.zeros((len(self.names), *target.shape), np.float32), np.zeros(target.shape, bool)
        image, valid = self._source(window)
        return resample(image, valid, self.native.part(window), target, self._resampling)

    def _source(self, window: Window) -> Pixels:
        """Bands on the rasters' own grid."""
        if self._derive is None:
            return self._stacked(window)
        wide = clip(window, self.native, HALO)
        image, valid = self._stacked(wide)
        image = self._derive(image, valid, self.native.part(wide))
        rows, _ = _overlap(int(wide.row_off), int(wide.height), int(window.row_off), int(window.height))
        cols, _ = _overlap(int(wide.col_off), int(wide.width), int(window.col_off), int(window.width))
        return image[:, rows, cols], valid[rows, cols]

    def _stacked(self, window: Window) -> Pixels:
        """Bands of all rasters, valid where all are."""
        images, valid = zip(*(raster.read(window) for raster in self._rasters), strict=True)
        return np.concatenate(images), np.logical_and.reduce(valid)


def band_layers(rasters: Sequence[Raster], grid: Grid, terrain: set[str]) -> Iterator[Layer]:
    """Layers of spectral bands, and of terrain bands in the same files that nothing better is given for."""
    groups: list[list[Raster]] = []
    for raster in rasters:
        _check_overlap(raster, grid)
        alike = [g for g in groups if g[0].grid.same_pixels(raster.grid)]
        if alike:
            alike[0].append(raster)
        else:
            groups.append([raster])
    for group in groups:
        for kernel, kind in ((SPECTRAL, {*S2_BANDS}), (TERRAIN, {*TERRAIN_BANDS} - terrain)):
            parts = [r.pick(names) for r in group if (names := [n for n in r.names if n in kind])]
            if parts:
                yield Layer(parts, tuple(str(n) for r in parts for n in r.names), grid, kernel)


def terrain_layers(terrain: dict[str, Raster], inside: Collection[str], grid: Grid) -> Iterator[Layer]:
    """Elevation and slope; slope from elevation unless ``terrain`` or bands ``inside`` the scene have it."""
    for name, raster in terrain.items():
        _check_overlap(raster, grid)
        if name == "dem" and "slope" not in {*terrain, *inside}:
            yield Layer([raster], ("slope", "dem"), grid, TERRAIN, derive=_with_slope)
        else:
            yield Layer([raster], (name,), grid, TERRAIN)


def _with_slope(image: NDArray[np.float32], valid: NDArray[np.bool_], grid: Grid) -> NDArray[np.float32]:
    """Slope and elevation (2, h, w) from elevation (1, h, w)."""
    return np.stack([slope_degrees(image[0], valid, grid), image[0]])


def _check_overlap(raster: Raster, grid: Grid) -> None:
    """Raises InputError where a raster lies elsewhere."""
    if source_window(raster.grid, grid) is None:
        raise InputError(
            f"{raster.path} does not overlap the scene: it covers {_extent(raster.grid)}, the scene "
            f"{_extent(grid)}. Give a raster of the same area."
        )


def _extent(grid: Grid) -> str:
    left, bottom, right, top = grid.bounds
    return f"{left:g}..{right:g}, {bottom:g}..{top:g} in {grid.crs}"


def _overlap(start: int, size: int, other: int, other_size: int) -> tuple[slice, slice]:
    """Where two ranges meet, as a slice of each."""
    first, last = max(start, other), min(start + size, other + other_size)
    return slice(first - start, last - start), slice(first - other, last - other)
