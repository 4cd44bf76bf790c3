"""Labelled patches in a folder: one small type, whatever they are kept in, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from l4s_geo.errors import InputError

#: Truth value of a pixel whose class is not known.
UNKNOWN = 255

#: Labels from ``SOFT`` to ``SOFT + STEPS`` are no classes but the probability of landslide that a network gave.
SOFT, STEPS = 2, 250

#: Names that a message lists at most.
LISTED = 5

#: Reads bands (C, h, w) float32 in digital numbers, degrees and metres, and where they are valid (h, w).
ReadImage = Callable[[Path], tuple[NDArray[np.float32], NDArray[np.bool_]]]

#: Reads a mask (h, w) uint8.
ReadTruth = Callable[[Path], NDArray[np.uint8]]


@dataclass(frozen=True)
class Patch:
    """One image with its truth.

    Attributes:
        name: Of the image file, without its ending.
        image: (C, h, w) float32: Sentinel-2 digital numbers, slope in degrees, elevation in metres; 0 where not valid.
        truth: (h, w) uint8: 0 background, 1 landslide, 255 unknown or not valid.
        valid: (h, w) bool.
        bands: Names of the C bands.
    """

    name: str
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    bands: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """Files of a patch; ``truth`` is None where there is no mask."""

    name: str
    image: Path
    truth: Path | None


@dataclass(frozen=True)
class Patches(Sequence[Patch]):
    """Patches of a folder. Only the one that is asked for is in memory.

    Attributes:
        source: The folder.
        kind: ``l4s`` or ``chips``.
        bands: Of every image, in this order.
        items: Files, in order.
        read_image: Reads one image.
        read_truth: Reads one mask.
    """

    source: Path
    kind: str
    bands: tuple[str, ...]
    items: tuple[Item, ...]
    read_image: ReadImage
    read_truth: ReadTruth

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, i: int) -> Patch: ...

    @overload
    def __getitem__(self, i: slice) -> Patches: ...

    def __getitem__(self, i: int | slice) -> Patch | Patches:
        """Read one patch, or choose some without reading any.

        Raises:
            InputError: A file cannot be used; the message names it.
        """
        if isinstance(i, slice):
            return replace(self, items=self.items[i])
        item = self.items[i]
        image, valid = self.read_image(item.image)
        truth = np.full(valid.shape, UNKNOWN, np.uint8) if item.truth is None else self.read_truth(item.truth)
        if truth.shape != valid.shape:
            raise InputError(
                f"{item.truth} has {_size(truth)} pixels, its image {item.image.name} has {_size(valid)}. "
                "A mask must lie on the pixels of its image."
            )
        image[:, ~valid] = 0
        return Patch(item.name, image, np.where(valid, truth, np.uint8(UNKNOWN)), valid, self.bands)

    def keep(self, wanted: Callable[[Item], bool]) -> Patches:
        """Only some of the patches; none is read."""
        return replace(self, items=tuple(i for i in self.items if wanted(i)))


def _size(array: NDArray[np.generic]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def check_truth(values: NDArray[np.generic], path: Path) -> NDArray[np.uint8]:
    """A mask as uint8.

    Raises:
        InputError: It holds other values than 0, 1 and 255.
    """
    found = np.unique(values)
    strange = [v for v in found.tolist() if v not in (0, 1, UNKNOWN)]
    if strange:
        raise InputError(
            f"{path} holds {', '.join(f'{v:g}' for v in strange[:LISTED])}; a mask has 0 (background), 1 (landslide) "
            "and 255 (unknown) only. Change its values."
        )
    return values.astype(np.uint8)


def check_labels(patches: Patches) -> None:
    """Refuse masks that nothing can be learnt from; reads masks until one tells something.

    Raises:
        InputError: No pixel has a known class, or landslides seem to be written as 255.
    """
    known = unknown = False
    for item in patches.items:
        if item.truth is None:
            continue
        truth = patches.read_truth(item.truth)
        if (truth == 1).any():
            return
        known |= bool((truth == 0).any())
        unknown |= bool((truth == UNKNOWN).any())
    if not known:
        raise InputError(
            f"The {len(patches)} masks of {patches.source} are all 255 (unknown): nothing can be learnt from them. "
            "Write 0 for background and 1 for landslide."
        )
    if unknown:
        raise InputError(
            f"The {len(patches)} masks of {patches.source} hold 0 and 255 but no 1. Landslide is 1; 255 means unknown. "
            "Change the values."
        )


def pair(images: dict[str, Path], masks: dict[str, Path], folder: Path, labels: bool) -> list[Item]:
    """Put images and masks of the same key together, in the order of the images.

    Args:
        images: By key.
        masks: By key.
        folder: For messages.
        labels: Whether every image must have a mask.

    Raises:
        InputError: A mask has no image, or an image no mask where it must have one.
    """
    alone = [masks[k].name for k in masks if k not in images]
    if alone:
        raise InputError(f"{folder}: {_some(alone)} without image. Complete the images, or take the masks away.")
    bare = [images[k].name for k in images if k not in masks]
    if labels and bare:
        raise InputError(f"{folder}: {_some(bare)} without mask. Complete the masks, or take the images away.")
    return [Item(path.stem, path, masks.get(key)) for key, path in images.items()]


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
