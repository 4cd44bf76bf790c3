"""Connected components of a raster that comes in strips, in memory that does not grow with its height.

Each strip is labelled and vectorized alone. What reaches its last row stays open and is joined with the strip
below; everything else is finished and handed on. The result is that of labelling the whole raster at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Geometries = NDArray[np.object_]

EIGHT = np.ones((3, 3), np.bool_)


@dataclass(frozen=True)
class Strip:
    """Full-width rows of a raster.

    Attributes:
        row: First row.
        mask: (h, w) bool, what is to be found.
        layers: Per name the values at the mask's pixels in raster order, (mask.sum(),), NaN for none.
    """

    row: int
    mask: NDArray[np.bool_]
    layers: Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Totals:
    """Sum, number, lowest and highest of every layer's finite values, each (components, layers) float64.

    Kept in a form that can be merged, since a component's pieces are met one after the other.
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
    def of(cls, owner: Ints, n: int, layers: Mapping[str, NDArray[np.generic]]) -> Totals:
        """Of ``n`` components from the pixels' values and the component that owns each pixel, (pixels,)."""
        totals = cls.zero(tuple(layers), n)
        for i, values in enumerate(layers.values()):
            finite = np.isfinite(values)
            own, v = owner[finite], values[finite].astype(np.float64)
            totals.sums[:, i] = np.bincount(own, v, n)
            totals.counts[:, i] = np.bincount(own, minlength=n)
            np.minimum.at(totals.lows[:, i], own, v)
            np.maximum.at(totals.highs[:, i], own, v)
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

    def merged(self, group: Ints, n: int) -> Totals:
        """Of ``n`` groups, from each component's group."""
        out = Totals.zero(self.names, n)
        np.add.at(out.sums, group, self.sums)
        np.add.at(out.counts, group, self.counts)
        np.minimum.at(out.lows, group, self.lows)
        np.maximum.at(out.highs, group, self.highs)
        return out

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
        totals: Of their pixels.
        geometry: (components,) MultiPolygon in pixel coordinates (x = column, y = row), always valid.
    """

    totals: Totals
    geometry: Geometries


@dataclass(frozen=True)
class _Front:
    """Components that reach the last row read and may go on.

    Attributes:
        totals: So far.
        pieces: (pieces,) Polygon, what is vectorized of them.
        owner: (pieces,) index of the component.
        labels: (width,) the component of each pixel of the last row plus one, or 0.
    """

    totals: Totals
    pieces: Geometries
    owner: Ints
    labels: Ints


def trace(strips: Iterable[Strip], keep: Callable[[Totals], NDArray[np.bool_]] | None = None) -> Iterator[Components]:
    """Find 8-connected components.

    Args:
        strips: From top to bottom without gaps, all with the same width and layers.
        keep: Which components to keep, from their totals; the others are never vectorized unless they lie
            across a border between strips. Everything is kept by default.

    Yields:
        Components as soon as they are complete, in no particular order.
    """
    front = None
    for strip in strips:
        if front is None:
            width = strip.mask.shape[1]
            front = _Front(Totals.zero(tuple(strip.layers)), *_nothing(), labels=np.zeros(width, dtype=np.intp))
            end = Strip(0, np.zeros((1, width), np.bool_), {name: np.zeros(0) for name in strip.layers})
        closed, front = _advance(front, strip, keep)
        if len(closed.totals):
            yield closed
    if front is not None:
        yield _advance(front, end, keep)[0]


def _nothing() -> tuple[Geometries, Ints]:
    return np.empty(0, dtype=object), np.empty(0, dtype=np.intp)


def _advance(
    front: _Front, strip: Strip, keep: Callable[[Totals], NDArray[np.bool_]] | None
) -> tuple[Components, _Front]:
    """Join a strip to the components above it; those that it does not carry on are closed."""
    labels, n = label(strip.mask, EIGHT)
    above = len(front.totals)
    group, count = _join(front.labels, labels[0], above, n)
    pieces = Totals.of(labels[strip.mask] - 1, n, strip.layers)
    totals = Totals.concatenate([front.totals, pieces]).merged(group, count)

    # Entry 0 is the background, entry i + 1 the group of piece i plus one
    lookup = np.concatenate([[0], group[above:] + 1]).astype(np.int32)
    last = lookup[labels[-1]]
    goes_on = np.zeros(count, np.bool_)
    goes_on[last[last > 0] - 1] = True
    closed = ~goes_on if keep is None else ~goes_on & keep(totals)
    lookup[1:] *= (goes_on | closed)[group[above:]]

    fresh, fresh_owner = _vectorize(lookup[labels], strip.row)
    geometry = np.concatenate([front.pieces, fresh])
    owner = np.concatenate([group[front.owner], fresh_owner])
    torn = np.zeros(count, np.bool_)
    torn[group[:above]] = True

    done, going = closed[owner], goes_on[owner]
    rank, place = np.cumsum(closed) - 1, np.cumsum(goes_on) - 1
    components = Components(totals[closed], _assemble(geometry[done], rank[owner[done]], torn[closed]))
    labels_below = np.where(last > 0, place[last - 1] + 1, 0) if count else last
    return components, _Front(totals[goes_on], geometry[going], place[owner[going]], labels_below)


def _join(above: Ints, below: NDArray[np.int32], m: int, n: int) -> tuple[Ints, int]:
    """Group ``m`` open components and ``n`` pieces of the next strip that touch, also at corners.

    Returns:
        (m + n,) group of each, components first, and the number of groups.
    """
    w = len(above)
    pairs = []
    for shift in (-1, 0, 1):
        a = above[max(0, -shift) : w - max(0, shift)]
        b = below[max(0, shift) : w - max(0, -shift)]
        both = (a > 0) & (b > 0)
        pairs.append(np.stack([a[both] - 1, b[both] - 1 + m]))
    i, j = np.concatenate(pairs, axis=1)
    if m + n == 0:
        return np.empty(0, np.intp), 0
    links = coo_array((np.ones(len(i), np.bool_), (i, j)), shape=(m + n, m + n))
    count, group = connected_components(links, directed=False)
    return group.astype(np.intp), count


def _vectorize(image: NDArray[np.int32], row: int) -> tuple[Geometries, Ints]:
    """Outlines of a strip's pieces in pixel coordinates, and the value of each less one.

    Four-connected, since outlines through a corner would be invalid polygons: a component that hangs together
    by a corner comes as several polygons, a valid MultiPolygon in the end.
    """
    found = list(shapes(image, mask=image > 0, connectivity=4, transform=Affine.translation(0, row)))
    if not found:
        return _nothing()
    polygons = [outline["coordinates"] for outline, _ in found]
    rings = list(chain.from_iterable(polygons))
    vertices = np.fromiter(chain.from_iterable(rings), dtype=(np.float64, 2))
    offsets = _offsets(rings), _offsets(polygons)
    geometry = shapely.from_ragged_array(shapely.GeometryType.POLYGON, vertices, offsets)
    return geometry, np.array([value for _, value in found], dtype=np.intp) - 1


def _offsets(groups: Sequence[Sequence[object]]) -> Ints:
    """Where each group starts in the list of all their members, and where the last one ends."""
    return np.cumsum([0, *map(len, groups)])


def _assemble(pieces: Geometries, owner: Ints, torn: NDArray[np.bool_]) -> Geometries:
    """One MultiPolygon per component; the pieces of those ``torn`` by a border between strips are dissolved.

    Pixel coordinates are whole numbers, so dissolving is exact.
    """
    order = np.argsort(owner, kind="stable")
    pieces, owner = pieces[order], owner[order]
    split = torn[owner]
    parts, owners = [pieces[~split]], [owner[~split]]
    ids, starts = np.unique(owner[split], return_index=True)
    if len(ids):
        whole = [shapely.union_all(group) for group in np.split(pieces[split], starts[1:])]
        # Zero tolerance: only the vertices that the borders left on straight lines go
        polygons, index = shapely.get_parts(shapely.simplify(whole, 0), return_index=True)
        parts.append(polygons)
        owners.append(ids[index])
    polygons, owner = np.concatenate(parts), np.concatenate(owners)
    return multipolygons(polygons, owner, len(torn))


def multipolygons(polygons: Geometries, owner: Ints, n: int) -> Geometries:
    """Collect polygons by their owner, 0 to ``n - 1``, into (n,) MultiPolygon."""
    order = np.argsort(owner, kind="stable")
    out = np.empty(n, dtype=object)
    shapely.multipolygons(polygons[order], indices=owner[order], out=out)
    return out
