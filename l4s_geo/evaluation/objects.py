"""Landslides as objects: which were found, which of the mapped ones are right. Strips in, figures out.

An object is an 8-connected component of pixels on the common grid, as in the polygons that ``map`` draws. Objects are
put together over strips, in memory that grows with their number, not with the scene. Two ways of matching:

- *overlap*: a reference object is found if at least one of its pixels is mapped, and a mapped object is right if at
  least one of its pixels is landslide; several objects may answer to one.
- *iou*: both are the same object if their intersection over union is more than 0.5, which no two objects can have
  with a third (Kirillov et al. 2019, "Panoptic Segmentation", CVPR).

Only labelled pixels overlap or count for the union. An object of which half or more is not labelled is not counted,
but it may be what another one is matched with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from l4s_geo.metrics import Blocked, harmonic_mean, ratio

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Square metres at which the next class of sizes begins.
SIZES = (1_000, 10_000, 100_000)

#: Ways of matching.
MATCHES = ("overlap", "iou")

#: Neighbours of a pixel that belong to the same object.
_CONNECTED = np.ones((3, 3), np.bool_)


@dataclass(frozen=True)
class Objects:
    """Objects of one side, those that are counted.

    Attributes:
        area_m2: (n,) area.
        block: (n,) number of the first block with labelled pixels of it.
        overlap: (n,) bool, matched by overlap.
        iou: (n,) bool, matched by intersection over union.
        means: By layer the (n,) mean over its pixels, NaN where one of them is NaN.
        lows: Likewise the lowest.
    """

    area_m2: Floats
    block: Ints
    overlap: Bools
    iou: Bools
    means: Mapping[str, Floats]
    lows: Mapping[str, Floats]


class ObjectPairs:
    """Puts the objects of both sides together from strips, top to bottom.

    Args:
        block: Columns of a block, in pixels; its rows are those of a strip.
        layers: Names of what mapped objects get the mean and the lowest value of.
    """

    def __init__(self, block: int, layers: Sequence[str] = ()) -> None:
        self._mapped, self._reference = _Side(block, layers), _Side(block)
        self._shared: list[Ints] = [np.empty((3, 0), np.int64)]

    def add(
        self,
        mapped: Bools,
        landslide: Bools,
        known: Bools,
        pixel_m2: float,
        layers: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Go on with the next strip.

        Args:
            mapped: (h, w) mapped as landslide.
            landslide: (h, w) landslide in the truth, also where it is not counted.
            known: (h, w) labelled pixels.
            pixel_m2: Area of a pixel.
            layers: (h, w) values by the names given before.
        """
        upper = self._mapped.add(mapped, known, pixel_m2, layers or {})
        lower = self._reference.add(landslide, known, pixel_m2, {})
        both = mapped & landslide & known
        pairs, pixels = np.unique(upper[both] << 32 | lower[both], return_counts=True)
        self._shared.append(np.stack([pairs >> 32, pairs & 0xFFFFFFFF, pixels]))

    def end(self) -> tuple[Objects, Objects]:
        """Mapped and reference objects, after the last strip."""
        mapped, reference = self._mapped.joined(), self._reference.joined()
        i, j, pixels = np.hstack(self._shared)
        shape = (len(mapped.pixels), len(reference.pixels))
        shared = coo_array((pixels, (mapped.group[i], reference.group[j])), shape=shape).tocsr().tocoo()
        i, j = shared.coords
        same = shared.data / (mapped.labelled[i] + reference.labelled[j] - shared.data) > 0.5
        return mapped.matched(i, i[same]), reference.matched(j, j[same])


