"""Whether files that libraries have written are all there: where a disk fills up, some of them say nothing."""

from __future__ import annotations

import errno
import os
import struct
from itertools import product
from pathlib import Path

import rasterio


def check_tiff(path: Path) -> None:
    """Check that every tile lies within the file; libtiff says nothing where its last pieces cannot be written.

    Raises:
        OSError: One does not.
        RasterioError: Not even the header is there.
    """
    size = path.stat().st_size
    with rasterio.open(path) as raster:
        rows, columns = (-(-n // side) for n, side in zip(raster.shape, raster.block_shapes[0], strict=True))
        for band, row, column in product(raster.indexes, range(rows), range(columns)):
            at, length = (
                raster.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")
            )
            if at is not None and int(at) + int(length) > size:
                raise _cut_off()


def check_shapefile(path: Path, rows: int) -> None:
    """Check that the parts of a shapefile are as long as their headers say, and hold all rows.

    Args:
        path: Of the part that ends in ``.shp``.
        rows: That were written.

    Raises:
        OSError: One is not, does not, or is missing.
    """
    for part in (path, path.with_suffix(".shx")):
        head = _head(part)
        if part.stat().st_size < 2 * int(struct.unpack_from(">i", head, 24)[0]):
            raise _cut_off()
    table = path.with_suffix(".dbf")
    there, first, width = struct.unpack_from("<IHH", _head(table), 4)
    if there < rows or not width or table.stat().st_size < first + rows * width:
        raise _cut_off()


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(32)
    if len(head) < 32:
        raise _cut_off()
    return head


def _cut_off() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
