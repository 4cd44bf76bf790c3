"""Working rasters: float32 layers on disk that are written and read by windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from l4s_geo.errors import OutputError, reason
from l4s_geo.scene import Grid

#: Rows of a strip when a raster is read from top to bottom.
STRIP = 256


class Layered(Protocol):
    """A raster of named layers that is read by windows."""

    @property
    def grid(self) -> Grid:
        """Its grid."""

    def read(self, window: Window, layer: str) -> NDArray[np.float32]:
        """One layer (h, w), NaN where not seen."""


class WorkRaster:
    """An uncompressed temporary GeoTIFF; disk is cheaper than memory, and it is gone after the run.

    Args:
        path: File to make.
        grid: Its grid.
        layers: Names of its bands.
    """

    def __init__(self, path: Path, grid: Grid, layers: Sequence[str]) -> None:
        self.path = path
        self.grid = grid
        self.layers = tuple(layers)
        with self._no_space():
            self._file = rasterio.open(
                path,
                "w+",
                driver="GTiff",
                width=grid.width,
                height=grid.height,
                count=len(layers),
                dtype="float32",
                crs=grid.crs,
                transform=grid.transform,
                nodata=float("nan"),
                interleave="band",
                bigtiff="if_safer",
            )
            self._file.descriptions = self.layers

    @contextmanager
    def _no_space(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RasterioError) as e:
            raise OutputError(
                f"Cannot write working data into {self.path.parent.parent}: {reason(e)}. It needs "
                f"{self.grid.width * self.grid.height * 4 * len(self.layers) / 1e9:.2g} GB beside the output."
            ) from e

    def write(self, window: Window, values: NDArray[np.float32], layer: str | None = None) -> None:
        """Write all layers (C, h, w), or one (h, w).

        Raises:
            OutputError: The disk is full.
        """
        with self._no_space():
            if layer is None:
                self._file.write(values, window=window)
            else:
                self._file.write(values, self.layers.index(layer) + 1, window=window)

    def finish(self, tags: Mapping[str, str]) -> Path:
        """Tag and close the file, for other programs to read; nothing can be read or written any more."""
        with self._no_space():
            self._file.update_tags(**tags)
            self._file.close()
        return self.path

    def read(self, window: Window, layer: str) -> NDArray[np.float32]:
        """One layer (h, w)."""
        found: NDArray[np.float32] = self._file.read(self.layers.index(layer) + 1, window=window)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def row_windows(grid: Grid, rows: int = STRIP) -> Iterator[Window]:
    """Full-width windows from top to bottom."""
    for row in range(0, grid.height, rows):
        yield Window(0, row, grid.width, min(rows, grid.height - row))


def sample_windows(grid: Grid, size: int = 256, most: int = 256) -> Iterator[Window]:
    """At most ``most`` square windows spread evenly over a grid; all of it when it is small."""
    corners = [(r, c) for r in range(0, grid.height, size) for c in range(0, grid.width, size)]
    # A golden-ratio walk instead of every n-th: a fixed step could fall into one column of windows.
    count = min(most, len(corners))
    order = np.argsort((np.arange(len(corners)) * 0.6180339887498949) % 1.0)[:count]
    for row, column in (corners[i] for i in sorted(order)):
        yield Window(column, row, min(size, grid.width - column), min(size, grid.height - row))
