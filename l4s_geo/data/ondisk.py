"""Labelled areas whose pixels stay on disk, for scenes of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from l4s_geo.data.crops import Area
from l4s_geo.data.patches import UNKNOWN
from l4s_geo.errors import InputError, reason
from l4s_geo.normalize import Normalizer
from l4s_geo.raster import row_windows
from l4s_geo.scene import Grid

#: Files of such an area.
IMAGE, LABELS = "image.tif", "labels.tif"

#: GDAL's block cache, in bytes, shared by all open files: crops overlap, and inflating a tile takes several times
#: as long as copying it.
CACHE = 256 << 20

T = TypeVar("T", bound=np.generic, covariant=True)


class OnDisk(Generic[T]):
    """An array (..., h, w) in a raster file: slices of rows and columns read their window and nothing else.

    For one thread at a time: GDAL's datasets are not safe to share.

    Args:
        path: For messages.
        shape: (h, w), or (C, h, w).
        read: A window as an array of as many axes.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], read: Callable[[Window], NDArray[T]]) -> None:
        self.path = path
        self.shape = shape
        self._read = read

    def __getitem__(self, at: slice | tuple[slice, ...], /) -> NDArray[T]:
        """Like that of an array, for slices without steps that hold a pixel.

        Raises:
            InputError: The file is damaged.
        """
        slices = at if isinstance(at, tuple) else (at,)
        slices += (slice(None),) * (len(self.shape) - len(slices))
        ends = [s.indices(n)[:2] for s, n in zip(slices, self.shape, strict=True)]
        (top, bottom), (left, right) = ends[-2:]
        with _readable(self.path):
            found = self._read(Window(left, top, right - left, bottom - top))
        return found[slices[:-2]]


def open_area(
    folder: Path,
    bands: Sequence[str],
    *,
    normalizer: Normalizer,
    name: str,
    domain: int = 0,
    rows: int | None = None,
) -> Area:
    """A folder with ``image.tif`` and ``labels.tif`` as an area that reads what is asked for and holds no pixels.

    Both files stay open as long as the area is there. They are looked through once, by strips.

    Args:
        folder: With ``image.tif`` (uint16 digital numbers, bands by their descriptions, valid where its internal mask
            says so) and ``labels.tif`` on the same grid (uint8: 0 background, 1 landslide, 255 unknown or not valid).
        bands: Which, in this order.
        normalizer: Statistics of the region, of these bands at least.
        name: For the log.
        domain: As ``Area`` has it.
        rows: Labels of the rows from this one on are read as unknown; None knows all.

    Raises:
        InputError: A file is missing, damaged, or not of this kind, or a band has no statistics.
    """
    image, labels = _open(folder / IMAGE, "uint16"), _open(folder / LABELS, "uint8")
    missing = [b for b in bands if b not in image.descriptions]
    if missing:
        there = ", ".join(d or "no name" for d in image.descriptions)
        raise InputError(
            f"{image.name} has no {', '.join(missing)}; its bands are {there}. Give a scene that has them."
        )
    if MaskFlags.per_dataset not in image.mask_flag_enums[0]:
        raise InputError(f"{image.name} has no mask of its valid pixels. Write it again with an internal mask.")
    if labels.count != 1 or _grid(labels) != _grid(image):
        raise InputError(f"{labels.name} is not one band on the grid of {image.name}. Write both for the same pixels.")
    indexes = [image.descriptions.index(b) + 1 for b in bands]
    shape = _grid(image).shape

    def known(window: Window) -> NDArray[np.uint8]:
        truth: NDArray[np.uint8] = labels.read(1, window=window)
        if rows is not None:
            truth[max(0, rows - window.row_off) :] = UNKNOWN
        return truth

    area = Area(
        name,
        OnDisk(folder / IMAGE, (len(bands), *shape), lambda window: image.read(indexes, window=window)),
        OnDisk(folder / LABELS, shape, known),
        OnDisk(folder / IMAGE, shape, lambda window: image.read_masks(1, window=window) != 0),
        normalizer.select(bands),
        domain,
    )
    _check(area, _grid(image), folder)
    return area


def _open(path: Path, dtype: str) -> DatasetReader:
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r}. A labelled scene has {IMAGE} and {LABELS}.")
    with _readable(path):
        file = rasterio.open(path)
    if {*file.dtypes} != {dtype}:
        raise InputError(f"{path} holds {' and '.join(sorted({*file.dtypes}))}, not {dtype}. Write it again.")
    return file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE):
            yield
    except RasterioError as e:
        raise InputError(f"{path} cannot be read ({reason(e)}). Is the file complete? Write it again.") from e


def _grid(file: DatasetReader) -> Grid:
    return Grid(file.crs, file.transform, file.width, file.height)


def _check(area: Area, grid: Grid, folder: Path) -> None:
    """Raises InputError where a pixel has a class but is not valid."""
    for window in row_windows(grid):
        rows = slice(window.row_off, window.row_off + window.height)
        if (area.truth[rows] != UNKNOWN)[~area.valid[rows]].any():
            raise InputError(
                f"{folder / LABELS} has classes where {folder / IMAGE} is not valid, from row {window.row_off} on. "
                f"Set these pixels to {UNKNOWN}."
            )
