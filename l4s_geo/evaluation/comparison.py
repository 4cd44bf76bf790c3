"""A landslide map and labels on one grid, strip by strip: raster or polygons on either side, in any CRS.

The common grid is the truth's own when the truth is a raster, so that labels are never resampled, else the
prediction's, and a 10 m UTM grid when both are polygons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, floor, nan
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS as CRSText
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from shapely.geometry import Polygon

from l4s_geo.errors import InputError, reason
from l4s_geo.metrics import IGNORE
from l4s_geo.scene import Grid
from l4s_geo.vector import Mask, Polygons, existing, is_vector, layer_names, need_crs, read_polygons

#: Pixel of the grid on which polygons are compared with polygons, in metres: Sentinel-2's.
PIXEL_M = 10.0

#: Landslide probability (h, w) float32 of a window of the common grid, NaN where unknown.
Layer = Callable[[Window], NDArray[np.float32]]


@dataclass(frozen=True)
class Strip:
    """Full-width rows of the common grid, with some rows above and below where there are any.

    Attributes:
        pixel_m2: Area of a pixel.
        core: Rows of the arrays that are the strip itself.
        prob: (h, w) float32 probability of landslide, NaN where not seen.
        uncertainty: (h, w) float32, NaN where not seen; None where the prediction has none.
        landslide: (h, w) bool, landslide in the truth, counted or not.
        known: (h, w) bool, pixels that are counted.
    """

    pixel_m2: float
    core: slice
    prob: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None
    landslide: NDArray[np.bool_]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """A prediction and its truth on one grid.

    Attributes:
        grid: The common grid.
        has_probabilities: Whether the prediction is a raster of probabilities.
        threshold: Probability from which on such a raster was mapped, None where it does not say.
    """

    grid: Grid
    has_probabilities: bool
    threshold: float | None
    _prob: Layer
    _uncertainty: Layer | None
    _truth: Layer
    _truth_path: str
    _inside: Layer | None
    _excluded: Mask | None

    @property
    def has_uncertainty(self) -> bool:
        """Whether the prediction has a band ``uncertainty`` beside its probabilities."""
        return self._uncertainty is not None

    @classmethod
    def open(
        cls,
        pred: str | Path,
        truth: str | Path,
        stack: ExitStack,
        aoi: str | Path | None = None,
        exclude: str | Path | None = None,
    ) -> Pair:
        """Open both; arguments as in ``l4s_geo.evaluation.evaluate.evaluate``.

        Raises:
            InputError: A file is missing or unreadable, a CRS is missing, or the inputs do not overlap.
        """
        mapped, reference = _open(pred, stack), _open(truth, stack)
        area = None if aoi is None else _area(existing(aoi))
        grid = _common_grid(mapped, reference, area)
        raster = mapped if isinstance(mapped, _Raster) and not mapped.is_mask else None
        return cls(
            grid=grid,
            has_probabilities=raster is not None,
            threshold=raster.threshold if raster else None,
            _prob=mapped.on(grid),
            _uncertainty=raster.on(grid, raster.uncertainty) if raster and raster.uncertainty else None,
            _truth=reference.on(grid),
            _truth_path=reference.path,
            _inside=area.on(grid) if area else None,
            _excluded=read_polygons(existing(exclude)).near(grid).burn(grid) if exclude else None,
        )

    def strips(self, first: int, end: int, height: int, halo: int) -> Iterator[Strip]:
        """Strips of rows ``first`` up to, not including, ``end``, with ``halo`` more rows of them on each side.

        Raises:
            InputError: A file is damaged or holds other values.
        """
        for row in range(first, end, height):
            below = min(row + height, end)
            top = max(row - halo, first)
            window = Window(0, top, self.grid.width, min(below + halo, end) - top)
            landslide, known = self._labels(window)
            uncertainty = self._uncertainty(window) if self._uncertainty else None
            width_m, height_m = pixel_metres(self.grid.part(Window(0, row, self.grid.width, below - row)))
            core = slice(row - top, below - top)
            yield Strip(width_m * height_m, core, self._prob(window), uncertainty, landslide, known)

    def _labels(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Landslide in the truth, and what is counted: known, in the area of interest, and not excluded."""
        values = self._truth(window)
        known = np.isfinite(values)
        if not np.isin(values[known], (0, 1)).all():
            raise InputError(
                f"{self._truth_path} holds probabilities. As truth give labels: 0, 1, and 255 where unknown."
            )
        if self._inside is not None:
            known &= self._inside(window) == 1
        if self._excluded is not None:
            known &= ~self._excluded(window)
        return values == 1, known


