"""Connected components of a raster that comes in strips, in memory that does not grow with its height.

Each strip is taken apart into the runs of pixels within its rows. Components that reach its last row stay open and
are joined with the strip below; the others are finished and handed on. The result is that of labelling the whole
raster at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from l4s_geo.outlines import Floats, Geometries, Ints, corners, outlines

Values = NDArray[np.generic]

#: What every component has totals of: row and column of its pixels, and their place in the raster in raster order.
PLACES = ("row", "column", "place")


@dataclass(frozen=True)
class Strip:
    """Full-width rows of a raster.

    Attributes:
        row: First row.
        mask: (h, w) bool, what is to be found.
        layers: Per name the values at the mask's pixels in raster order, (mask.sum(),), NaN for none; None for a
            layer without any.
    """

    row: int
    mask: NDArray[np.bool_]
    layers: Mapping[str, Values | None]


@dataclass(frozen=True)
class Totals:
    """Sum, number, lowest and highest of every layer's finite values, each (components, layers) float64.

    Kept in a form that can be merged, since a component's pixels are met one after the other.
    """

    names: tuple[str, ...]
    sums: Floats
    counts: Floats
    lows: Floats
    highs: Floats

    @classmethod
    def zero(cls, names: Sequence[str], n: int = 0) -> Totals:
        """Of ``n`` components without pixels."""
        shape = (n, len(names))
        low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
        return cls(tuple(names), np.zeros(shape), np.zeros(shape), low, high)

    @classmethod
    def of(cls, lengths: Ints, layers: Mapping[str, Values | None]) -> Totals:
        """Of runs of pixels that follow on each other, from the runs' lengths and the pixels' values."""
        totals = cls.zero(tuple(layers), len(lengths))
        starts = np.cumsum(lengths) - lengths
        given = ((i, values) for i, values in enumerate(layers.values()) if values is not None and len(starts))
        for i, values in given:
            finite, v = np.isfinite(values), values.astype(np.float64)
            totals.sums[:, i] = np.add.reduceat(np.where(finite, v, 0), starts)
            totals.counts[:, i] = np.add.reduceat(finite, starts, dtype=np.float64)
            totals.lows[:, i] = np.minimum.reduceat(np.where(finite, v, np.inf), starts)
            totals.highs[:, i] = np.maximum.reduceat(np.where(finite, v, -np.inf), starts)
        return totals

    @classmethod
    def concatenate(cls, parts: Sequence[Totals]) -> Totals:
        """One after the other; all with the same layers."""
        sums, counts, lows, highs = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("sums", "counts", "lows", "highs")
        )
        return cls(parts[0].names, sums, counts, lows, highs)

    def __len__(self) -> int:
        return len(self.sums)

    def __getitem__(self, chosen: NDArray[np.bool_] | Ints) -> Totals:
        arrays = (a[chosen] for a in (self.sums, self.counts, self.lows, self.highs))
        return Totals(self.names, *arrays)

    def beside(self, other: Totals) -> Totals:
        """With the layers of another, of the same components."""
        mine, others = ((t.sums, t.counts, t.lows, t.highs) for t in (self, other))
        return Totals(self.names + other.names, *(np.hstack(pair) for pair in zip(mine, others, strict=True)))

    def merged(self, group: Ints) -> Totals:
        """Of groups from each component's group; every group up to the highest has a component."""
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        if not len(starts):
            return self
        return Totals(
            self.names,
            np.add.reduceat(self.sums[order], starts),
            np.add.reduceat(self.counts[order], starts),
            np.minimum.reduceat(self.lows[order], starts),
            np.maximum.reduceat(self.highs[order], starts),
        )

    def sum(self, name: str) -> Floats:
        """(components,) sum of a layer."""
        return self.sums[:, self.names.index(name)]

    def count(self, name: str) -> Floats:
        """(components,) number of pixels with a value."""
        return self.counts[:, self.names.index(name)]

    def mean(self, name: str) -> Floats:
        """(components,) mean, NaN without values."""
        count = self.count(name)
        mean = np.full(len(self), np.nan)
        np.divide(self.sum(name), count, out=mean, where=count > 0)
        return mean

    def low(self, name: str) -> Floats:
        """(components,) lowest value, NaN without values."""
        return np.where(self.count(name) > 0, self.lows[:, self.names.index(name)], np.nan)

    def high(self, name: str) -> Floats:
        """(components,) highest value, NaN without values."""
        return np.where(self.count(name) > 0, self.highs[:, self.names.index(name)], np.nan)


@dataclass(frozen=True)
class Components:
    """Finished components.

    Attributes:
        totals: Of their pixels, of ``PLACES`` and the layers.
        geometry: (components,) MultiPolygon in pixel coordinates (x = column, y = row), always valid.
    """

    totals: Totals
    geometry: Geometries


Keep = Callable[[Totals], NDArray[np.bool_]]


