"""Areas and footprints on the globe, in degrees, and how much of one the other covers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pystac
import shapely
from numpy.typing import NDArray
from shapely import Geometry
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from l4s_geo.catalogue.items import DEFECTS, Box
from l4s_geo.errors import InputError
from l4s_geo.scene.grid import WGS84
from l4s_geo.vector import read_polygons


def parse_bbox(text: str) -> BaseGeometry:
    """``W,S,E,N`` in degrees; across the date line where W is greater than E.

    Raises:
        InputError: It is something else.
    """
    try:
        west, south, east, north = (float(v) for v in re.split(r"[,\s]+", text.strip()))
    except ValueError as e:
        raise InputError(f"--bbox {text}: four numbers are needed, west,south,east,north in degrees.") from e
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90 and west != east):
        raise InputError(
            f"--bbox {text}: these are no degrees of longitude and latitude in the order west,south,east,north."
        )
    if west < east:
        return shapely.box(west, south, east, north)
    return shapely.union_all([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def read_area(path: str) -> BaseGeometry:
    """The polygons of a vector file, in degrees.

    Raises:
        InputError: It cannot be read, or holds none.
    """
    polygons = read_polygons(path, "aoi")
    if not len(polygons):
        raise InputError(f"{path} holds no polygons. Draw the outline of the area of interest.")
    lonlat = polygons.to_crs(WGS84).geometries
    area = shapely.union_all(shapely.make_valid(lonlat.to_numpy()))
    left, bottom, right, top = area.bounds
    if not (np.isfinite([left, bottom, right, top]).all() and -90 <= bottom <= top <= 90):
        raise InputError(f"{path} reaches beyond the Earth ({left:g}..{right:g}, {bottom:g}..{top:g}). Check its CRS.")
    return _one_turn(area)


def footprint(item: pystac.Item) -> BaseGeometry:
    """Outline of an item in degrees, its bounding box where it has none; empty where neither is usable."""
    try:
        found = shapely.make_valid(shape(item.geometry) if item.geometry else shapely.box(*_flat(item.bbox or [])))
        left, bottom, right, top = found.bounds
        if not (-720 <= left <= right <= 720 and -90 <= bottom <= top <= 90):  # NaN too
            return shapely.Polygon()
        if right - left > 180:  # the outline goes around the other way: longitudes belong beyond the date line
            found = shapely.make_valid(shapely.transform(found, lambda xy: xy + (xy[:, :1] < 0) * [360, 0]))
        return _one_turn(found)
    except (*DEFECTS, shapely.errors.ShapelyError):
        return shapely.Polygon()


def _flat(bbox: Sequence[float]) -> list[float]:
    """West, south, east, north; east beyond 180 where the box crosses the date line."""
    west, south, east, north = (*bbox[:2], *bbox[len(bbox) // 2 :][:2])
    return [west, south, east + 360 * (east < west), north]


def _one_turn(area: BaseGeometry) -> BaseGeometry:
    """The same within 180 degrees west and east."""
    turns = [shapely.box(-180 + 360 * n, -90, 180 + 360 * n, 90) for n in (-1, 0, 1)]
    parts = [shapely.transform(area & turn, _shift(-360 * n)) for n, turn in zip((-1, 0, 1), turns, strict=True)]
    return shapely.union_all(parts)


def _shift(degrees: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda xy: xy + np.array([degrees, 0])


def share_covered(found: Geometry, area: BaseGeometry) -> float:
    """Share of an area (or of its points, or lines) that lies in a footprint; both in degrees."""
    flat, other = (shapely.transform(g, _equal_area) for g in (area, found))
    if not flat.area:
        return float(bool(shapely.intersects(flat, other)))
    return min(1.0, float(shapely.area(flat & other) / flat.area))


def _equal_area(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lambert's cylindrical equal-area projection, in which shares are those on the sphere."""
    return np.column_stack([lonlat[:, 0], np.degrees(np.sin(np.radians(lonlat[:, 1])))])


def boxes_of(area: BaseGeometry) -> tuple[Box, ...]:
    """West, south, east, north of an area; of both sides of the date line where it lies on both, far from 0."""
    left, bottom, right, top = area.bounds
    if left > -180 or right < 180:
        return ((left, bottom, right, top),)
    sides = (area & shapely.box(-180, -90, 0, 90), area & shapely.box(0, -90, 180, 90))
    return tuple(tuple(side.bounds) for side in sides if not side.is_empty)
