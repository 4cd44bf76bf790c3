"""Landslide polygons and their attributes from strips of probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS as ProjCRS
from rasterio.crs import CRS

from l4s_geo.before.novelty import NO, novelty
from l4s_geo.components import PLACES, Keep, Strip, Totals, Tracer
from l4s_geo.equal_area import EqualArea, each
from l4s_geo.outlines import Floats, Geometries, Ints
from l4s_geo.spool import Spool

Layer = NDArray[np.float32] | None

#: What is gathered over the pixels of a landslide beside their places. ``edge`` is 1 beside what was not seen,
#: ``sure`` is what of the probability is left when the networks' disagreement is taken off, ``east`` and ``north`` are
#: the unit vector of the aspect.
LAYERS = ("edge", "prob", "agreement", "sure", "dem", "slope", "east", "north", "now", "before")

#: What happens to landslides that are not new; None: they were not compared with what was there before.
Old = Literal["drop", "flag"] | None

#: Polygons that are in memory at a time.
PART = 10_000

#: Below this length of the mean vector slopes face all ways and the mean aspect says nothing.
NO_ASPECT = 1e-6


@dataclass(frozen=True)
class Block:
    """Full-width rows of a scene.

    Attributes:
        row: First row.
        prob: (h, w) float32 probability of landslide, NaN where nothing was seen.
        agreement: (h, w) float32 share of the ensemble's members over the threshold, or None.
        uncertainty: (h, w) float32 standard deviation of the members' probabilities, or None.
        dem: (h, w) float32 elevation in metres, NaN where unknown, or None.
        slope: (h, w) float32 degrees, NaN where unknown, or None.
        aspect: (h, w) float32 direction that the slope faces, degrees clockwise from north, NaN where unknown
            or flat, or None.
        now: (h, w) float32 how far pixels stand out from the ground around, NaN where unknown, or None.
        before: (h, w) float32 likewise before the event, NaN where ``now`` is.
    """

    row: int
    prob: NDArray[np.float32]
    agreement: Layer = None
    uncertainty: Layer = None
    dem: Layer = None
    slope: Layer = None
    aspect: Layer = None
    now: Layer = None
    before: Layer = None


@dataclass(frozen=True)
class ScenePolygons:
    """Layers of a scene, in parts that can be taken once; at least one each, with at most ``PART`` rows.

    Attributes:
        landslides: One row per landslide, ordered by the first pixel from the top left; valid MultiPolygons; columns
            ``id area_m2 perimeter_m length_m width_m prob_mean prob_max agreement uncertainty new elev_min elev_max
            relief_m slope_mean slope_max aspect_deg edge geometry``. Length and width are the sides of the smallest
            rotated rectangle around. The uncertainty is 1 minus the highest probability of a pixel less the members'
            standard deviation there; ``new`` is as in ``novelty``. What was not given is NaN or None. An empty result
            has all columns.
        not_seen: Likewise what was not seen: nodata, cloud; columns ``id area_m2 geometry``.
        seen: Number of pixels that were seen.
    """

    landslides: Iterator[gpd.GeoDataFrame]
    not_seen: Iterator[gpd.GeoDataFrame]
    seen: int


def scene_polygons(
    blocks: Iterable[Block],
    *,
    transform: Affine,
    crs: CRS,
    threshold: float,
    min_area_m2: float = 0.0,
    min_slope_deg: float = 0.0,
    max_hole_m2: float = 0.0,
    simplify_m: float = 0.0,
    old: Old = None,
) -> ScenePolygons:
    """Make polygons of the pixels whose probability reaches the threshold, and of those that were not seen.

    Pixels that touch, also at corners, are one landslide. Areas and lengths are measured in an equal-area
    projection around the result (see ``EqualArea``), which gives geodesic areas.

    All blocks are read, once, before this returns; what was found waits on disk, so that memory grows neither with
    the scene nor with the number of landslides.

    Args:
        blocks: Strips of one scene from top to bottom, without gaps or overlap; at most two are held.
        transform: From (column, row) to coordinates.
        crs: Of the coordinates.
        threshold: Probability from which on a pixel is landslide.
        min_area_m2: Landslides whose pixels cover less are left out; closed holes and simplification do not
            count.
        min_slope_deg: Likewise those whose ground is flatter on average; where the slope is not known they stay.
        max_hole_m2: Holes smaller than this are closed, also where nothing was seen. A landslide in such a
            hole becomes part of the one around it, without its statistics.
        simplify_m: Straighten outlines by about this many metres; none will cross another (coverage
            simplification after Visvalingam and Whyatt 1993, doi:10.1179/000870493786962263). This needs all
            landslides at once: they come in one part.
        old: What happens to landslides that were there before; None where blocks have no ``now`` and ``before``.

    Returns:
        The layers, in ``crs``.

    Raises:
        ValueError: Blocks with gaps or of different width.
        OutputError: The disk is full.
    """
    tracers = Tracer(LAYERS, _wanted(transform, crs, min_area_m2, min_slope_deg, old)), Tracer(())
    spools = Spool((*PLACES, *LAYERS)), Spool(PLACES)
    seen = 0
    for strips in _strips(blocks, threshold):
        seen += int(np.count_nonzero(~strips[1].mask))
        for tracer, spool, strip in zip(tracers, spools, strips, strict=True):
            spool.add(tracer.add(strip))
    for tracer, spool in zip(tracers, spools, strict=True):
        spool.add(tracer.end())
    landslides = _landslide_parts(spools[0], transform, crs, max_hole_m2, simplify_m, old)
    return ScenePolygons(landslides, _not_seen_parts(spools[1], transform, crs), seen)


def _wanted(transform: Affine, crs: CRS, min_area_m2: float, min_slope_deg: float, old: Old) -> Keep:
    """Which components cover an area and are not known to be flat or old."""
    corner = EqualArea.around(transform, crs, 0, 0)

    def keep(totals: Totals) -> NDArray[np.bool_]:
        pixel = corner.pixel_area(totals.mean("column"), totals.mean("row"))
        large = totals.count("place") * pixel >= min_area_m2 * (1 - 1e-9)
        wanted = large & ~(totals.mean("slope") < min_slope_deg)  # a comparison with NaN is false
        return wanted & (_new(totals) != NO) if old == "drop" else wanted

    return keep


def _landslide_parts(
    spool: Spool, transform: Affine, crs: CRS, max_hole_m2: float, simplify_m: float, old: Old
) -> Iterator[gpd.GeoDataFrame]:
    metric = EqualArea.around(transform, crs, *_middle(spool.bounds))
    holes, first = np.empty(0, dtype=object), 1
    for part in spool.parts(max(len(spool), 1) if simplify_m > 0 else PART):
        totals, outlines = part.totals, part.geometry
        if max_hole_m2 > 0:
            outlines, apart, holes = _close_holes(outlines, metric, max_hole_m2, holes)
            totals, outlines = totals[apart], outlines[apart]
        geometry = metric.on_map(outlines)
        if simplify_m > 0:
            geometry = _simplify(geometry, metric, simplify_m)
        ids = np.arange(first, first + len(geometry))
        columns = {"id": ids} | _sizes(metric.flat(geometry)) | _statistics(totals, old)
        yield gpd.GeoDataFrame(columns, geometry=geometry, crs=ProjCRS(crs.to_wkt()))
        first += len(ids)


def _not_seen_parts(spool: Spool, transform: Affine, crs: CRS) -> Iterator[gpd.GeoDataFrame]:
    metric = EqualArea.around(transform, crs, *_middle(spool.bounds))
    first = 1
    for part in spool.parts(PART):
        geometry = metric.on_map(part.geometry)
        ids = np.arange(first, first + len(geometry))
        columns = {"id": ids, "area_m2": shapely.area(metric.flat(geometry))}
        yield gpd.GeoDataFrame(columns, geometry=geometry, crs=ProjCRS(crs.to_wkt()))
        first += len(ids)


def _middle(bounds: Floats) -> tuple[float, float]:
    """Column and row in the middle of what was found."""
    left, top, right, bottom = np.nan_to_num(bounds)
    return (left + right) / 2, (top + bottom) / 2


def _strips(blocks: Iterable[Block], threshold: float) -> Iterator[tuple[Strip, Strip]]:
    """Of each block what reaches the threshold and what was not seen.

    One block is held back to see what lies below its last row.
    """
    above = held = None
    for block in _in_order(blocks):
        unseen = np.isnan(block.prob)
        if held is not None:
            yield _landslide_strip(*held, above, unseen[0], threshold), Strip(held[0].row, held[1], {})
            above = held[1][-1]
        held = block, unseen
    if held is not None:
        yield _landslide_strip(*held, above, None, threshold), Strip(held[0].row, held[1], {})


def _in_order(blocks: Iterable[Block]) -> Iterator[Block]:
    """Check that blocks continue each other."""
    row = width = None
    for block in blocks:
        h, w = block.prob.shape
        if (row, width) not in ((None, None), (block.row, w)):
            raise ValueError(
                f"The block at row {block.row} is {w} wide; row {row} and width {width} were expected. "
                "Blocks must be full-width strips from top to bottom."
            )
        row, width = block.row + h, w
        yield block


def _landslide_strip(
    block: Block,
    unseen: NDArray[np.bool_],
    above: NDArray[np.bool_] | None,
    below: NDArray[np.bool_] | None,
    threshold: float,
) -> Strip:
    """Mask and layers of a block; ``above`` and ``below`` are the unseen pixels beside it, None outside."""
    mask = block.prob >= threshold
    pixels = np.flatnonzero(mask)
    around = np.pad(unseen, 1, constant_values=True)
    for line, beside in ((0, above), (-1, below)):
        if beside is not None:
            around[line, 1:-1] = beside
    corner = pixels + 2 * (pixels // mask.shape[1])
    edge = np.zeros(len(pixels), np.bool_)
    for dy, dx in np.ndindex(3, 3):
        edge |= around.ravel()[corner + (dy * around.shape[1] + dx)]

    def at(layer: Layer) -> Layer:
        return None if layer is None else layer.ravel()[pixels]

    aspect = at(block.aspect)
    east, north = (None, None) if aspect is None else (np.sin(np.radians(aspect)), np.cos(np.radians(aspect)))
    sure = None if block.uncertainty is None else at(block.prob - block.uncertainty)
    values = (
        edge, at(block.prob), at(block.agreement), sure, at(block.dem), at(block.slope), east, north,
        at(block.now), at(block.before),
    )  # fmt: skip
    return Strip(block.row, mask, dict(zip(LAYERS, values, strict=True)))


def _close_holes(
    outlines: Geometries, metric: EqualArea, limit_m2: float, above: Geometries
) -> tuple[Geometries, NDArray[np.bool_], Geometries]:
    """Close holes smaller than a limit, also those that are shut off only by a corner.

    Args:
        outlines: Of one part, in order.
        metric: Measures the holes.
        limit_m2: The limit.
        above: Closed holes of earlier parts that reach into this one.

    Returns:
        The outlines; which of them do not lie in a closed hole of another, (n,) bool; and the closed holes that
        reach beyond this part.
    """
    parts = shapely.get_num_geometries(outlines)
    rings = shapely.get_num_interior_rings(shapely.get_geometry(outlines, 0))
    holed = np.flatnonzero((parts > 1) | (rings > 0))
    # What a frame around leaves of the outside and of the holes; the outside is the part that fills the frame
    frames = shapely.box(*(shapely.bounds(outlines[holed]) + np.array([-1, -1, 1, 1])).T)
    gaps, owner = shapely.get_parts(shapely.difference(frames, outlines[holed]), return_index=True)
    inside = ~(shapely.bounds(gaps) == shapely.bounds(frames[owner])).all(axis=1)
    holes, owner = gaps[inside], holed[owner[inside]]
    small = shapely.area(metric.flat(metric.on_map(holes))) < limit_m2
    holes, owner = holes[small], owner[small]

    closed = outlines.copy()
    hosts, rank = np.unique(owner, return_inverse=True)
    closed[hosts] = shapely.union(outlines[hosts], _multipolygons(holes, rank, len(hosts)))
    # A landslide begins below the one around it and so comes after it, but maybe not in the same part
    holes = np.concatenate([above, holes])
    apart = np.ones(len(outlines), np.bool_)
    apart[shapely.STRtree(outlines).query(holes, predicate="contains")[1]] = False
    reached = shapely.bounds(outlines[-1:])[:, 1].max(initial=0)
    return _multi(closed), apart, holes[shapely.bounds(holes)[:, 3] > reached]


def _simplify(geometry: Geometries, metric: EqualArea, tolerance_m: float) -> Geometries:
    """Fewer vertices, in metres so that both axes count alike."""
    fewer = shapely.coverage_simplify(each(geometry, metric.forward), tolerance_m)
    valid = shapely.make_valid(fewer, method="structure", keep_collapsed=False)
    return _multi(each(valid, metric.inverse))


def _multi(geometry: Geometries) -> Geometries:
    """Polygons and MultiPolygons, all as MultiPolygon."""
    parts, owner = shapely.get_parts(geometry, return_index=True)
    return _multipolygons(parts, owner, len(geometry))


def _multipolygons(polygons: Geometries, owner: Ints, n: int) -> Geometries:
    """Collect polygons by their owner, 0 to ``n - 1``, into (n,) MultiPolygon."""
    order = np.argsort(owner, kind="stable")
    out = np.empty(n, dtype=object)
    shapely.multipolygons(polygons[order], indices=owner[order], out=out)
    return out


def _sizes(flat: Geometries) -> dict[str, Floats]:
    """Areas and lengths of outlines in metres."""
    corners = shapely.get_coordinates(shapely.oriented_envelope(flat))
    sides = np.hypot(*np.moveaxis(np.diff(corners.reshape(-1, 5, 2), axis=1), -1, 0))
    return {
        "area_m2": shapely.area(flat),
        "perimeter_m": shapely.length(flat),
        "length_m": sides[:, :2].max(axis=1),
        "width_m": sides[:, :2].min(axis=1),
    }


def _new(totals: Totals) -> NDArray[np.object_]:
    """Which components are new."""
    return novelty(totals.count("place"), totals.count("before"), totals.mean("now"), totals.mean("before"))


def _statistics(totals: Totals, old: Old) -> dict[str, Any]:
    """Attributes of pixels by name: confidence, what was there before, and terrain."""
    east, north = totals.mean("east"), totals.mean("north")
    # The second modulo: the first one makes 360 of what is a hair below 0
    aspect = np.degrees(np.arctan2(east, north)) % 360 % 360
    low, high = totals.low("dem"), totals.high("dem")
    return {
        "prob_mean": totals.mean("prob"),
        "prob_max": totals.high("prob"),
        "agreement": totals.mean("agreement"),
        "uncertainty": np.clip(1 - totals.high("sure"), 0, 1),
        "new": pd.array([None] * len(totals) if old is None else _new(totals), dtype="string"),
        "elev_min": low,
        "elev_max": high,
        "relief_m": high - low,
        "slope_mean": totals.mean("slope"),
        "slope_max": totals.high("slope"),
        "aspect_deg": np.where(np.hypot(east, north) > NO_ASPECT, aspect, np.nan),
        "edge": totals.high("edge") > 0,
    }