@dataclass(frozen=True)
class _Open:
    """Components that may go on below the rows read so far. Places and corners as in ``outlines``.

    Attributes:
        totals: So far.
        component: (pieces,) the component that each four-connected piece belongs to.
        corner: (corners,) of their outlines.
        piece: (corners,) the piece that each corner belongs to.
        begin: (runs,) places where the runs of the last row begin.
        end: (runs,) places where they end.
        owner: (runs,) the piece that each run belongs to.
    """

    totals: Totals
    component: Ints
    corner: Ints
    piece: Ints
    begin: Ints
    end: Ints
    owner: Ints

    @classmethod
    def nothing(cls, layers: Sequence[str]) -> _Open:
        """Above the first row."""
        return cls(Totals.zero((*PLACES, *layers)), *(np.empty(0, np.int64) for _ in range(6)))

    def only(self, chosen: NDArray[np.bool_]) -> _Open:
        """Some of the components, (components,)."""
        pieces = chosen[self.component]
        corners, runs = pieces[self.piece], pieces[self.owner]
        rank, number = np.cumsum(chosen) - 1, np.cumsum(pieces) - 1
        return _Open(
            self.totals[chosen],
            rank[self.component[pieces]],
            self.corner[corners],
            number[self.piece[corners]],
            self.begin[runs],
            self.end[runs],
            number[self.owner[runs]],
        )


class Tracer:
    """Finds 8-connected components.

    Args:
        layers: Of the strips.
        keep: Which components to keep, from their totals; the others are never outlined. Everything is kept by
            default.
    """

    def __init__(self, layers: Sequence[str], keep: Keep | None = None) -> None:
        self._layers = tuple(layers)
        self._keep = keep
        self._open = _Open.nothing(layers)
        self._width = 0

    def add(self, strip: Strip) -> Components:
        """Go on with the strip below the last one, of the same width.

        Returns:
            The components that it completes, in no particular order.
        """
        self._width = strip.mask.shape[1]
        joined = _join(self._open, strip, self._width + 1)
        goes_on = np.zeros(len(joined.totals), np.bool_)
        goes_on[joined.component[joined.owner]] = True
        self._open = joined.only(goes_on)
        done = joined.only(~goes_on if self._keep is None else ~goes_on & self._keep(joined.totals))
        return Components(done.totals, outlines(done.corner, done.piece, done.component, self._width + 1))

    def end(self) -> Components:
        """The components that the last strip left open."""
        return self.add(Strip(0, np.zeros((1, self._width), np.bool_), dict.fromkeys(self._layers)))


def _join(above: _Open, strip: Strip, stride: int) -> _Open:
    """Components of a strip and of what is above, with the runs of the strip's last row."""
    begin, end = _runs(strip.mask, strip.row)
    totals = _of_places(begin, end, stride).beside(Totals.of(end - begin, strip.layers))
    last = len(above.begin) + int(np.searchsorted(begin, (strip.row + len(strip.mask) - 1) * stride))
    # Nodes of a graph: the pieces above, the runs of the strip, the components above
    pieces, nodes = len(above.component), len(above.component) + len(begin)
    node = np.concatenate([above.owner, np.arange(pieces, nodes)])
    begin, end = np.concatenate([above.begin, begin]), np.concatenate([above.end, end])
    upper, lower, along = _touching(begin, end, stride)
    i, j = node[upper], node[lower]
    piece = _groups(nodes, i[along], j[along])
    i, j = np.concatenate([i, np.arange(pieces)]), np.concatenate([j, nodes + above.component])
    group = _groups(nodes + len(above.totals), i, j)

    component = np.empty(piece.max(initial=-1) + 1, np.int64)
    component[piece] = group[:nodes]
    corner, run = corners(begin, end, stride, len(above.begin), last)
    return _Open(
        Totals.concatenate([above.totals, totals]).merged(np.concatenate([group[nodes:], group[pieces:nodes]])),
        component,
        np.concatenate([above.corner, corner]),
        piece[np.concatenate([above.piece, node[run]])],
        begin[last:],
        end[last:],
        piece[node[last:]],
    )


def _runs(mask: NDArray[np.bool_], row: int) -> tuple[Ints, Ints]:
    """Places where the runs of pixels in a strip's rows begin and end, (runs,) each, in raster order."""
    h, w = mask.shape
    # A column without pixels, so that no run goes on in the next row
    line = np.zeros((h, w + 1), np.bool_)
    line[:, :w] = mask
    flat = line.ravel()
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    change = np.concatenate([np.zeros(int(flat[0]), change.dtype), change]) + row * (w + 1)
    return change[::2], change[1::2]


def _of_places(begin: Ints, end: Ints, stride: int) -> Totals:
    """Totals of ``PLACES`` of runs."""
    row, column = np.divmod(begin, stride)
    low = np.column_stack([row, column, begin - row]).astype(np.float64)
    count = np.repeat((end - begin)[:, None], 3, axis=1).astype(np.float64)
    high = low + (count - 1) * [0, 1, 1]
    return Totals(PLACES, (low + high) / 2 * count, count, low, high)


def _touching(begin: Ints, end: Ints, stride: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Pairs of runs in neighbouring rows that touch: the upper, the lower, and whether by more than a corner."""
    first = np.searchsorted(end, begin + stride)
    number = np.searchsorted(begin, end + stride, side="right") - first
    upper = np.repeat(np.arange(len(begin)), number)
    lower = np.arange(len(upper)) + np.repeat(first - np.cumsum(number) + number, number)
    return upper, lower, (begin[lower] < end[upper] + stride) & (end[lower] > begin[upper] + stride)


def _groups(n: int, i: Ints, j: Ints) -> Ints:
    """The group of each of ``n`` nodes, of which ``i`` and ``j`` belong together."""
    if n == 0:
        return np.empty(0, np.int64)
    links = coo_array((np.ones(len(i), np.bool_), (i, j)), shape=(n, n))
    group: Ints = connected_components(links, directed=False)[1].astype(np.int64)
    return group
