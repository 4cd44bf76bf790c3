"""An ensemble over a scene: strips in, stitched rows of probabilities out.

Reading, the networks and blending overlap. Patches are cut into batches row by row, so what a batch holds, and with it
the last bit of every answer, depends neither on how many devices or processor cores work nor on where a run begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l4s_geo.ensemble import Batch, Ensemble, one_core_each
from l4s_geo.normalize import Normalizer
from l4s_geo.stitch import PatchRow, stitch
from l4s_geo.threads import ahead, prefetched
from l4s_geo.tiling import Tiling

#: Patches per forward pass by kind of device, where nothing else is asked for.
BATCH = {"cpu": 16, "cuda": 256}

#: Rows of patches that are read ahead.
ROWS_AHEAD = 2

#: Reads ``rows`` full-width rows from ``row`` on: image (C, rows, width), valid (rows, width).
ReadRows = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.bool_]]]


class Strip(NamedTuple):
    """Full-width scene rows under a row of patches: image (C, rows, width), valid (rows, width)."""

    row: int
    image: NDArray[np.float32]
    valid: NDArray[np.bool_]


class Rows(NamedTuple):
    """Finished scene rows.

    Attributes:
        row: The first.
        values: (K, rows, width) float32, NaN where not seen.
        seen: (rows, width) bool.
    """

    row: int
    values: NDArray[np.float32]
    seen: NDArray[np.bool_]


def cut_strips(read: ReadRows, tiling: Tiling, first: int = 0, end: int | None = None) -> Iterator[Strip]:
    """Strips under the rows of patches that reach scene rows ``first`` to ``end``; every row is read once."""
    held: Strip | None = None
    for row, rows in tiling.strips():
        if row + rows <= first or (end is not None and row >= end):
            continue
        if held is None:
            image, valid = read(row, rows)
        else:
            keep = held.row + len(held.valid) - row
            fresh, seen = read(row + keep, rows - keep)
            part = slice(len(held.valid) - keep, None)
            image = np.concatenate([held.image[:, part], fresh], axis=1)
            valid = np.concatenate([held.valid[part], seen], axis=0)
        held = Strip(row, image, valid)
        yield held


def batches(strip: Strip, tiling: Tiling, size: int) -> Iterator[Batch]:
    """Patches of a strip that hold at least one valid pixel, in batches of about the same size, at most ``size``."""
    anything: NDArray[np.bool_] = np.any(strip.valid, axis=0)
    columns = [c for c in tiling.columns() if anything[c : c + tiling.patch].any()]
    for chosen in np.array_split(np.array(columns, int), ceil(len(columns) / size) or 1):
        if len(chosen):
            part = slice(int(chosen[0]), int(chosen[-1]) + tiling.patch)
            yield Batch(strip.row, tuple(chosen.tolist()), strip.image[:, :, part], strip.valid[:, part])


def predict(
    read: ReadRows,
    tiling: Tiling,
    ensemble: Ensemble,
    *,
    batch_size: int | None = None,
    normalizer: Normalizer | None = None,
    reduce: Callable[[Tensor], Tensor] = lambda members: members,
    first: int = 0,
    end: int | None = None,
) -> Generator[Rows]:
    """Map a scene, or rows of it.

    Args:
        read: Gives rows; runs in a thread of its own.
        tiling: Size of the scene, of the patches and of their overlap.
        ensemble: The networks.
        batch_size: Most patches per forward pass; as the device likes it if not given.
        normalizer: Standardizes what ``read`` gives; None if that is done.
        reduce: Makes of the ensemble's answers (K, rows, width) what is wanted of them, on their device.
        first: Scene row to begin with; the values do not depend on it.
        end: Scene row to stop before; the last one if not given.

    Yields:
        Rows from top to bottom without gaps.
    """
    size = batch_size or BATCH.get(ensemble.device.type, BATCH["cpu"])
    valid: deque[NDArray[np.bool_]] = deque()  # read, but not yet handed out

    def strips() -> Iterator[Strip]:
        below = first
        for strip in cut_strips(read, tiling, first, end):
            valid.extend(strip.valid[max(0, below - strip.row) :])
            below = strip.row + len(strip.valid)
            yield strip

    def answer(batch: Batch) -> tuple[Batch, Tensor]:
        return batch, ensemble.batch(batch, tiling.patch, normalizer)

    threads = len(ensemble.replicas)
    with one_core_each(ensemble), closing(prefetched(strips(), ROWS_AHEAD)) as read_ahead:
        cut = (batch for strip in read_ahead for batch in batches(strip, tiling, size))
        with closing(ahead(cut, answer, threads=threads, depth=2 * threads)) as answered:
            rows = (_row(list(group)) for _, group in groupby(answered, key=lambda found: found[0].row))
            for row, members in stitch(rows, tiling, len(ensemble), ensemble.device, first, end):
                seen = np.stack([valid.popleft() for _ in range(members.shape[1])])
                values = reduce(members).cpu().numpy()
                yield Rows(row, np.where(seen, values, np.float32(np.nan)), seen)


def _row(parts: Sequence[tuple[Batch, Tensor]]) -> PatchRow:
    """All patches of a row."""
    columns = [c for batch, _ in parts for c in batch.columns]
    return PatchRow(parts[0][0].row, columns, torch.cat([values for _, values in parts]))
