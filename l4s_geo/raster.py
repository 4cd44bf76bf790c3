"""Working rasters: float32 layers on disk that are written and read by windows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from l4s_geo.errors import OutputError, reason
from l4s_geo.scene import Grid

#: Rows of a strip when a raster is read from top to bottom.
STRIP = 128


class Layered(Protocol):
    """A raster of named layers that is read by windows."""

    @property
    def grid(self) -> Grid:
        """Its grid."""

    def read(self, window: Window, layer: str) -> NDArray[np.float32]:
        """One layer (h, w), NaN where not seen."""


class WorkRaster:
    """A temporary raster of raw numbers; disk is cheaper than memory, and it is gone after the run.

    For one thread at a time. Its layout never changes: what was written stays whole even if the process is killed.

    Args:
        path: File to make, or to go on with.
        grid: Its grid.
        layers: Names of its bands.
    """

    def __init__(self, path: Path, grid: Grid, layers: Sequence[str]) -> None:
        self.path = path
        self.grid = grid
        self.layers = list(layers)
        with self._no_space():
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)

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
        pairs = zip(self.layers, values, strict=True) if layer is None else [(layer, values)]
        with self._no_space():
            for name, part in pairs:
                for at, rows in self._runs(window, np.ascontiguousarray(part, "<f4"), name):
                    self._file.seek(at)
                    while rows:
                        rows = rows[self._file.write(rows) :]

    def read(self, window: Window, layer: str) -> NDArray[np.float32]:
        """One layer (h, w).

        Raises:
            OutputError: It was never written, or cut off since.
        """
        found = np.empty((int(window.height), int(window.width)), "<f4")
        for at, rows in self._runs(window, found, layer):
            self._file.seek(at)
            while rows:
                if not (done := self._file.readinto(rows)):
                    raise OutputError(
                        f"{self.path}, the working data of this run, ends too early. Begin anew with --overwrite."
                    )
                rows = rows[done:]
        return found

    def _runs(self, window: Window, pixels: NDArray[np.float32], layer: str) -> Iterator[tuple[int, memoryview]]:
        """Pieces of a window that lie together in the file: where, and their part of ``pixels``."""
        band, width = self.layers.index(layer) * self.grid.height, self.grid.width
        whole = int(window.width) == width
        for rows in [pixels] if whole else np.split(pixels, len(pixels)):
            row = int(window.row_off)
            yield 4 * ((band + row) * width + int(window.col_off)), rows.data.cast("B")
            window = Window(window.col_off, row + len(rows), window.width, window.height)

    def rename(self, layer: str, name: str) -> None:
        """Call a layer by the name of another, which takes its name."""
        first, second = self.layers.index(layer), self.layers.index(name)
        self.layers[first], self.layers[second] = name, layer

    def sync(self) -> None:
        """See to it that what was written outlives the machine.

        Raises:
            OutputError: The disk is full.
        """
        with self._no_space():
            os.fsync(self._file.fileno())

    def finish(self, layers: Sequence[str]) -> Path:
        """A file through which GDAL reads some of the layers."""
        path = self.path.with_suffix(".vrt")
        with self._no_space():
            path.write_text(self._vrt(layers), encoding="utf-8")
        return path

    def _vrt(self, layers: Sequence[str]) -> str:
        grid = self.grid
        root = Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
        SubElement(root, "SRS").text = grid.crs.to_wkt()
        SubElement(root, "GeoTransform").text = ", ".join(map(repr, grid.transform.to_gdal()))
        for number, layer in enumerate(layers, 1):
            band = SubElement(root, "VRTRasterBand", dataType="Float32", band=str(number), subClass="VRTRawRasterBand")
            offset = 4 * self.layers.index(layer) * grid.width * grid.height
            parts = {"Description": layer, "NoDataValue": "nan", "ImageOffset": offset, "PixelOffset": 4}
            for name, value in (parts | {"LineOffset": 4 * grid.width, "ByteOrder": "LSB"}).items():
                SubElement(band, name).text = str(value)
            SubElement(band, "SourceFilename", relativeToVRT="1").text = self.path.name
        return tostring(root, encoding="unicode")

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
