"""Landslide area per square kilometre, on a grid of cells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.windows import Window

from l4s_geo.outputs import atomic, writing
from l4s_geo.raster import Layered, row_windows
from l4s_geo.vector import Polygons

#: Side of a cell in metres, up to half a pixel.
CELL_M = 1000.0

#: Of the band.
NAME = "landslide_m2_per_km2"


class Density:
    """Adds up landslides by cells of about ``CELL_M``, from the upper left corner of a raster on.

    Args:
        path: Of the GeoTIFF to write.
        raster: Of probabilities.
        layer: That is NaN where nothing was seen.
    """

    def __init__(self, path: Path, raster: Layered, layer: str) -> None:
        self.path, self._raster, self._layer, grid = path, raster, layer, raster.grid
        self._cols, self._rows = (max(1, round(CELL_M / size)) for size in grid.pixel_size_m())
        self._landslides = np.zeros((-(-grid.height // self._rows), -(-grid.width // self._cols)))

    def add(self, part: gpd.GeoDataFrame) -> None:
        """Count the pixels of landslides, polygons in the CRS of the raster that do not overlap."""
        burnt = Polygons(NAME, part.geometry).burn(self._raster.grid)
        for row, window in enumerate(row_windows(self._raster.grid, self._rows)):
            found = burnt(window)
            if found.any():
                self._landslides[row] += self._by_cell(found & self._seen(window))

    def values(self) -> NDArray[np.float32]:
        """(rows, columns) of cells: m2 of landslide in a km2 of the ground that was seen, NaN where none was."""
        windows = row_windows(self._raster.grid, self._rows)
        seen = np.stack([self._by_cell(self._seen(window)) for window in windows])
        share = np.divide(self._landslides, seen, out=np.full(seen.shape, np.nan), where=seen > 0)
        density: NDArray[np.float32] = (share * 1e6).astype(np.float32)
        return density

    def write(self, record: Mapping[str, Any], summary: Mapping[str, Any], until: ExitStack) -> None:
        """Write as a GeoTIFF, which holds the provenance and appears when ``until`` is closed.

        Raises:
            OutputError: It cannot be written. What was there before is untouched.
        """
        values, grid = self.values(), self._raster.grid
        profile = {
            "driver": "GTiff",
            "height": values.shape[0],
            "width": values.shape[1],
            "count": 1,
            "dtype": "float32",
            "nodata": np.nan,
            "crs": grid.crs,
            "transform": grid.transform * Affine.scale(self._cols, self._rows),
            "compress": "deflate",
        }
        # small, and GDAL says nothing where it cannot write the end of a file
        with MemoryFile() as made, writing(self.path):
            with made.open(**profile) as file:
                file.write(values, 1)
                file.descriptions = (NAME,)
                file.update_tags(PROVENANCE=json.dumps(record))
            until.enter_context(atomic(self.path)).write_bytes(made.read())

    def _seen(self, window: Window) -> NDArray[np.bool_]:
        return ~np.isnan(self._raster.read(window, self._layer))

    def _by_cell(self, pixels: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of the pixels (h, w) lie in each cell of a row of cells."""
        columns = np.count_nonzero(pixels, axis=0)
        found: NDArray[np.int64] = np.add.reduceat(columns, range(0, len(columns), self._cols))
        return found
