"""Where the patches of a scene lie, and how many overlap where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)

#: Side of a Landslide4Sense patch, in pixels.
PATCH = 128


def offsets(size: int, patch: int, stride: int) -> list[int]:
    """Starts of the patches along one axis of ``size`` pixels.

    The last patch is moved back to end at the border; an axis shorter than a patch has one patch at 0, to be
    padded. Offsets depend on sizes only, never on nodata.

    Raises:
        ValueError: ``size`` or ``stride`` below 1, or ``stride`` above ``patch`` (pixels would be left out).
    """
    if size < 1 or not 1 <= stride <= patch:
        raise ValueError(f"need size >= 1 and 1 <= stride <= patch, got {size=} {stride=} {patch=}")
    if size <= patch:
        return [0]
    starts = list(range(0, size - patch, stride))
    return [*starts, size - patch]


@dataclass(frozen=True)
class Tiling:
    """Overlapping patches over a scene of ``height`` x ``width`` pixels."""

    height: int
    width: int
    patch: int = PATCH
    stride: int = PATCH // 2

    def rows(self) -> list[int]:
        """First pixel row of every row of patches."""
        return offsets(self.height, self.patch, self.stride)

    def columns(self) -> list[int]:
        """First pixel column of every column of patches."""
        return offsets(self.width, self.patch, self.stride)

    def __len__(self) -> int:
        return len(self.rows()) * len(self.columns())

    def strips(self) -> Iterator[tuple[int, int]]:
        """``(first row, rows to read)`` of every row of patches, top to bottom."""
        for row in self.rows():
            yield row, min(self.patch, self.height - row)


def pad(x: NDArray[Number], patch: int) -> NDArray[Number]:
    """Reflect the lower and right border until the last two axes are at least ``patch`` long.

    Works from one pixel up (``symmetric`` repeats the border pixel, so that it needs no second one).
    """
    missing = [max(0, patch - n) for n in x.shape[-2:]]
    if not any(missing):
        return x
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, m) for m in missing], mode="symmetric")
