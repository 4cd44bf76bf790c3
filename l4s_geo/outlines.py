"""Outlines of pixels: from the runs of pixels within rows to polygons, all of them at once.

Corners of pixels are numbered along the rows: a *place* is ``row * stride + column``, and the stride is one more than
the raster is wide. A run of pixels begins and ends at a place of its upper edge, and has an upright side at each end.
A *corner* of an outline is an end of such a side where no other goes on straight. It holds its place and two bits
that say on which side of it the pixels are and where the upright line goes: ``place * 4 + begins * 2 + falls``.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Geometries = NDArray[np.object_]


def corners(begin: Ints, end: Ints, stride: int, above: int, last: int) -> tuple[Ints, Ints]:
    """Corners on the upper edges of rows.

    Args:
        begin: (runs,) places where the runs of consecutive rows begin, in raster order.
        end: (runs,) where they end.
        stride: Of places.
        above: Number of runs in the first row, whose upper edge does not count.
        last: Number of runs before the last row, whose lower edge does not count.

    Returns:
        (corners,) corners, and the run of each.
    """
    # A row's sides are in order, so that sorting is no more than merging each row with the one above it
    sides = (np.stack([begin, end], axis=1) * 2 + [1, 0]).ravel()
    ends = np.concatenate([sides[2 * above :], sides[: 2 * last] + 2 * stride])
    side = np.concatenate([np.arange(2 * above, len(sides)), np.arange(2 * last)])
    falls = np.arange(len(ends)) < len(sides) - 2 * above
    order = np.argsort(ends, kind="stable")
    ends, side, falls = ends[order], side[order], falls[order]
    changes = np.diff(ends, prepend=-1, append=-1) != 0
    lone = changes[1:] & changes[:-1]
    return ends[lone] * 2 + falls[lone], side[lone] // 2


def outlines(corner: Ints, piece: Ints, component: Ints, stride: int) -> Geometries:
    """Outlines of components.

    Args:
        corner: (corners,) all corners of all components, in any order.
        piece: (corners,) the four-connected piece that each belongs to.
        component: (pieces,) the component that each piece belongs to; all have one.
        stride: Of places.

    Returns:
        (components,) MultiPolygon in pixel coordinates (x = column, y = row) with a polygon per piece, always valid;
        on a map with north above, outer rings are anticlockwise and holes clockwise.
    """
    if not len(corner):
        return np.empty(0, dtype=object)
    order = np.argsort(corner)
    corner, piece = corner[order], piece[order]
    y, x = np.divmod(corner >> 2, stride)
    down = (corner >> 1 & 1) == (corner & 1)
    follow, ring = _rings(corner >> 2, _across(x, y, corner & 1), down)

    first = np.empty(ring.max() + 1, np.int64)
    first[ring[::-1]] = np.arange(len(ring))[::-1]
    start = np.flatnonzero(down)
    area = np.bincount(ring[start], x[start] * (y[follow[start]] - y[start]))
    owner = piece[first]
    outer = area < 0
    rank = np.lexsort((~outer, owner, component[owner]))
    path = _path(follow, first[rank])

    sizes = np.bincount(ring)[rank]
    ends = np.cumsum(sizes)
    closed = np.insert(path, ends, path[ends - sizes])
    vertices = np.column_stack([x[closed], y[closed]]).astype(np.float64)
    rings = np.concatenate([[0], ends + np.arange(1, len(ends) + 1)])
    polygons = np.append(np.flatnonzero(outer[rank]), len(rank))
    groups = np.concatenate([[0], np.cumsum(np.bincount(component))])
    geometry = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, vertices, (rings, polygons, groups))
    return np.asarray(geometry, dtype=object)


def _across(x: Ints, y: Ints, falls: Ints) -> Ints:
    """The corner at the other end of the upright line that ends at each."""
    column = np.argsort(x << 40 | y << 1 | falls)
    other = np.empty_like(column)
    other[column[::2]], other[column[1::2]] = column[1::2], column[::2]
    return other


def _rings(place: Ints, across: Ints, down: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.int32]]:
    """The corner that follows on each, pixels to the left on the map, and the ring that each lies on.

    Along a row corners are pairs, since lines begin and end in turn. Where two pixels touch at a corner two corners
    have the same place, and in this order each pixel keeps to its own. If they are on the same ring, both pixels
    belong to one piece, and a ring that touches itself would be invalid: it becomes two.
    """
    follow = np.where(down, across, np.arange(len(place)) ^ 1)
    ring = _cycles(follow)
    twice = np.flatnonzero(place[1:] == place[:-1])
    twice = twice[ring[twice] == ring[twice + 1]]
    if len(twice):
        follow[twice], follow[twice + 1] = follow[twice + 1], follow[twice]
        ring = _cycles(follow)
    return follow, ring


def _cycles(follow: Ints) -> NDArray[np.int32]:
    """The cycle of a permutation that each element is in."""
    cycle: NDArray[np.int32] = connected_components(_graph(follow), connection="strong")[1]
    return cycle


def _path(follow: Ints, first: Ints) -> Ints:
    """All elements of a permutation, one cycle after the other, from the first elements of each on."""
    before = np.empty_like(follow)
    before[follow] = np.arange(len(follow))
    chain = follow.copy()
    chain[before[first[:-1]]] = first[1:]
    path: Ints = breadth_first_order(_graph(chain), first[0], return_predecessors=False)
    return path


def _graph(follow: Ints) -> csr_array:
    """A graph with one edge from each node."""
    n = len(follow)
    return csr_array((np.ones(n), follow, np.arange(n + 1)), shape=(n, n))
