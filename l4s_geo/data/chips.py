"""Folders of chips: pairs of images and masks as GeoTIFF or PNG, of any size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from l4s_geo.data.patches import UNKNOWN, Patches, check_truth, pair
from l4s_geo.errors import InputError, reason
from l4s_geo.scene import S2_BANDS, TERRAIN_BANDS, parse_band
from l4s_geo.scene.raster import Raster
from l4s_geo.scene.units import FULL, settle_units

#: Files that may be chips.
SUFFIXES = (".tif", ".tiff", ".png")

#: Folders of images and masks; the files of a pair have equal names up to the ending.
IMAGES, MASKS = "images", "masks"


def open_chips(
    folder: Path,
    bands: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    units: str = "auto",
    labels: bool = True,
) -> Patches | None:
    """Chips ``images/NAME.tif`` with ``masks/NAME.tif`` (or ``.png``).

    Args:
        folder: That holds both folders.
        bands: Of the images; all of the first file if not given.
        names: Bands in file order, where the files have no descriptions.
        units: ``dn``, ``reflectance``, ``byte``, or ``auto``, which refuses what is not clearly digital numbers.
        labels: Whether every image must have its mask.

    Returns:
        None where the folder holds no chips.

    Raises:
        InputError: Image and mask do not go together, or it is unclear which band is which.
    """
    images, masks = _by_stem(folder / IMAGES), _by_stem(folder / MASKS)
    if not images and not masks:
        return None
    items = pair(images, masks, folder, labels)
    named = None if names is None else _parsed(names)
    if bands is None:
        with ExitStack() as stack:
            bands = [n for n in _open(items[0].image, named, stack).names if n]
    wanted = tuple(bands)

    def read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return read_chip(path, wanted, named, units)

    return Patches(folder, "chips", wanted, tuple(items), read, read_chip_mask)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Chips of a folder by name without ending, sorted.

    Raises:
        InputError: Two files have the same name up to the ending.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise InputError(f"{folder} holds both {found[path.stem].name} and {path.name}. Keep one of them.")
            found[path.stem] = path
    return found


def _parsed(names: Sequence[str]) -> tuple[str, ...]:
    found = {n: parse_band(n) for n in names}
    unknown = [n for n, band in found.items() if band is None]
    if unknown:
        raise InputError(f"There is no band {', '.join(unknown)}; known are {', '.join((*S2_BANDS, *TERRAIN_BANDS))}.")
    return tuple(str(found[n]) for n in names)


def read_chip(
    path: Path, bands: Sequence[str], names: Sequence[str] | None, units: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bands (C, h, w) float32 of a chip in digital numbers, degrees and metres, and where all are valid (h, w).

    Raises:
        InputError: The file is damaged, lacks a band, or its units are not clear.
    """
    with ExitStack() as stack:
        raster = _open(path, names, stack)
        missing = [b for b in bands if b not in raster.names]
        if missing:
            there = ", ".join(n for n in raster.names if n) or "none with a name"
            raise InputError(
                f"{path} has no {', '.join(missing)}; its bands are {there}. If they are there without names, give "
                "--bands with the names in file order."
            )
        picked = raster.pick(bands)
        image, valid = picked.read(Window(0, 0, raster.dataset.width, raster.dataset.height))
        spectral = [i for i, b in enumerate(bands) if b not in TERRAIN_BANDS]
        kinds = {raster.dataset.dtypes[picked.indexes[i] - 1] for i in spectral}
        if units == "reflectance":
            image[spectral] *= FULL
        values = image[spectral][:, valid]
        if values.size:
            settle_units(units, kinds, values, str(path))
    return image, valid


def _open(path: Path, names: Sequence[str] | None, stack: ExitStack) -> Raster:
    """A chip with the names of its bands; alpha is no band.

    Raises:
        InputError: The file cannot be opened, or has not as many bands as there are names.
    """
    dataset = _dataset(path, stack)
    indexes = tuple(i for i, c in enumerate(dataset.colorinterp, 1) if c != ColorInterp.alpha)
    found: Sequence[str | None] = names or [parse_band(dataset.descriptions[i - 1] or "") for i in indexes]
    if len(found) != len(indexes):
        raise InputError(f"{path} has {len(indexes)} bands, but --bands names {len(found)}. Name every one.")
    if not any(found):
        raise InputError(f"{path} does not say which bands it has. Name them in file order: --bands B4,B3,B2.")
    flags = {f for i in indexes for f in dataset.mask_flag_enums[i - 1]}
    return Raster(dataset, str(path), indexes, tuple(found), zero_is_nodata=flags == {MaskFlags.all_valid})


def _dataset(path: Path, stack: ExitStack) -> DatasetReader:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a chip needs no place
            return stack.enter_context(rasterio.open(path))
    except RasterioError as e:
        raise InputError(f"{path} cannot be opened as an image ({reason(e)}). Is the file complete?") from e


def read_chip_mask(path: Path) -> NDArray[np.uint8]:
    """A mask (h, w): 0 background, 1 landslide, 255 unknown (the file's nodata too).

    Raises:
        InputError: The file is damaged, or no mask.
    """
    with ExitStack() as stack:
        dataset = _dataset(path, stack)
        if dataset.count != 1:
            raise InputError(f"{path} has {dataset.count} bands; a mask has one. Save it in grey.")
        try:
            values = dataset.read(1)
        except RasterioError as e:
            raise InputError(f"{path} cannot be read ({reason(e)}). Is the file complete?") from e
        nodata = dataset.nodata
    if nodata is not None and nodata not in (0, 1):
        values = np.where(values == nodata, UNKNOWN, values)
    return check_truth(np.nan_to_num(values, nan=UNKNOWN), path)
