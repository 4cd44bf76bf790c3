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
from l4s_geo.network import NETWORK
from l4s_geo.scene.bands import S2_BANDS, TERRAIN_BANDS
from l4s_geo.scene.grid import Grid

#: GDAL's block cache, in bytes, is 5 % of the machine's memory by default. This much holds a row of tiles of
#: all bands of a full Sentinel-2 scene, so that strips in sequence decode every tile once.
#: What VRTs may hold comes from anyone, so that no code in them runs.
GDAL_OPTIONS = NETWORK | {
    "GDAL_CACHEMAX": 384 << 20,
    "GDAL_NUM_THREADS": "ALL_CPUS",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}

#: Numbers outside are no measurements but nodata that a file does not declare: stored numbers of spectral bands,
#: elevations in metres, slopes in degrees.
ELEVATIONS_M = (-1000.0, 9500.0)
SLOPES = (0.0, 90.0)
STORED = (-5000.0, 1e6)

#: Scale and offset of numbers that mean what they are.
UNSCALED = (1.0, 0.0)

#: Slopes up to here are in percent rather than nodata.
PERCENT = 1000.0

#: Metres of units of elevation that files name, other than metres themselves.
FEET = {"ft": 0.3048, "foot": 0.3048, "feet": 0.3048, "us survey foot": 1200 / 3937, "us-ft": 1200 / 3937}


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
        scaled: Whether scale and offset that the file declares count.
    """

    dataset: DatasetReader
    path: str
    indexes: tuple[int, ...]
    names: tuple[str | None, ...]
    zero_is_nodata: bool = False
    scaled: bool = True

    @property
    def scaling(self) -> list[tuple[float, float]]:
        """Scale and offset by band: what is stored times scale plus offset is meant."""
        d = self.dataset
        return [(d.scales[i - 1], d.offsets[i - 1]) if self.scaled else UNSCALED for i in self.indexes]

    @property
    def kinds(self) -> list[str]:
        """Data types by band, of what is stored or what it is scaled to."""
        pairs = zip(self.indexes, self.scaling, strict=True)
        return [self.dataset.dtypes[i - 1] if plain == UNSCALED else "float32" for i, plain in pairs]

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
        with np.errstate(over="ignore"):
            image = raw.astype(np.float32, copy=False)
        if raw.dtype.kind == "f":
            valid &= np.isfinite(image).all(axis=0)
        for band, name, index, scaling in zip(image, self.names, self.indexes, self.scaling, strict=True):
            if name in S2_BANDS:
                valid &= (band >= STORED[0]) & (band <= STORED[1])
            if scaling != UNSCALED:
                band[:] = band * np.float32(scaling[0]) + np.float32(scaling[1])
            if name == "dem":
                band *= np.float32(FEET.get((self.dataset.units[index - 1] or "").strip().lower(), 1.0))
                valid &= (band > ELEVATIONS_M[0]) & (band < ELEVATIONS_M[1])
            if name == "slope":
                self._refuse_percent(band[valid])
                valid &= (band >= SLOPES[0]) & (band <= SLOPES[1])
        return image, valid

    def _refuse_percent(self, slopes: NDArray[np.float32]) -> None:
        """Raises InputError where slopes cannot be degrees."""
        steep = slopes[(slopes > SLOPES[1]) & (slopes < PERCENT)]
        if steep.size:
            raise InputError(
                f"{self.path} has slopes up to {steep.max():g}, but degrees are expected, from 0 to 90. If they are in "
                "percent convert them, or give --dem alone; if that is its nodata value declare it with gdal_edit.py."
            )

    def _masks(self, window: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Mask and alpha bands; nodata values are compared on the pixels already read."""
        valid = np.ones(shape, bool)
        for number, index in enumerate(self.indexes):
            flags = self.dataset.mask_flag_enums[index - 1]
            if not flags or (MaskFlags.per_dataset in flags and number == 0):  # none are those of a band's own mask
                valid &= self.dataset.read_masks(index, window=window) != 0
        for index, colour in enumerate(self.dataset.colorinterp, 1):
            if colour == ColorInterp.alpha:
                valid &= self.dataset.read(index, window=window) != 0
        return valid


def is_scaled(raster: Raster) -> bool:
    """Whether a spectral band has a scale or offset."""
    pairs = zip(raster.names, raster.scaling, strict=True)
    return any(name in S2_BANDS and scaling != UNSCALED for name, scaling in pairs)


def _differs(band: NDArray[np.generic], nodata: float | None) -> NDArray[np.bool_]:
    """Where a band is not its nodata value; NaN is left to the check of finite values."""
    kind = band.dtype.type
    if nodata is None or np.isnan(nodata) or (band.dtype.kind != "f" and not float(nodata).is_integer()):
        return np.ones(band.shape, bool)
    with np.errstate(over="ignore"):
        differs: NDArray[np.bool_] = band != (kind(nodata) if band.dtype.kind == "f" else int(nodata))
    return differs
