"""Probability raster to layers of polygons, strip by strip, with terrain and what was there before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from l4s_geo.before.scene import Comparison
from l4s_geo.expectation import BINS, Counts, count, expected_f1
from l4s_geo.polygons import Block, Old, scene_polygons
from l4s_geo.raster import Layered, row_windows
from l4s_geo.scene import Grid, Scene
from l4s_geo.scene.bands import TERRAIN_BANDS
from l4s_geo.scene.terrain import aspect_degrees
from l4s_geo.scene.warp import clip
from l4s_geo.threads import prefetched

#: Columns of a piece of a strip whose terrain is read, a multiple of the tiles that rasters are warped and stored in.
PIECE = 512

#: Bands of a probability raster.
LAYERS = ("probability", "agreement", "uncertainty")


class Product(Protocol):
    """A file beside the polygons that is made of them."""

    def add(self, part: gpd.GeoDataFrame) -> None:
        """Take a part of the landslides, in the CRS of the raster."""

    def write(self, record: Mapping[str, Any], summary: Mapping[str, Any], until: ExitStack) -> None:
        """Write the file from all parts, the provenance and what is said at the end.

        It appears when ``until`` is closed.
        """


@dataclass(frozen=True)
class Layers:
    """What was found.

    Attributes:
        landslides: Polygons, in parts that can be taken once.
        not_seen: Likewise.
        seen_share: Share of the pixels that were seen.
        expected_f1: What the probabilities promise at the best threshold, if they keep their word.
    """

    landslides: Iterable[gpd.GeoDataFrame]
    not_seen: Iterable[gpd.GeoDataFrame]
    seen_share: float
    expected_f1: float


def vectorize(
    raster: Layered,
    scene: Scene | None,
    crs: CRS,
    origin: Mapping[str, str | None],
    *,
    threshold: float,
    min_area: float,
    min_slope: float,
    max_hole: float,
    simplify: float,
    products: Sequence[Product] = (),
    compared: Comparison | None = None,
    old: Old = None,
) -> Layers:
    """Polygons of a probability raster, which is read before this returns.

    Args:
        raster: Of probabilities.
        scene: Gives the terrain attributes where it has terrain.
        crs: Of the polygons.
        origin: Attributes that all landslides share.
        threshold: As all below in ``landslide_polygons``.
        min_area: In m2.
        min_slope: In degrees.
        max_hole: In m2.
        simplify: In metres.
        products: Get the landslides too, as they are taken.
        compared: With what was there before.
        old: As in ``scene_polygons``.

    Raises:
        OutputError: The disk is full.
    """
    grid, pixels = raster.grid, np.zeros(BINS, np.int64)
    found = scene_polygons(
        prefetched(_blocks(raster, scene, compared, pixels, threshold), depth=1),
        transform=grid.transform,
        crs=grid.crs,
        threshold=threshold,
        min_area_m2=min_area,
        min_slope_deg=min_slope,
        max_hole_m2=max_hole,
        simplify_m=simplify,
        old=None if compared is None else old,
    )

    def landslides() -> Iterator[gpd.GeoDataFrame]:
        for part in found.landslides:
            for product in products:
                product.add(part)
            yield _reproject(part, grid, crs).assign(**origin)

    return Layers(
        landslides(),
        (_reproject(part, grid, crs) for part in found.not_seen),
        found.seen / (grid.width * grid.height),
        expected_f1(pixels),
    )


def _reproject(layer: gpd.GeoDataFrame, grid: Grid, crs: CRS) -> gpd.GeoDataFrame:
    """Polygons in another CRS; across the date line longitudes go on beyond 180, else they would span the globe."""
    if crs == grid.crs:
        return layer
    moved = layer.to_crs(crs.to_wkt())
    if crs.is_geographic and np.ptp(grid.lattice(crs)[0]) > 180:
        beyond = shapely.transform(moved.geometry.values, lambda xy: xy + (xy[:, :1] < 0) * [360, 0])
        moved = moved.set_geometry(gpd.GeoSeries(beyond, index=moved.index, crs=moved.crs))
    return moved


def _blocks(
    raster: Layered, scene: Scene | None, compared: Comparison | None, pixels: Counts, threshold: float
) -> Iterator[Block]:
    """Strips from top to bottom; ``pixels`` are counted meanwhile."""
    for window in row_windows(raster.grid):
        p, agreement, uncertainty = (raster.read(window, layer) for layer in LAYERS)
        pixels += count(p)
        terrain = {} if scene is None else _terrain(scene, window, p >= threshold)
        now, before = (None, None) if compared is None else compared.contrasts(window)
        yield Block(int(window.row_off), p, agreement, uncertainty, **terrain, now=now, before=before)


def _terrain(scene: Scene, window: Window, landslide: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    """Elevation, slope and aspect of the pieces of a strip that hold landslides; NaN elsewhere and where unknown."""
    bands = [b for b in TERRAIN_BANDS if b in scene.bands]
    names = [*bands, "aspect"] if "dem" in bands else bands
    layers = np.full((len(names), *landslide.shape), np.nan, np.float32)
    lefts = range(0, scene.grid.width, PIECE) if names else ()
    for hit, pieces in groupby(lefts, key=lambda left: bool(landslide[:, left : left + PIECE].any())):
        if hit:  # pieces side by side are read at once, so that GDAL decodes several tiles at a time
            columns = [*pieces]
            part = np.s_[..., columns[0] : columns[-1] + PIECE]
            wanted = landslide[part]
            layers[part] = _terrain_piece(scene, Window(columns[0], window.row_off, *wanted.shape[::-1]), names, wanted)
    return dict(zip(names, layers, strict=True))


def _terrain_piece(
    scene: Scene, window: Window, names: Sequence[str], landslide: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Terrain (names, h, w), the aspect last and of landslides only; for it a pixel more on each side is read."""
    outer = clip(window, scene.grid, 1)
    top, left = int(window.row_off - outer.row_off), int(window.col_off - outer.col_off)
    inner = np.s_[..., top : top + int(window.height), left : left + int(window.width)]
    x, valid = scene.read_terrain(outer)
    layers = [*np.where(valid, x, np.float32(np.nan))]
    if "aspect" in names:
        where = np.zeros_like(valid)
        where[inner] = landslide
        layers.append(aspect_degrees(x[-1], valid, scene.grid.part(outer), where))
    return np.stack(layers)[inner]
