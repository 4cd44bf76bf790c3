"""Lengths and areas on the ellipsoid, for many geometries at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS as ProjCRS
from pyproj import Transformer
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertAzimuthalEqualAreaConversion
from rasterio.crs import CRS

from l4s_geo.outlines import Floats, Geometries

Projection = Callable[[Floats], Floats]

#: Edges longer than this many pixels get vertices before they are projected, since a straight line is not
#: straight in every projection.
LONG_EDGE = 100


@dataclass(frozen=True)
class EqualArea:
    """Metres around a pixel, in a Lambert azimuthal equal-area projection on the scene's own ellipsoid.

    Areas are those on the ellipsoid everywhere. Lengths are off by d^2 / 8 R^2 at distance d from the middle
    (Snyder 1987, doi:10.3133/pp1395): 4 parts in 100,000 at 110 km, the size of a Sentinel-2 tile. Projecting
    all vertices at once is much faster than geodesics one by one. Coordinates of a local system, without a
    place on Earth, are taken as plane.

    Attributes:
        transform: From (column, row) to coordinates.
        forward: (n, 2) coordinates to (n, 2) metres.
        inverse: And back.
    """

    transform: Affine
    forward: Projection
    inverse: Projection

    @classmethod
    def around(cls, transform: Affine, crs: CRS, column: float, row: float) -> EqualArea:
        """Around a pixel of a raster in any coordinate system."""
        source = ProjCRS(crs.to_wkt())
        base = source.geodetic_crs
        if base is None:
            unit = source.axis_info[0].unit_conversion_factor if source.axis_info else 1.0
            return cls(transform, lambda xy: xy * unit, lambda xy: xy / unit)
        ((lon, lat),) = _projection(source, base)(_apply(transform, np.array([[column, row]])))
        target = ProjectedCRS(LambertAzimuthalEqualAreaConversion(lat, lon), geodetic_crs=base)
        return cls(transform, _projection(source, target), _projection(target, source))

    def pixel_area(self, columns: Floats, rows: Floats) -> Floats:
        """Square metres of the pixels at (n,) places."""
        corner, right, below = (
            self.forward(_apply(self.transform, np.column_stack([columns + dx, rows + dy])))
            for dx, dy in ((0, 0), (1, 0), (0, 1))
        )
        (ax, ay), (bx, by) = (right - corner).T, (below - corner).T
        area: Floats = np.abs(ax * by - ay * bx)
        return area

    def on_map(self, outlines: Geometries) -> Geometries:
        """Pixel coordinates to those of the map."""
        return each(outlines, lambda xy: _apply(self.transform, xy))

    def flat(self, geometry: Geometries) -> Geometries:
        """Coordinates of the map to metres."""
        a, b, _, d, e, _ = self.transform[:6]
        limit = LONG_EDGE * max(np.hypot(a, d), np.hypot(b, e))
        left, bottom, right, top = shapely.bounds(geometry).T
        wide = np.hypot(right - left, top - bottom) > limit  # the others have no such edge
        dense = geometry.copy()
        dense[wide] = shapely.segmentize(geometry[wide], limit)
        return each(dense, self.forward)


def _projection(source: ProjCRS, target: ProjCRS) -> Projection:
    transformer = Transformer.from_crs(source, target, always_xy=True)
    return lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))


def _apply(transform: Affine, xy: Floats) -> Floats:
    a, b, c, d, e, f = transform[:6]
    x, y = xy.T
    return np.column_stack([a * x + b * y + c, d * x + e * y + f])


def each(geometry: Geometries, project: Projection) -> Geometries:
    """The geometries with every vertex projected, all at once."""
    projected: Geometries = np.asarray(shapely.transform(geometry, project), dtype=object)
    return projected
