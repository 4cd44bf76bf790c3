"""Pixel grids on the ground, and the one a scene is mapped on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Geod
from rasterio.coords import BoundingBox
from rasterio.crs import CRS
from rasterio.transform import array_bounds
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from l4s_geo.errors import InputError

#: Models work on a grid whose pixels are within this share of their resolution.
TOLERANCE = 0.2

#: More columns or rows, or more pixels, than any image of the Earth has: a UTM zone has 933,000 rows of 10 m.
SIDE_MAX, PIXELS_MAX = 1_000_000, 10**11

#: Pixels coarser than this many times the models' resolution show no landslide.
COARSEST = 10

#: Points along each axis that tell where a grid lies in another CRS.
LATTICE = 21

WGS84 = CRS.from_epsg(4326)


@dataclass(frozen=True)
class Grid:
    """A raster's place on the ground.

    Attributes:
        crs: Coordinate reference system.
        transform: From (column, row) of pixel corners to coordinates.
        width: Columns.
        height: Rows.
    """

    crs: CRS
    transform: Affine
    width: int
    height: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def bounds(self) -> BoundingBox:
        """Left, bottom, right and top in the units of the CRS."""
        return BoundingBox(*array_bounds(self.height, self.width, self.transform))

    @property
    def is_local(self) -> bool:
        """Whether the CRS is tied to no place on Earth, such as that of an L4S patch."""
        return not (self.crs.is_geographic or self.crs.is_projected)

    @property
    def is_north_up(self) -> bool:
        """Whether rows run from west to east and columns from north to south."""
        t = self.transform
        return bool(t.b == 0 and t.d == 0 and t.a > 0 and t.e < 0)

    def window(self) -> Window:
        """All of it."""
        return Window(0, 0, self.width, self.height)

    def part(self, window: Window) -> Grid:
        """The grid of a window of this one."""
        t = self.transform
        x, y = t.a * window.col_off + t.b * window.row_off, t.d * window.col_off + t.e * window.row_off
        shifted = Affine(t.a, t.b, t.c + x, t.d, t.e, t.f + y)
        return Grid(self.crs, shifted, int(window.width), int(window.height))

    def pixel_size_m(self) -> tuple[float, float]:
        """Width and height of the centre pixel on the ground in metres, whatever the CRS."""
        if self.is_local:
            t = self.transform
            return math.hypot(t.a, t.d), math.hypot(t.b, t.e)
        col, row = self.width / 2, self.height / 2
        points = self.at(np.array([col, col + 1, col]), np.array([row, row, row + 1]))
        lon, lat = convert(self.crs, WGS84, *points)
        geod = Geod(ellps="WGS84")
        _, _, (right, down) = geod.inv(lon[[0, 0]], lat[[0, 0]], lon[1:], lat[1:])
        return float(right), float(down)

    def at(
        self, cols: NDArray[np.float64], rows: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Coordinates of positions in pixels from the upper left corner."""
        t = self.transform
        return t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f

    def lattice(self, crs: CRS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Coordinates in another CRS of points all over the grid, corners too; NaN if none."""
        cols, rows = np.meshgrid(np.linspace(0, self.width, LATTICE), np.linspace(0, self.height, LATTICE))
        return convert(self.crs, crs, *self.at(cols.ravel(), rows.ravel()))

    def same_pixels(self, other: Grid) -> bool:
        """Whether both have the same pixels, up to a thousandth of one."""
        if self.shape != other.shape or self.crs != other.crs:
            return False
        corners = np.array([0.0, self.width, 0.0]), np.array([0.0, 0.0, self.height])
        off = np.hypot(*np.subtract(self.at(*corners), other.at(*corners)))
        return bool(off.max() < 1e-3 * math.sqrt(abs(self.transform.determinant)))


def convert(
    source: CRS, target: CRS, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates in another CRS; NaN for points that it cannot hold.

    Raises:
        InputError: There is no way between both.
    """
    try:
        points = np.array(transform_points(source, target, xs, ys), dtype=np.float64)
    except Exception as e:  # GDAL's errors come through rasterio as private classes
        raise InputError(
            f"Coordinates in {source.to_string()} cannot be converted to {target.to_string()}. Give all "
            "inputs in coordinate systems that are tied to the Earth, such as EPSG:4326 or a UTM zone."
        ) from e
    points[:, ~np.isfinite(points).all(axis=0)] = np.nan
    return points[0], points[1]


def check_grid(grid: Grid, path: str) -> None:
    """Raises InputError for a grid that no raster of the Earth's surface can have."""
    t = grid.transform
    sides = math.hypot(t.a, t.d), math.hypot(t.b, t.e)
    if not (all(map(math.isfinite, t[:6])) and min(sides) > 1e-12 and abs(t.determinant) > 1e-6 * sides[0] * sides[1]):
        raise InputError(
            f"{path} has pixels without a size (geotransform {', '.join(f'{v:g}' for v in t.to_gdal())}). Give it "
            "another position, for instance with gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM."
        )
    if grid.crs.to_wkt().startswith(("GEOCCS", "VERT")):
        raise InputError(f"{path} is in {grid.crs}, in which no map can be drawn. Give it the CRS of its grid.")
    if max(grid.shape) > SIDE_MAX or grid.width * grid.height > PIXELS_MAX:
        raise InputError(
            f"{path} would have {grid.width:,} x {grid.height:,} pixels, more than any image. Is the file damaged? If "
            "not, cut it to the area to be mapped."
        )


def model_grid(native: Grid, resolution: float | None) -> Grid:
    """The grid to map on.

    Args:
        native: The scene's own grid.
        resolution: Of the models, in metres; None keeps the scene's grid.

    Returns:
        The scene's own grid where it is north-up, in a projected CRS and within ``TOLERANCE`` of the
        resolution, or where it has no place on Earth; else one in the UTM zone of the scene's centre.

    Raises:
        InputError: The scene cannot be placed in a UTM zone, or its pixels are far too coarse.
    """
    if resolution is not None and max(native.pixel_size_m()) > COARSEST * resolution:
        raise InputError(
            f"The scene's pixels of {max(native.pixel_size_m()):,.0f} m are far too coarse for models of "
            f"{resolution:g} m: they show no landslide. Is the coordinate system the right one? Degrees may have been "
            "taken for metres, or the other way round."
        )
    if resolution is None or native.is_local or (native.is_north_up and _fits(native, resolution)):
        return native
    utm = utm_zone(native)
    xs, ys = native.lattice(utm)
    if np.isnan(xs).any():
        raise InputError(f"The scene does not fit into {utm}. Cut it to the area to be mapped.")
    left, top = math.floor(xs.min() / resolution), math.ceil(ys.max() / resolution)
    width, height = math.ceil(xs.max() / resolution) - left, top - math.floor(ys.min() / resolution)
    return Grid(utm, Affine(resolution, 0, left * resolution, 0, -resolution, top * resolution), width, height)


def utm_zone(grid: Grid) -> CRS:
    """CRS of the UTM zone (WGS 84) that holds the grid's centre."""
    centre = grid.at(np.array([grid.width / 2]), np.array([grid.height / 2]))
    lon, lat = (float(v[0]) for v in convert(grid.crs, WGS84, *centre))
    if not (math.isfinite(lon) and abs(lat) <= 84):
        raise InputError(
            f"The scene's centre (longitude {lon:g}, latitude {lat:g}) lies in no UTM zone. Check its "
            "coordinate system and geotransform."
        )
    zone = int((lon + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)


def _fits(grid: Grid, resolution: float) -> bool:
    sizes = np.array(grid.pixel_size_m())
    return bool(grid.crs.is_projected and np.all(abs(sizes / resolution - 1) <= TOLERANCE))
