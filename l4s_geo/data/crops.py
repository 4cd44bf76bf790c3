"""Labelled scenes as a source of training crops: whole regions in, random windows out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from l4s_geo.data.l4s import COUNTS, number_of
from l4s_geo.data.mosaic import Place, place
from l4s_geo.data.patches import UNKNOWN, Item, Patches
from l4s_geo.data.synthetic import NEGATIVE_THEMES, make_scene
from l4s_geo.errors import InputError, reason
from l4s_geo.normalize import Compression, Normalizer, RobustStats
from l4s_geo.scene import Grid, open_scene
from l4s_geo.tiling import PATCH

#: Share of the windows that targets with pseudo-labels get beside regions that were labelled by people.
TARGET_SHARE = 0.8

#: Rows read at once.
STRIP = 512

T = TypeVar("T", bound=np.generic, covariant=True)


class Pixels(Protocol[T]):
    """What areas ask of their arrays: numpy's have it, and those that stay on disk (``l4s_geo.data.ondisk``)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w), or (C, h, w)."""

    def __getitem__(self, at: slice | tuple[slice, ...], /) -> NDArray[T]:
        """A part, in memory."""


@dataclass(frozen=True)
class Area:
    """One region, for random access.

    Attributes:
        name: For the log.
        image: (C, h, w) uint16 digital numbers, 0 where not valid.
        truth: (h, w) uint8: 0 background, 1 landslide, 255 unknown or not valid.
        valid: (h, w) bool.
        normalizer: Statistics of this region (of its valid pixels outside of the holdouts).
        domain: 0 for regions that were labelled by people, 1 for targets with pseudo-labels.
        weight: How much more often than others of its size it is to be seen.
    """

    name: str
    image: Pixels[np.uint16]
    truth: Pixels[np.uint8]
    valid: Pixels[np.bool_]
    normalizer: Normalizer
    domain: int = 0
    weight: float = 1.0

    @property
    def labelled(self) -> int:
        """Pixels of known class."""
        return self._known[0]

    @property
    def labelled_cells(self) -> NDArray[np.int64]:
        """First rows and columns (n, 2) of the cells of ``CELL`` by ``CELL`` pixels with one of known class."""
        return self._known[1]

    @cached_property
    def _known(self) -> tuple[int, NDArray[np.int64]]:
        return _find_known(self.truth)

    def rows(self, start: int, stop: int) -> Area:
        """A block of rows, in memory, with the statistics of the whole region."""
        part = np.s_[start:stop]
        return Area(
            f"{self.name}:{start}-{stop}",
            self.image[:, part],
            self.truth[part],
            self.valid[part],
            self.normalizer,
        )

    def without_rows(self, holdouts: Sequence[tuple[int, int]], compression: Compression) -> Area:
        """In memory, with blocks of rows blanked out (not valid, unknown), and the statistics of what is left."""
        image, truth, valid = self.image[:].copy(), self.truth[:].copy(), self.valid[:].copy()
        for start, stop in holdouts:
            image[:, start:stop], truth[start:stop], valid[start:stop] = 0, UNKNOWN, False
        return make_area(self.name, self.normalizer.bands, image, truth, valid, compression)

    def with_contrast(self, gain: float) -> Area:
        """The same region with its contrast multiplied, as another region might show it."""
        normalizer = replace(self.normalizer, scale=tuple(s / gain for s in self.normalizer.scale))
        return replace(self, name=f"{self.name} x{gain:g}", normalizer=normalizer)

    def standardized_rows(self, row: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What ``l4s_geo.inference.predict`` reads: standardized rows and their valid mask."""
        part = np.s_[row : row + rows]
        valid = self.valid[part]
        return self.normalizer(self.image[:, part].astype(np.float32), valid), valid


def make_area(
    name: str,
    bands: Sequence[str],
    image: NDArray[np.uint16],
    truth: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    compression: Compression,
) -> Area:
    """Put arrays together with the robust statistics of their valid pixels."""
    stats = RobustStats(bands)
    for row in range(0, image.shape[1], STRIP):
        part = np.s_[row : row + STRIP]
        stats.update(image[:, part].astype(np.float32), valid[part])
    return Area(name, image, truth, valid, stats.normalizer(compression, name))


def load_area(
    path: str,
    bands: Sequence[str],
    *,
    compression: Compression,
    resolution: float,
    labels: bool = True,
    units: str = "auto",
) -> Area:
    """Read a labelled scene: a folder with ``rgb.tif`` (or ``image.tif``) and ``labels.tif``.

    With ``labels=False``, ``path`` is any scene that is known to hold no landslide: all of it is background.

    Raises:
        InputError: The scene or its labels cannot be used.
    """
    scene_path, truth_path = _labelled_paths(Path(path)) if labels else (path, None)
    with open_scene(scene_path, resolution=resolution, units=units) as scene:
        h, w = scene.grid.shape
        image = np.zeros((len(bands), h, w), np.uint16)
        valid = np.zeros((h, w), bool)
        for row in range(0, h, STRIP):
            window = Window(0, row, w, min(STRIP, h - row))
            x, seen = scene.read(window, bands)
            part = np.s_[row : row + STRIP]
            image[:, part] = np.clip(np.rint(x), 0, 65535)
            valid[part] = seen
        truth = np.zeros((h, w), np.uint8) if truth_path is None else _read_truth(truth_path, scene.grid)
        name = Path(path).name if labels else scene.name
    truth[~valid] = UNKNOWN
    return make_area(name, bands, image, truth, valid, compression)


def patch_areas(patches: Patches, compression: Compression) -> Iterator[Area]:
    """Areas of a folder of patches, standardized by region.

    The complete Landslide4Sense training set is put back into its regions, so that crops may lie across patches. Other
    patches stay areas of their own, with the statistics of the whole folder. Elevations below 0 count as 0.

    Raises:
        InputError: A patch cannot be used.
    """
    if patches.kind != "l4s" or len(patches) != COUNTS["train"]:
        yield from _chips(patches, compression)
        return
    regions: dict[str, list[tuple[Item, Place]]] = {}
    for item in patches.items:
        where = place(number_of(item))
        regions.setdefault(where.region.name, []).append((item, where))
    for name, pairs in regions.items():
        items = tuple(i for i, _ in pairs)
        yield _region(name, replace(patches, items=items), [p for _, p in pairs], compression)


def _region(name: str, patches: Patches, places: Sequence[Place], compression: Compression) -> Area:
    height, width = PATCH * places[0].region.rows, PATCH * places[0].region.columns
    image = np.zeros((len(patches.bands), height, width), np.uint16)
    truth, valid = np.full((height, width), UNKNOWN, np.uint8), np.zeros((height, width), bool)
    for at, patch in zip(places, patches, strict=True):
        row, column = PATCH * at.row, PATCH * at.column
        part = np.s_[row : row + PATCH, column : column + PATCH]
        image[:, *part] = np.clip(np.rint(patch.image), 0, 65535)
        truth[part], valid[part] = patch.truth, patch.valid
    return make_area(name, patches.bands, image, truth, valid, compression)


def _chips(patches: Patches, compression: Compression) -> Iterator[Area]:
    stats = RobustStats(patches.bands)
    kept: list[tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.bool_]]] = []
    for patch in patches:
        stats.update(patch.image, patch.valid)
        kept.append((np.clip(np.rint(patch.image), 0, 65535).astype(np.uint16), patch.truth, patch.valid))
    if kept:
        normalizer = stats.normalizer(compression, patches.source.name)
        yield from (Area(patches.source.name, *arrays, normalizer) for arrays in kept)


def _labelled_paths(folder: Path) -> tuple[Path, Path]:
    truth = folder / "labels.tif"
    images = [p for p in (folder / "rgb.tif", folder / "image.tif") if p.is_file()]
    if not truth.is_file() or not images:
        raise InputError(
            f"{folder} is not a labelled scene: it needs rgb.tif (or image.tif) and labels.tif "
            "(0 background, 1 landslide, 255 unknown)."
        )
    return images[0], truth


def _read_truth(path: Path, grid: Grid) -> NDArray[np.uint8]:
    shape = {"crs": grid.crs, "transform": grid.transform, "width": grid.width, "height": grid.height}
    try:
        with (
            rasterio.open(path) as src,
            WarpedVRT(src, **shape, resampling=Resampling.nearest, nodata=UNKNOWN) as vrt,
        ):
            found: NDArray[np.uint8] = vrt.read(1)
    except RasterioError as e:
        raise InputError(f"The labels {path} cannot be read ({reason(e)}). Is the file complete, and a raster?") from e
    return found


def synthetic_areas(
    count: int, size: int, bands: Sequence[str], compression: Compression, seed: int, *, landslides: bool
) -> Iterator[Area]:
    """Synthetic scenes with landslides, or without (towns, fields, water, snow ..., one theme after another)."""
    for i in range(count):
        theme = "mixed" if landslides else NEGATIVE_THEMES[i % len(NEGATIVE_THEMES)]
        scene = make_scene(size, size, seed + i, landslides=landslides, theme=theme)
        at = [scene.bands.index(b) for b in bands]
        image = np.clip(np.rint(scene.image[at]), 0, 65535).astype(np.uint16)
        truth = np.where(scene.valid, scene.truth, UNKNOWN).astype(np.uint8)
        yield make_area(f"synthetic-{theme}-{i}", bands, image, truth, scene.valid, compression)


@dataclass(frozen=True)
class Crop:
    """A square window: standardized but not yet compressed image (C, n, n), truth and valid (n, n), and its domain."""

    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    domain: int = 0


class CropSampler:
    """Draws windows around labelled pixels, regions mixed by the square root of their labelled area.

    The square root lies between one vote a pixel (the largest region would drown the others) and one vote a region
    (the smallest would be learnt by heart). Targets with pseudo-labels beside labelled regions get
    ``TARGET_SHARE`` of the windows together: they are what is to be mapped, and often much smaller.

    Args:
        areas: Labelled regions.
        negatives: Regions without landslides.
        negative_share: Share of crops drawn from the negatives.
        size: Side of a crop in pixels; larger than the patch, to leave room for turning and scaling.
        by_domain: Whether all crops of a step come from one domain.
    """

    def __init__(
        self,
        areas: Sequence[Area],
        negatives: Sequence[Area],
        negative_share: float,
        size: int,
        by_domain: bool = False,
    ) -> None:
        self.areas = [*areas, *negatives]
        self.size = size
        self.by_domain = by_domain
        share = negative_share if negatives else 0.0
        self.weights = np.concatenate([_root_weights(areas) * (1 - share), _root_weights(negatives) * share])
        self._cells = [a.labelled_cells for a in self.areas]
        self._domains = np.array([a.domain for a in self.areas])
        targets = self._domains > 0
        of_targets, of_others = self.weights[targets].sum(), self.weights[~targets].sum()
        if of_targets and of_others:
            self.weights *= np.where(targets, TARGET_SHARE / of_targets, (1 - TARGET_SHARE) / of_others)

    def draw(self, rng: np.random.Generator, domain: int | None = None) -> tuple[Area, int, int]:
        """Area, first row and column of a crop, of any domain or of one; equal generators give equal crops."""
        weights = self.weights
        if domain is not None:
            weights = weights * (self._domains == domain)
            weights = weights / weights.sum()
        i = int(rng.choice(len(self.areas), p=weights))
        row, column = self._cells[i][rng.integers(len(self._cells[i]))] + rng.integers(0, CELL, 2)
        return self.areas[i], int(row) - self.size // 2, int(column) - self.size // 2

    def draw_domain(self, rng: np.random.Generator) -> int:
        """The domain of a step, by the weights of its areas."""
        return int(rng.choice(self._domains, p=self.weights))


#: Side of the cells by which labelled places are found, in pixels.
CELL = 32


def _find_known(truth: Pixels[np.uint8]) -> tuple[int, NDArray[np.int64]]:
    """Number of pixels of known class, and the cells that have any; one of an area too small for a cell."""
    h, w = (n // CELL * CELL for n in truth.shape)
    count, cells = 0, []
    for row in range(0, truth.shape[0], STRIP):
        known = truth[row : row + STRIP] != UNKNOWN
        count += int(known.sum())
        whole = known[: max(h - row, 0), :w]
        found = whole.reshape(len(whole) // CELL, CELL, w // CELL, CELL).any(axis=(1, 3))
        cells.append(np.argwhere(found) * CELL + (row, 0))
    return count, np.concatenate(cells) if h and w else np.zeros((1, 2), np.int64)


def _root_weights(areas: Sequence[Area]) -> NDArray[np.float64]:
    roots = np.sqrt([a.labelled for a in areas]) * [a.weight for a in areas]
    total = roots.sum()
    return roots / total if total else roots


def cut(area: Area, row: int, column: int, size: int) -> Crop:
    """A window that may hang over the border; what lies outside is not valid and unknown."""
    h, w = area.truth.shape
    r0, c0, r1, c1 = max(row, 0), max(column, 0), min(row + size, h), min(column + size, w)
    image = np.zeros((area.image.shape[0], size, size), np.float32)
    truth = np.full((size, size), UNKNOWN, np.uint8)
    valid = np.zeros((size, size), bool)
    if r0 < r1 and c0 < c1:
        inner = np.s_[r0 - row : r1 - row, c0 - column : c1 - column]
        seen = area.valid[r0:r1, c0:c1]
        linear = Normalizer(area.normalizer.bands, area.normalizer.center, area.normalizer.scale)
        image[:, *inner] = linear(area.image[:, r0:r1, c0:c1].astype(np.float32), seen)
        truth[inner], valid[inner] = area.truth[r0:r1, c0:c1], seen
    return Crop(image, truth, valid, area.domain)


def seed_of(*parts: object) -> int:
    """A stable 32-bit seed from any values (``hash`` differs between runs)."""
    return zlib.crc32(repr(parts).encode())


def crops_of_step(sampler: CropSampler, step: int, count: int, seed: int, part: int = 0, parts: int = 1) -> list[Crop]:
    """The ``count`` crops of a training step, or a part of them: a pure function of ``seed`` and ``step``.

    A resumed run therefore sees the batches that an uninterrupted one would have seen, and several processes take their
    parts of one batch without a word to each other.
    """
    rng = np.random.default_rng(seed_of(seed, step))
    domain = sampler.draw_domain(rng) if sampler.by_domain else None
    drawn = [sampler.draw(rng, domain) for _ in range(count)]
    return [cut(*place, sampler.size) for place in drawn[part::parts]]