class _Side:
    """Pieces of objects of one side by strip, and which of them belong together."""

    def __init__(self, block: int, layers: Sequence[str] = ()) -> None:
        self._block, self._layers = block, tuple(layers)
        self._pieces = 0
        self._blocks = 0
        self._last: Ints | None = None
        self._links: list[Ints] = [np.empty((2, 0), np.int64)]
        self._first: list[Ints] = [np.empty(0, np.int64)]
        self._sums: list[Floats] = [np.empty((3 + len(layers), 0))]
        self._lows: list[Floats] = [np.empty((len(layers), 0))]

    def add(self, mask: Bools, known: Bools, pixel_m2: float, layers: Mapping[str, NDArray[np.float32]]) -> Ints:
        """The piece (h, w) that each pixel belongs to, -1 for none."""
        width = mask.shape[1]
        last = np.full(width, -1) if self._last is None else self._last
        # With the row above, in which pieces keep their neighbours
        found, number = ndimage.label(np.vstack([last >= 0, mask]), _CONNECTED)
        piece = np.where(found > 0, found + (self._pieces - 1), -1).astype(np.int64)
        goes_on = last >= 0
        self._links.append(np.stack([last[goes_on], piece[0][goes_on]]))
        piece = piece[1:]
        rows, columns = np.nonzero(mask)
        owner, labelled = piece[rows, columns] - self._pieces, known[rows, columns]
        weights = [np.ones(len(owner)), labelled, np.full(len(owner), pixel_m2)]
        values = [layers[name][rows, columns].astype(np.float64) for name in self._layers]
        self._sums.append(np.stack([np.bincount(owner, w, number) for w in weights + values]))
        self._lows.append(np.stack([_lowest(owner, v, number) for v in values]) if values else np.empty((0, number)))
        first = np.full(number, np.iinfo(np.int64).max)
        np.minimum.at(first, owner[labelled], self._blocks + columns[labelled] // self._block)
        self._first.append(first)
        self._pieces += number
        self._blocks += -(-width // self._block)
        self._last = piece[-1]
        return piece

    def joined(self) -> _Joined:
        """Whole objects."""
        i, j = np.hstack(self._links)
        n = self._pieces
        links = coo_array((np.ones(len(i), np.bool_), (i, j)), shape=(n, n))
        group = connected_components(links, directed=False)[1].astype(np.int64) if n else np.empty(0, np.int64)
        number = int(group.max(initial=-1)) + 1
        sums: list[Floats] = [np.bincount(group, w, number).astype(np.float64) for w in np.hstack(self._sums)]
        block = np.full(number, np.iinfo(np.int64).max)
        np.minimum.at(block, group, np.concatenate(self._first))
        pixels, labelled, area = sums[:3]
        means = {name: total / pixels for name, total in zip(self._layers, sums[3:], strict=True)}
        lows = {n: _lowest(group, low, number) for n, low in zip(self._layers, np.hstack(self._lows), strict=True)}
        return _Joined(group, pixels, labelled, area, block, means, lows)


def _lowest(owner: Ints, values: Floats, number: int) -> Floats:
    """(number,) lowest value of each owner, NaN where one is NaN."""
    low = np.full(number, np.inf)
    np.minimum.at(low, owner, values)
    return low


@dataclass(frozen=True)
class _Joined:
    """Whole objects of one side: the object of each piece, and sums by object."""

    group: Ints
    pixels: Floats
    labelled: Floats
    area_m2: Floats
    block: Ints
    means: Mapping[str, Floats]
    lows: Mapping[str, Floats]

    def matched(self, overlap: Ints, iou: Ints) -> Objects:
        """Those that count, with which of all are matched."""
        counted = self.labelled > self.pixels / 2
        overlaps, same = (np.isin(np.arange(len(counted)), which)[counted] for which in (overlap, iou))
        means, lows = ({name: v[counted] for name, v in by_name.items()} for by_name in (self.means, self.lows))
        return Objects(self.area_m2[counted], self.block[counted], overlaps, same, means, lows)


def object_score(mapped: Objects, reference: Objects, blocks: Ints) -> Blocked:
    """Precision, recall and F1 of objects, of all and by size.

    Precision is the share of the mapped objects (of that size) that are right, recall the share of the reference
    objects (of that size) that were found, F1 their harmonic mean.

    Args:
        mapped: What was mapped.
        reference: The truth.
        blocks: Numbers of all blocks with labelled pixels, in order.

    Returns:
        Sums as ``object_numbers`` takes them, and figures by ``match/size/figure``, where the size is ``all`` or the
        number of the class.
    """
    classes = len(SIZES) + 1
    sides = []
    for objects in (mapped, reference):
        size = np.searchsorted(SIZES, objects.area_m2, side="right")
        key = np.searchsorted(blocks, objects.block) * classes + size
        counts = [np.bincount(key, weights, len(blocks) * classes) for weights in (None, objects.overlap, objects.iou)]
        sides.append(np.stack(counts, axis=1).astype(np.int64).reshape(len(blocks), -1))
    return Blocked(np.hstack(sides), _figures)


def object_numbers(sums: Floats) -> Floats:
    """Objects (2, sizes + 1, 3): mapped and reference; all, then by size; in all, matched by overlap, and by IoU."""
    by_size = sums.reshape(2, len(SIZES) + 1, 1 + len(MATCHES))
    return np.concatenate([by_size.sum(axis=1, keepdims=True), by_size], axis=1)


def _figures(sums: Floats) -> dict[str, float]:
    found: dict[str, float] = {}
    numbers = object_numbers(sums).tolist()
    for size, (mapped, reference) in zip(("all", *range(len(SIZES) + 1)), zip(*numbers, strict=True), strict=True):
        for k, match in enumerate(MATCHES, 1):
            precision, recall = ratio(mapped[k], mapped[0]), ratio(reference[k], reference[0])
            f1 = harmonic_mean(precision, recall)
            found |= {
                f"{match}/{size}/precision": precision,
                f"{match}/{size}/recall": recall,
                f"{match}/{size}/f1": f1,
            }
    return found
