"""Pixels of one open raster, and where they are valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from l4s_geo.errors import InputError, reason
from l4s_geo.scene.bands import TERRAIN_BANDS
from l4s_geo.scene.grid import Grid

#: GDAL's block cache, in bytes, is 5 % of the machine's memory by default. This much holds a row of tiles of
#: all bands of a full Sentinel-2 scene, so that strips in sequence decode every tile once.
GDAL_OPTIONS = {"GDAL_CACHEMAX": 384 << 20, "GDAL_NUM_THREADS": "ALL_CPUS"}

#: Elevations outside are no terrain but nodata that a file does not declare.
ELEVATIONS_M = (-1000.0, 9500.0)


@dataclass(frozen=True)
class Raster:
    """Named bands of one open raster.

    Attributes:
        dataset: Where they are read.
        path: For messages.
        indexes: Of the bands, from 1.
        names: Of the bands; None where unknown.
        zero_is_nodata: The file declares no nodata, so 0 in all of these bands stands for it, as Sentinel-2
            products have it outside the swath.
    """

    dataset: DatasetReader
    path: str
    indexes: tuple[int, ...]
    names: tuple[str | None, ...]
    zero_is_nodata: bool = False

    @property
    def grid(self) -> Grid:
        """The raster's own."""
        d = self.dataset
        return Grid(d.crs, d.transform, d.width, d.height)

    def pick(self, names: Sequence[str]) -> Raster:
        """The same raster with these of its bands only."""
        at = [self.names.index(n) for n in names]
        zero = self.zero_is_nodata and not {*names} <= {*TERRAIN_BANDS}
        return replace(self, indexes=tuple(self.indexes[i] for i in at), names=tuple(names), zero_is_nodata=zero)

    def renamed(self, name: str) -> Raster:
        """The same single band by another name."""
        return replace(self, names=(name,), zero_is_nodata=False)

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Bands (C, h, w) as float32 and where all of them are valid (h, w).

        Raises:
            InputError: The file is damaged.
        """
        try:
            with rasterio.Env(**GDAL_OPTIONS):
                raw = self.dataset.read(list(self.indexes), window=window)
                valid = self._masks(window, raw.shape[1:])
        except RasterioError as e:
            raise InputError(
                f"{self.path} cannot be read ({reason(e)}). Is the file complete? Copy or load it again."
            ) from e
        for band, index in zip(raw, self.indexes, strict=True):
            valid &= _differs(band, self.dataset.nodatavals[index - 1])
        if self.zero_is_nodata:
            valid &= raw.any(axis=0)
        image = raw.astype(np.float32, copy=False)
        if raw.dtype.kind == "f":
            valid &= np.isfinite(image).all(axis=0)
        for band, name in zip(image, self.names, strict=True):
            if name == "dem":
                valid &= (band > ELEVATIONS_M[0]) & (band < ELEVATIONS_M[1])
        return image, valid

    def _masks(self, window: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Mask and alpha bands; nodata values are compared on the pixels already read."""
        valid = np.ones(shape, bool)
        flags = self.dataset.mask_flag_enums[self.indexes[0] - 1]
        if MaskFlags.per_dataset in flags:
            valid &= self.dataset.read_masks(self.indexes[0], window=window) != 0
        for index, colour in enumerate(self.dataset.colorinterp, 1):
            if colour == ColorInterp.alpha:
                valid &= self.dataset.read(index, window=window) != 0
        return valid


def _differs(band: NDArray[np.generic], nodata: float | None) -> NDArray[np.bool_]:
    """Where a band is not its nodata value; NaN is left to the check of finite values."""
    kind = band.dtype.type
    if nodata is None or np.isnan(nodata) or (band.dtype.kind != "f" and not float(nodata).is_integer()):
        return np.ones(band.shape, bool)
    with np.errstate(over="ignore"):
        differs: NDArray[np.bool_] = band != (kind(nodata) if band.dtype.kind == "f" else int(nodata))
    return differs
