"""Slope from elevation."""

from __future__ import annotations

from functools import cache
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from l4s_geo.scene.grid import Grid

# WGS 84: semi-major axis in metres and squared eccentricity
_A, _E2 = 6378137.0, 0.00669437999014


def slope_degrees(dem: NDArray[np.float32], valid: NDArray[np.bool_], grid: Grid) -> NDArray[np.float32]:
    """Slope by the third-order finite difference of Horn (1981), "Hill shading and the reflectance map".

    A missing neighbour (nodata or outside) continues the plane through the others, so a tilted plane has its
    slope up to the very border.

    Args:
        dem: (h, w) elevation, metres.
        valid: (h, w) where ``dem`` is known.
        grid: Of ``dem``. Pixels of a geographic CRS are taken in metres at each row's latitude.

    Returns:
        (h, w) slope in degrees, 0 where ``dem`` is not known.
    """
    steepest = np.hypot(*_gradient(dem, valid, grid))
    slope: NDArray[np.float32] = np.where(valid, np.degrees(np.arctan(steepest)), 0).astype(np.float32)
    return slope


def aspect_degrees(
    dem: NDArray[np.float32], valid: NDArray[np.bool_], grid: Grid, where: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Direction that the slope faces, with the gradient of ``slope_degrees``.

    Args:
        dem: (h, w) elevation, metres.
        valid: (h, w) where ``dem`` is known.
        grid: Of ``dem``.
        where: (h, w) where it is wanted.

    Returns:
        (h, w) degrees clockwise from the grid's north, NaN where flat, not known or not wanted.
    """
    east, north = _gradient(dem, valid, grid, where)
    aspect = np.full(dem.shape, np.nan, np.float32)
    aspect[where] = np.where(np.hypot(east, north) > 0, np.degrees(np.arctan2(-east, -north)) % 360, np.nan)
    return aspect


def _gradient(
    dem: NDArray[np.float32], valid: NDArray[np.bool_], grid: Grid, where: NDArray[np.bool_] | EllipsisType = ...
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rise per metre to the east and to the north, at all or some of the pixels, NaN where ``dem`` is not known."""
    h, w = dem.shape
    padded = np.pad(np.where(valid, dem, np.nan).astype(np.float64), 1, constant_values=np.nan)

    def stored(row: int, col: int) -> NDArray[np.float64]:
        """The neighbour so many rows and columns away."""
        there: NDArray[np.float64] = padded[1 + row : 1 + row + h, 1 + col : 1 + col + w][where]
        return there

    @cache
    def at(row: int, col: int) -> NDArray[np.float64]:
        """Likewise, continued where missing."""
        there, centre = stored(row, col), stored(0, 0)
        if row and col:
            return np.where(np.isnan(there), at(row, 0) + at(0, col) - centre, there)
        opposite = stored(-row, -col)
        continued = np.where(np.isnan(opposite), centre, 2 * centre - opposite)
        return np.where(np.isnan(there), continued, there)

    per_col = at(-1, 1) + 2 * at(0, 1) + at(1, 1) - at(-1, -1) - 2 * at(0, -1) - at(1, -1)
    per_row = at(1, -1) + 2 * at(1, 0) + at(1, 1) - at(-1, -1) - 2 * at(-1, 0) - at(-1, 1)
    # along the axes of the CRS per metre, from that along columns and rows per pixel
    to_pixel = ~grid.transform
    east, north = (np.broadcast_to(metres, (h, w))[where] for metres in metres_per_unit(grid))
    per_x, per_y = per_col * to_pixel.a + per_row * to_pixel.d, per_col * to_pixel.b + per_row * to_pixel.e
    return per_x / (8 * east), per_y / (8 * north)


def metres_per_unit(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metres per unit of the CRS, east and north, each (h, 1) by row (on WGS 84, for degrees)."""
    rows = np.arange(grid.height)[:, None] + 0.5
    if not grid.crs.is_geographic:
        factor = grid.crs.linear_units_factor[1] if grid.crs.is_projected else 1.0
        return np.full(rows.shape, factor), np.full(rows.shape, factor)
    degree = grid.crs.units_factor[1]
    lat = (grid.transform.d * grid.width / 2 + grid.transform.e * rows + grid.transform.f) * degree
    curvature = 1 - _E2 * np.sin(lat) ** 2
    east = _A * np.cos(lat) / np.sqrt(curvature)
    north = _A * (1 - _E2) / curvature**1.5
    return east * degree, north * degree
