"""The Landslide4Sense (L4S) data set: its folders, and its patches in HDF5.

Ghorbanzadeh et al. 2022, "The Outcome of the 2022 Landslide4Sense Competition" (doi:10.1109/JSTARS.2022.3220845).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from l4s_geo.data.patches import Item, Patches, check_truth, pair
from l4s_geo.errors import InputError
from l4s_geo.scene import L4S_BANDS, L4S_MEAN
from l4s_geo.tiling import PATCH

#: Patches of every split of the full data set.
COUNTS = {"train": 3799, "validation": 245, "test": 800}

#: Folders of images and masks by split: of the original download, and of the copy on Hugging Face.
LAYOUTS = {
    "traindata": {
        "train": ("TrainData/img", "TrainData/mask"),
        "validation": ("ValidData/img", "ValidData/mask"),
        "test": ("TestData/img", "TestData/mask"),
    },
    "images": {split: (f"images/{split}", f"annotations/{split}") for split in COUNTS},
}

#: Folders of images and masks where a single split is given.
SINGLE = (("img", "mask"), (".", "."))

_IMAGE, _MASK = "img", "mask"


def open_l4s(
    folder: Path, bands: Sequence[str] | None = None, *, split: str = "train", labels: bool = True
) -> Patches | None:
    """Patches of a data set in one of its layouts, of one split, or of a flat folder of ``image_N.h5``.

    Args:
        folder: Of the data set.
        bands: Of the images; all 14 if not given.
        split: ``train``, ``validation`` or ``test``, where the folder has several.
        labels: Whether every image must have its mask.

    Returns:
        None where the folder holds no such patches.

    Raises:
        InputError: The split is not there, image and mask do not go together, or a band is none of L4S.
    """
    items = find_items(folder, split, labels)
    if items is None:
        return None
    wanted = L4S_BANDS if bands is None else tuple(bands)
    missing = [b for b in wanted if b not in L4S_BANDS]
    if missing:
        raise InputError(
            f"{folder} holds Landslide4Sense patches with the bands {', '.join(L4S_BANDS)}, but not "
            f"{', '.join(missing)}. Choose a model without, or other bands."
        )
    at = [L4S_BANDS.index(b) for b in wanted]

    def read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        image, valid = read_image(path)
        return image[at], valid

    return Patches(folder, "l4s", wanted, tuple(items), read, read_mask)


def find_items(folder: Path, split: str, labels: bool) -> list[Item] | None:
    """Files of a split in the order of their numbers; None where the folder has no L4S layout.

    Raises:
        InputError: The split is not there, or image and mask do not go together.
    """
    for layout in LAYOUTS.values():
        there = [s for s, (images, _) in layout.items() if _numbered(folder / images, "image")]
        if there and split not in there:
            raise InputError(
                f"{folder} has no {split} images in {layout[split][0]}; its splits are {', '.join(there)}."
            )
        if there:
            return _pairs(folder, *layout[split], labels)
    for images, masks in SINGLE:
        if _numbered(folder / images, "image") or _numbered(folder / masks, "mask"):
            return _pairs(folder, images, masks, labels)
    return None


def _pairs(folder: Path, images: str, masks: str, labels: bool) -> list[Item]:
    return pair(_numbered(folder / images, "image"), _numbered(folder / masks, "mask"), folder, labels)


def _numbered(folder: Path, stem: str) -> dict[str, Path]:
    """``STEM_N.h5`` files of a folder by N, in the order of N."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = {m[1]: p for p in paths if (m := re.fullmatch(rf"{stem}_(\d+)\.h5", p.name))}
    return {key: found[key] for key in sorted(found, key=int)}


def number_of(item: Item) -> int:
    """The N of ``image_N``."""
    return int(item.name.rpartition("_")[2])


def read_image(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """All bands of a patch, as they were before the data set divided them by its means.

    Returns:
        Image (14, 128, 128) float32: whole digital numbers, degrees and metres, 0 where not valid; and (128, 128)
        bool where it is valid: finite, and not 0 in all spectral bands.

    Raises:
        InputError: The file is damaged, or no patch of L4S.
    """
    scaled = _read(path, _IMAGE)
    if scaled.ndim == 3 and scaled.shape[2] > len(L4S_BANDS):
        raise InputError(
            f"{path} has {scaled.shape[2]} bands; a Landslide4Sense patch has {len(L4S_BANDS)} ("
            f"{', '.join(L4S_BANDS)}). Leave out the others."
        )
    if scaled.shape != (PATCH, PATCH, len(L4S_BANDS)):
        raise InputError(
            f"{path}: '{_IMAGE}' has the shape {scaled.shape}, not {(PATCH, PATCH, len(L4S_BANDS))}. It is no patch of "
            "Landslide4Sense; images of other sizes can be given as chips (GeoTIFF)."
        )
    raw = np.rint(scaled * np.array(L4S_MEAN)).astype(np.float32).transpose(2, 0, 1)
    valid = np.isfinite(raw).all(axis=0) & raw[:12].any(axis=0)
    return np.where(valid, raw, np.float32(0)), valid


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A mask (128, 128): 0 background, 1 landslide, 255 unknown.

    Raises:
        InputError: The file is damaged, or no mask of L4S.
    """
    values = _read(path, _MASK)
    if values.shape != (PATCH, PATCH):
        raise InputError(f"{path}: '{_MASK}' has the shape {values.shape}, not {(PATCH, PATCH)}.")
    return check_truth(values, path)


def _read(path: Path, key: str) -> NDArray[Any]:
    """A numeric array of an HDF5 file.

    Raises:
        InputError: The file cannot be read, or has no such array.
    """
    try:
        with h5py.File(path) as file:
            names = list(file)
            found = np.asarray(file[key]) if isinstance(file.get(key), h5py.Dataset) else None
    except (OSError, KeyError, RuntimeError) as e:
        raise InputError(f"{path} cannot be read ({e}). Is it complete, and HDF5? Copy or download it again.") from e
    if found is None:
        raise InputError(f"{path} has no array '{key}'; it holds {', '.join(names) or 'nothing'}. Give files of L4S.")
    if found.dtype.kind not in "biuf":
        raise InputError(f"{path}: '{key}' holds {found.dtype}, not numbers.")
    return found


def encode(key: str, values: NDArray[Any]) -> bytes:
    """An HDF5 file with one array, as the data set's files are."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset(key, data=values)
    return buffer.getvalue()


def encode_image(raw: NDArray[np.float32]) -> bytes:
    """``image_N.h5`` of bands (14, 128, 128) in digital numbers, degrees and metres."""
    return encode(_IMAGE, np.rint(raw).astype(np.float64).transpose(1, 2, 0) / np.array(L4S_MEAN))


def encode_mask(mask: NDArray[np.generic]) -> bytes:
    """``mask_N.h5`` of a mask (128, 128)."""
    return encode(_MASK, mask.astype(np.uint8))
