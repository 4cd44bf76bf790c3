"""Edges of landslides: how many of the mapped ones lie where the truth has one, and the other way round.

The boundary F1 of Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?" (BMVC).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from l4s_geo.metrics import Blocked, harmonic_mean, ratio

Bools = NDArray[np.bool_]

#: Pixels by which an edge may be off.
TOLERANCE = 2


def halo(tolerance: int) -> int:
    """Rows above and below that ``edge_sums`` looks at."""
    return max(tolerance, 1) + 1


def edge_sums(
    mapped: Bools, landslide: Bools, known: Bools, core: slice, block: int, tolerance: int = TOLERANCE
) -> NDArray[np.int64]:
    """Edge pixels of a strip.

    An edge pixel is one of a landslide with one of its four neighbours outside. Those with an unlabelled pixel within
    the tolerance are not counted, because what they should be compared with may lie there, and the frame of the
    raster is no edge.

    Args:
        mapped: (h, w) mapped as landslide.
        landslide: (h, w) landslide in the truth.
        known: (h, w) labelled pixels.
        core: Rows that are the strip; there are ``halo`` more on each side, if the raster goes on there.
        block: Columns of a block.
        tolerance: Greatest distance in pixels.

    Returns:
        (blocks, 4): edge pixels of the map, those near one of the truth, edge pixels of the truth, those near one of
        the map.
    """
    ours, theirs = _edges(mapped), _edges(landslide)
    blocks = -(-mapped.shape[1] // block)
    found = []
    for edges, others in ((ours, theirs), (theirs, ours)):
        rows, columns = np.nonzero(edges[core])
        rows += core.start
        counted = ~_any_near(~known, rows, columns, max(tolerance, 1))
        near = counted & _any_near(others, rows, columns, tolerance)
        found += [np.bincount(columns[chosen] // block, minlength=blocks) for chosen in (counted, near)]
    return np.stack(found, axis=1)


def _edges(mask: Bools) -> Bools:
    """Pixels of a mask that have a neighbour, right beside, above or below, outside it."""
    m = np.pad(mask, 1, mode="edge")
    return mask & ~(m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:])


def _any_near(mask: Bools, rows: NDArray[np.int64], columns: NDArray[np.int64], distance: int) -> Bools:
    """Whether a mask holds a pixel within a distance of each of some pixels."""
    steps = np.arange(-distance, distance + 1)
    down, right = np.meshgrid(steps, steps, indexing="ij")
    disc = down**2 + right**2 <= distance**2
    around = np.pad(mask, distance)
    found = np.zeros(len(rows), np.bool_)
    for dy, dx in zip(down[disc], right[disc], strict=True):
        found |= around[rows + distance + dy, columns + distance + dx]
    return found


def edge_score(table: NDArray[np.int64]) -> Blocked:
    """Boundary precision, recall and F1 of the (blocks, 4) sums of ``edge_sums``."""
    return Blocked(table, _figures)


def _figures(sums: NDArray[np.float64]) -> dict[str, float]:
    ours, ours_near, theirs, theirs_near = sums.tolist()
    precision, recall = ratio(ours_near, ours), ratio(theirs_near, theirs)
    return {"precision": precision, "recall": recall, "f1": harmonic_mean(precision, recall)}
