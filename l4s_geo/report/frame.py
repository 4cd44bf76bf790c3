"""The plane in which a map is drawn: metres to the right and downwards, whatever the CRS and the rotation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Geod

from l4s_geo.scene.grid import WGS84, Grid, convert

Floats = NDArray[np.float64]

#: Points along each axis from which longitude and latitude are interpolated: on a Sentinel-2 tile that is right to
#: less than a metre, since between points 4.6 km apart the curvature leaves d^2 / 8 R.
LATTICE = 25


@dataclass(frozen=True)
class Frame:
    """The plane of a map.

    Attributes:
        grid: Whose ground is shown.
        left: Coordinate of the left border, in the CRS of the grid.
        top: Of the upper border.
        scale: Metres of a unit of the CRS to the right and upwards, in the middle.
        size: Width and height in metres.
    """

    grid: Grid
    left: float
    top: float
    scale: tuple[float, float]
    size: tuple[float, float]

    @classmethod
    def of(cls, grid: Grid) -> Frame:
        """Around all of a grid."""
        xs, ys = _corners(grid)
        right, up = _units(grid)
        size = (float(np.ptp(xs)) * right, float(np.ptp(ys)) * up)
        return cls(grid, float(xs.min()), float(ys.max()), (right, up), size)

    def place(self, xy: Floats) -> Floats:
        """Coordinates (n, 2) in the CRS to metres (n, 2)."""
        return (xy - [self.left, self.top]) * [self.scale[0], -self.scale[1]]

    def matrix(self, transform: Affine) -> Affine:
        """From pixels to metres, for a raster in the CRS of the grid."""
        onto = Affine(self.scale[0], 0, -self.left * self.scale[0], 0, -self.scale[1], self.top * self.scale[1])
        return onto * transform

    def outline(self) -> Floats:
        """Corners (4, 2) of the grid in metres."""
        return self.place(np.column_stack(_corners(self.grid)))

    def lonlat(self, count: int = LATTICE) -> Floats | None:
        """Longitude and latitude (2, count, count) of points from the upper left to the lower right.

        NaN where a point has none; None where the whole grid has no place on Earth. Longitudes go on beyond 180.
        """
        if self.grid.is_local:
            return None
        x, y = (np.linspace(0, side, count) for side in self.size)
        xs, ys = np.meshgrid(self.left + x / self.scale[0], self.top - y / self.scale[1])
        lon, lat = (v.reshape(count, count) for v in convert(self.grid.crs, WGS84, xs.ravel(), ys.ravel()))
        if np.nanmax(lon, initial=-180) - np.nanmin(lon, initial=180) > 180:
            lon = np.where(lon < 0, lon + 360, lon)
        return np.stack([lon, lat])

    def north(self) -> float | None:
        """Degrees clockwise from upwards to true north, in the middle; None without a place on Earth."""
        if self.grid.is_local:
            return None
        x, y = self._middle()
        lon, lat = convert(self.grid.crs, WGS84, np.array([x]), np.array([y]))
        step = 1e-3 if lat[0] < 89.9 else -1e-3
        there = np.column_stack(convert(WGS84, self.grid.crs, lon, lat + step))
        (right, down), *_ = (self.place(there) - self.place(np.array([[x, y]]))) * np.sign(step)
        return math.degrees(math.atan2(right, -down)) if np.isfinite(right) else None

    def _middle(self) -> tuple[float, float]:
        return self.left + self.size[0] / self.scale[0] / 2, self.top - self.size[1] / self.scale[1] / 2


def _corners(grid: Grid) -> tuple[Floats, Floats]:
    w, h = float(grid.width), float(grid.height)
    return grid.at(np.array([0, w, w, 0]), np.array([0, 0, h, h]))


def _units(grid: Grid) -> tuple[float, float]:
    """Metres of a unit of the CRS along both axes, in the middle of a grid."""
    if grid.is_local:
        return 1.0, 1.0
    xs, ys = (float(v.mean()) for v in _corners(grid))
    step = math.sqrt(abs(grid.transform.determinant))
    lon, lat = convert(grid.crs, WGS84, np.array([xs, xs + step, xs]), np.array([ys, ys, ys + step]))
    _, _, (right, up) = Geod(ellps="WGS84").inv(lon[[0, 0]], lat[[0, 0]], lon[1:], lat[1:])
    if not (right > 0 and up > 0):  # at a pole, or where the CRS ends
        return 1.0, 1.0
    return float(right / step), float(up / step)
