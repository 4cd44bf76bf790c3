"""Seamless mosaics from overlapping patches, in memory that depends on the scene's width only.

All on the device that the patches are on: first the patches of a row are blended, then the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l4s_geo.tiling import Tiling


class PatchRow(NamedTuple):
    """What networks say about a row of patches.

    Attributes:
        row: First scene row.
        columns: Of the patches that saw something.
        values: Of these, (patches, channels, patch, patch).
    """

    row: int
    columns: Sequence[int]
    values: Tensor


def blend_weights(patch: int) -> NDArray[np.float32]:
    """Weights of one patch: a raised cosine, highest in the middle, positive everywhere.

    The centre of a patch has context on all sides; its border has not. A positive floor keeps pixels that only
    one patch covers (the border of the scene) from being divided by zero.

    Returns:
        (patch, patch) float32 in [0.02, 1].
    """
    ramp = np.sin(np.pi * (np.arange(patch) + 0.5) / patch) ** 2
    return np.maximum(np.outer(ramp, ramp), 0.02).astype(np.float32)


def _blend(mean: Tensor, total: Tensor, values: Tensor, weight: Tensor) -> None:
    """Add values to a weighted mean, in place (West 1979, doi:10.1145/359146.359153).

    ``mean += w / W * (x - mean)``: values that agree on a pixel give exactly this value, whatever the weights. Where
    the weight is 0 nothing changes.
    """
    total += weight
    mean.lerp_(values, weight / total.clamp_min(torch.finfo(total.dtype).tiny))


def blend_row(found: PatchRow, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Blend the patches of one row.

    Patches that do not overlap are blended at once: every second one where patches overlap by half.

    Returns:
        Weighted mean (channels, patch, width) and sum of the weights (patch, width), 0 where no patch was; at least
        as wide as a patch.
    """
    patch, columns, device = tiling.patch, tiling.columns(), found.values.device
    values = found.values
    weights = torch.from_numpy(blend_weights(patch)).to(device).expand(len(columns), -1, -1)
    if len(found.columns) < len(columns):
        kept = torch.tensor([columns.index(c) for c in found.columns], device=device)
        values = values.new_zeros(len(columns), *values.shape[1:]).index_copy_(0, kept, values)
        weights = torch.zeros_like(weights).index_copy_(0, kept, weights[: len(kept)])
    mean = values.new_zeros(values.shape[1], patch, max(patch, tiling.width))
    total = mean.new_zeros(mean.shape[1:])
    phases = -(-patch // tiling.stride)
    for chosen, start, step in _apart(columns, phases, tiling):
        # (…, patches, patch): windows that do not overlap, so that they can be written
        part, weight = values[chosen], weights[chosen]
        into = [x[..., start:].unfold(-1, patch, step)[..., : len(part), :] for x in (mean, total)]
        _blend(into[0], into[1], part.permute(1, 2, 0, 3), weight.permute(1, 0, 2))
    return mean, total


def _apart(columns: Sequence[int], phases: int, tiling: Tiling) -> Iterator[tuple[slice, int, int]]:
    """Patches that do not overlap, the column of the first, and the step between them."""
    regular = len(columns) - 1  # the last patch may be moved back to end at the border
    for phase in range(min(phases, regular)):
        yield slice(phase, regular, phases), columns[phase], phases * tiling.stride
    yield slice(regular, None), columns[regular], tiling.patch


class RollingMosaic:
    """Weighted mean of overlapping rows of patches, over the scene rows in flight."""

    def __init__(self, channels: int, tiling: Tiling, device: torch.device) -> None:
        self.tiling = tiling
        self.top = 0
        self._mean = torch.zeros(channels, tiling.patch, tiling.width, device=device)
        self._total = torch.zeros(tiling.patch, tiling.width, device=device)

    def add(self, found: PatchRow) -> None:
        """Blend the patches whose first row is the mosaic's ``top``."""
        mean, total = blend_row(found, self.tiling)
        _blend(self._mean, self._total, mean[..., : self.tiling.width], total[..., : self.tiling.width])

    def advance(self, row: int) -> Tensor:
        """Move ``top`` down to ``row`` and hand out the rows that are complete.

        Returns:
            (channels, row - top, width) float32, NaN where no patch was added.
        """
        done = row - self.top
        finished = torch.where(self._total[:done] > 0, self._mean[:, :done], torch.nan)
        for buffer in (self._mean, self._total):
            kept = buffer.shape[-2] - done
            buffer[..., :kept, :] = buffer[..., done:, :].clone()
            buffer[..., kept:, :] = 0
        self.top = row
        return finished


@torch.inference_mode()
def stitch(
    rows: Iterable[PatchRow],
    tiling: Tiling,
    channels: int,
    device: torch.device,
    first: int = 0,
    end: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Blend patches into the rows of a scene.

    Args:
        rows: From top to bottom; those that saw nothing are left out. To give ``first`` its value, all patches that
            reach it must be there.
        tiling: Gives the size of the scene and of the patches.
        channels: Channels of the values.
        device: Of the values.
        first: Scene row to begin with.
        end: Scene row to stop before; the last one if not given.

    Yields:
        ``(first row, block)`` from top to bottom without gaps; block (channels, rows, width) float32, NaN where no
        patch was.
    """
    mosaic = RollingMosaic(channels, tiling, device)
    end = tiling.height if end is None else end

    def until(row: int) -> Iterator[tuple[int, Tensor]]:
        while row > mosaic.top:
            top = mosaic.top
            block = mosaic.advance(min(row, top + tiling.patch))
            if top + block.shape[1] > first:
                yield max(top, first), block[:, max(0, first - top) :]

    mosaic.top = max(0, first - tiling.patch + 1)
    for found in rows:
        yield from until(found.row)
        mosaic.add(found)
    yield from until(end)