def describe(grid: Grid) -> str:
    """A grid in words."""
    return f"{grid.width} x {grid.height} pixels, {grid.crs.to_string() if grid.crs else 'no CRS'}"


def pixel_metres(grid: Grid) -> tuple[float, float]:
    """Width and height of a pixel in metres; of a grid without a CRS, those of Sentinel-2."""
    return grid.pixel_size_m() if grid.crs else (PIXEL_M, PIXEL_M)


def _open(path: str | Path, stack: ExitStack) -> _Raster | _Vector:
    """By extension: one of the vector formats, else whatever GDAL opens as a raster."""
    found = existing(path)
    return _vector(found) if is_vector(found) else _Raster(found, stack)


def _vector(path: str) -> _Vector:
    """Layer ``landslides``, else the only one, and layer ``not_seen`` where it is another."""
    landslides, layers = read_polygons(path), layer_names(path)
    if "not_seen" in layers and len(layers) > 1:
        return _Vector(landslides, read_polygons(path, "not_seen"))
    return _Vector(landslides)


def _area(path: str) -> _Vector:
    """Polygons, or the frame of a raster."""
    if is_vector(path):
        return _vector(path)
    try:
        with rasterio.open(path) as d:
            grid = Grid(d.crs, d.transform, d.width, d.height)
    except RasterioError as e:
        raise InputError(
            f"Cannot open {path} as a raster: {e}. Give polygons, or a raster whose frame is meant."
        ) from e
    if grid.crs is None:
        raise InputError(f"{path} has no CRS, so its frame cannot be laid over anything. Assign its CRS first.")
    corners = [(0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height)]
    frame = Polygon([grid.transform * c for c in corners])
    # Straight in its own CRS, bent in another: points on the way keep it in place.
    frame = gpd.GeoSeries([frame.segmentize(frame.length / 100)], crs=CRSText(grid.crs.to_wkt()))
    return _Vector(Polygons(path, frame))


def _common_grid(pred: _Raster | _Vector, truth: _Raster | _Vector, area: _Vector | None) -> Grid:
    """The truth's grid, else the prediction's, else 10 m UTM over the area of interest or all polygons."""
    for side in (truth, pred):
        if isinstance(side, _Raster):
            return side.grid
    shown = [s for s in ([area] if area else [pred, truth]) if isinstance(s, _Vector) and len(s.landslides)]
    if not shown:
        raise InputError(
            f"Neither {pred.path} nor {truth.path} holds a polygon, so there is nothing to compare. Give the "
            "truth as a raster, or an area of interest."
        )
    west, south, east, north = np.array([s.bounds(CRS.from_epsg(4326)) for s in shown]).T
    corners = gpd.points_from_xy([west.min(), east.max()], [south.min(), north.max()], crs=4326)
    crs = CRS.from_user_input(corners.estimate_utm_crs())
    west, south, east, north = np.array([s.bounds(crs) for s in shown]).T / PIXEL_M
    left, top = floor(west.min()), ceil(north.max())
    transform = Affine(PIXEL_M, 0, left * PIXEL_M, 0, -PIXEL_M, top * PIXEL_M)
    return Grid(crs, transform, ceil(east.max()) - left, top - floor(south.min()))


