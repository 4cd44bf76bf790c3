"""Seamless mosaics from overlapping patches, in memory that depends on the scene's width only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from l4s_geo.tiling import Tiling


def blend_weights(patch: int) -> NDArray[np.float32]:
    """Weights of one patch: a raised cosine, highest in the middle, positive everywhere.

    The centre of a patch has context on all sides; its border has not. A positive floor keeps pixels that only
    one patch covers (the border of the scene) from being divided by zero.

    Returns:
        (patch, patch) float32 in [0.02, 1].
    """
    ramp = np.sin(np.pi * (np.arange(patch) + 0.5) / patch) ** 2
    return np.maximum(np.outer(ramp, ramp), 0.02).astype(np.float32)


class RollingMosaic:
    """Weighted mean of overlapping patches over the rows in flight.

    The mean is updated in place (West 1979, doi:10.1145/359146.359153): ``mean += w / W * (x - mean)``. Patches that
    agree on a pixel therefore give exactly their value, whatever the weights.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        self.weights = blend_weights(patch)
        self.top = 0
        self._mean = np.zeros((channels, patch, width), np.float32)
        self._total = np.zeros((patch, width), np.float32)

    def add(self, column: int, x: NDArray[np.float32]) -> None:
        """Blend a patch (channels, h, w) whose first row is the mosaic's ``top``."""
        h, w = x.shape[-2:]
        part = np.s_[:h, column : column + w]
        weight = self.weights[:h, :w]
        total = self._total[part]
        total += weight
        mean = self._mean[:, *part]
        mean += (weight / total) * (x - mean)

    def advance(self, row: int) -> NDArray[np.float32]:
        """Move ``top`` down to ``row`` and hand out the rows that are complete.

        Returns:
            (channels, row - top, width) float32, NaN where no patch was added.
        """
        done = row - self.top
        finished = np.where(self._total[:done] > 0, self._mean[:, :done], np.float32(np.nan))
        for buffer in (self._mean, self._total):
            kept = buffer.shape[-2] - done
            buffer[..., :kept, :] = buffer[..., done:, :].copy()
            buffer[..., kept:, :] = 0
        self.top = row
        return finished


def stitch(
    patches: Iterable[tuple[int, int, NDArray[np.float32]]], tiling: Tiling, channels: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blend patches into the rows of a scene.

    Args:
        patches: ``(row, column, values)`` in the tiling's order, row by row; values (channels, patch, patch). Patches
            that saw nothing are simply left out.
        tiling: Gives the size of the scene and of the patches.
        channels: Channels of the values.

    Yields:
        ``(first row, block)`` from top to bottom without gaps; block (channels, rows, width) float32, NaN where no
        patch was.
    """
    mosaic = RollingMosaic(channels, tiling.width, tiling.patch)
    for row, column, values in patches:
        while row > mosaic.top:
            top, until = mosaic.top, min(row, mosaic.top + tiling.patch)
            yield top, mosaic.advance(until)
        mosaic.add(column, values[:, : tiling.height - row, : tiling.width - column])
    while mosaic.top < tiling.height:
        top, until = mosaic.top, min(tiling.height, mosaic.top + tiling.patch)
        yield top, mosaic.advance(until)