def _share(text: str) -> float | None:
    """A number from 0 to 1, or None."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if 0 <= found <= 1 else None


class _Raster:
    """One side of the comparison as band 1 of a raster.

    An integer band is a mask: 0 background, 1 landslide, 255 or nodata unknown. A float band is a
    probability, nodata or NaN unknown.

    Attributes:
        grid: Its own.
        is_mask: Whether it is a mask.
        uncertainty: Number of the band that is called so, None without one.
        threshold: What ``map --prob`` noted, None without such a note.
    """

    def __init__(self, path: str, stack: ExitStack) -> None:
        try:
            self.dataset = stack.enter_context(rasterio.open(path))
        except RasterioError as e:
            raise InputError(f"Cannot open {path} as a raster: {reason(e)}. Polygons need a known extension.") from e
        self.path, self._stack, d = path, stack, self.dataset
        self.grid = Grid(d.crs, d.transform, d.width, d.height)
        self.is_mask = np.issubdtype(np.dtype(d.dtypes[0]), np.integer)
        named = [i for i, name in enumerate(d.descriptions, 1) if name == "uncertainty"]
        self.uncertainty = named[0] if named else None
        self.threshold = _share(d.tags().get("THRESHOLD", ""))
        if self.is_mask and d.nodata == 0:
            raise InputError(
                f"{path} has 0 as nodata, so background cannot be told from unknown. Mark unknown pixels "
                "with 255 and set that as nodata (gdal_edit.py -a_nodata 255)."
            )

    def on(self, grid: Grid, band: int = 1) -> Layer:
        """Read from ``grid``: as it is, or warped (nearest for a mask, bilinear for a probability)."""
        source = self.dataset
        if not self.grid.same_pixels(grid):
            need_crs(self.path, self.grid.crs, grid.crs)
            resampling = Resampling.nearest if self.is_mask else Resampling.bilinear
            options = vars(grid) | {"resampling": resampling, "nodata": nan, "dtype": "float32"}
            source = self._stack.enter_context(WarpedVRT(self.dataset, **options))
        return lambda window: self._read(source, window, band)

    def _read(self, source: Any, window: Window, band: int) -> NDArray[np.float32]:
        try:
            read = source.read(band, window=window, masked=True)
        except RasterioError as e:
            raise InputError(f"Cannot read {self.path}: {reason(e)}. The file seems damaged; write it again.") from e
        values: NDArray[np.float32] = read.astype(np.float32).filled(nan)
        if self.is_mask:
            values[values == IGNORE] = nan
        if band > 1:
            return values
        known = values[np.isfinite(values)]
        # Interpolation may round a probability just beyond 1.
        wrong = known[(known != 0) & (known != 1)] if self.is_mask else known[np.abs(known - 0.5) > 0.501]
        if wrong.size:
            expected = "0, 1 and 255 in a mask" if self.is_mask else "probabilities between 0 and 1"
            raise InputError(f"{self.path} holds the value {wrong[0]:g}; expected {expected} in band 1.")
        return values


class _Vector:
    """One side of the comparison as polygons: layer ``landslides``, else the only polygon layer.

    Polygons of a layer ``not_seen``, where there is one, are unknown; everything else is background.
    """

    def __init__(self, landslides: Polygons, unseen: Polygons | None = None) -> None:
        self.path, self.landslides, self.unseen = landslides.path, landslides, unseen

    def bounds(self, crs: CRS) -> NDArray[np.float64]:
        """West, south, east and north of the landslides in a CRS."""
        found: NDArray[np.float64] = self.landslides.to_crs(crs).geometries.total_bounds
        return found

    def on(self, grid: Grid) -> Layer:
        """Rasterize onto ``grid``: pixels whose centre lies inside.

        Raises:
            InputError: There are polygons, but none of them is near the grid.
        """
        landslides = self.landslides.near(grid)
        if len(self.landslides) and not len(landslides):
            raise InputError(
                f"Nothing to compare: the polygons of {self.path} lie outside the other input "
                f"({describe(grid)}). Check that both show the same place and that their CRS are right."
            )
        inside, unseen = landslides.burn(grid), self.unseen.burn(grid) if self.unseen else None

        def read(window: Window) -> NDArray[np.float32]:
            values = inside(window).astype(np.float32)
            if unseen is not None:
                values[(values == 0) & unseen(window)] = nan
            return values

        return read
