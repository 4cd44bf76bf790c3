"""A landslide map against labels, pixel by pixel: raster or polygons on either side, in any CRS.

The comparison happens on the truth's own grid when the truth is a raster, so that labels are never resampled,
else on the prediction's grid, and on a 10 m UTM grid when both are polygons. It streams strips of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
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
from l4s_geo.metrics import IGNORE, Counts, Evaluation, block_counts, bootstrap
from l4s_geo.scene import Grid
from l4s_geo.vector import Polygons, existing, is_vector, layer_names, need_crs, read_polygons

#: Side of the blocks that the bootstrap draws, in pixels: a Landslide4Sense patch.
BLOCK = 128

#: Pixel of the grid on which polygons are compared with polygons, in metres: Sentinel-2's.
PIXEL_M = 10.0

#: Landslide probability (h, w) float32 of a window of the common grid, NaN where unknown.
Layer = Callable[[Window], NDArray[np.float32]]


def evaluate(
    pred: str | Path,
    truth: str | Path,
    *,
    threshold: float = 0.5,
    rows: tuple[int, int] | None = None,
    aoi: str | Path | None = None,
    exclude: str | Path | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare a landslide map with labels.

    Pixels that the prediction did not see (nodata, NaN, outside the raster, layer ``not_seen``) count as not
    mapped, and their share is reported. Pixels whose truth is unknown (255, nodata, layer ``not_seen``) and
    pixels outside ``aoi`` are not counted. Where the truth is polygons, everything beside them is background.

    Args:
        pred: Probability raster (float, 0 to 1), mask (integer, 0 and 1), or polygons.
        truth: Label raster (0 background, 1 landslide, 255 or nodata unknown) or polygons.
        threshold: Pixels of at least this probability count as mapped.
        rows: First row and end of the rows of the common grid to compare; None compares all.
        aoi: Polygons to compare inside of, or a raster whose extent is meant; None compares everywhere.
        exclude: Polygons whose pixels are not counted, such as those that a model has learnt from.
        seed: Of the bootstrap.

    Raises:
        InputError: A file is missing, unreadable or holds other values, a CRS is missing, the inputs do not
            overlap, or no labelled pixel is left.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"The threshold must lie between 0 and 1, got {threshold:g}.")
    blocks: list[Counts] = []
    unseen = 0
    with ExitStack() as stack:
        mapped, reference = _open(pred, stack), _open(truth, stack)
        area = None if aoi is None else _area(existing(aoi))
        grid = _common_grid(mapped, reference, area)
        first, end = _checked_rows(rows, grid)
        read_prob, read_truth = mapped.on(grid), _labels(reference, grid, area, exclude)
        for row in range(first, end, BLOCK):
            window = Window(0, row, grid.width, min(BLOCK, end - row))
            truth_strip = read_truth(window)
            known = truth_strip != IGNORE
            if known.any():
                prob = read_prob(window)
                unseen += int(np.count_nonzero(known & np.isnan(prob)))
                blocks += [c for c in block_counts(prob >= threshold, truth_strip, BLOCK) if c.total]
    counts = sum(blocks, Counts())
    if not counts.total:
        raise InputError(f"No labelled pixel of {truth} lies in rows {first} to {end - 1} of {_describe(grid)}.")
    if unseen == counts.total:
        raise InputError(
            f"Nothing to compare: {pred} has no value at any labelled pixel of {truth}. Check that both show "
            f"the same place and that their CRS are right."
        )
    return Evaluation(
        pred=str(pred),
        truth=str(truth),
        threshold=threshold,
        rows=(first, end),
        grid=_describe(grid),
        counts=counts,
        unseen=unseen,
        blocks=len(blocks),
        intervals=bootstrap(blocks, seed=seed),
    )


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


def _checked_rows(rows: tuple[int, int] | None, grid: Grid) -> tuple[int, int]:
    if rows is None:
        return 0, grid.height
    if not 0 <= rows[0] < rows[1] <= grid.height:
        raise InputError(f"Rows {rows[0]} to {rows[1] - 1} are not inside {_describe(grid)}.")
    return rows


def _labels(
    side: _Raster | _Vector, grid: Grid, area: _Vector | None, exclude: str | Path | None
) -> Callable[[Window], NDArray[np.uint8]]:
    """Reads labels: 0, 1 and 255 where unknown, outside the area of interest, or excluded."""
    read, inside = side.on(grid), area.on(grid) if area else None
    excluded = read_polygons(existing(exclude)).near(grid).burn(grid) if exclude else None

    def read_labels(window: Window) -> NDArray[np.uint8]:
        values = read(window)
        known = np.isfinite(values)
        if not np.isin(values[known], (0, 1)).all():
            raise InputError(f"{side.path} holds probabilities. As truth give labels: 0, 1, and 255 where unknown.")
        if inside is not None:
            known &= inside(window) == 1
        if excluded is not None:
            known &= ~excluded(window)
        return np.where(known, values, IGNORE).astype(np.uint8)

    return read_labels


class _Raster:
    """One side of the comparison as band 1 of a raster.

    An integer band is a mask: 0 background, 1 landslide, 255 or nodata unknown. A float band is a
    probability, nodata or NaN unknown.
    """

    def __init__(self, path: str, stack: ExitStack) -> None:
        try:
            self.dataset = stack.enter_context(rasterio.open(path))
        except RasterioError as e:
            raise InputError(f"Cannot open {path} as a raster: {reason(e)}. Polygons need a known extension.") from e
        self.path, self._stack, d = path, stack, self.dataset
        self.grid = Grid(d.crs, d.transform, d.width, d.height)
        self.is_mask = np.issubdtype(np.dtype(d.dtypes[0]), np.integer)
        if self.is_mask and d.nodata == 0:
            raise InputError(
                f"{path} has 0 as nodata, so background cannot be told from unknown. Mark unknown pixels "
                "with 255 and set that as nodata (gdal_edit.py -a_nodata 255)."
            )

    def on(self, grid: Grid) -> Layer:
        """Read from ``grid``: as it is, or warped (nearest for a mask, bilinear for a probability)."""
        source = self.dataset
        if not self.grid.same_pixels(grid):
            need_crs(self.path, self.grid.crs, grid.crs)
            resampling = Resampling.nearest if self.is_mask else Resampling.bilinear
            options = vars(grid) | {"resampling": resampling, "nodata": nan, "dtype": "float32"}
            source = self._stack.enter_context(WarpedVRT(self.dataset, **options))
        return lambda window: self._read(source, window)

    def _read(self, source: Any, window: Window) -> NDArray[np.float32]:
        try:
            band = source.read(1, window=window, masked=True)
        except RasterioError as e:
            raise InputError(f"Cannot read {self.path}: {reason(e)}. The file seems damaged; write it again.") from e
        values: NDArray[np.float32] = band.astype(np.float32).filled(nan)
        if self.is_mask:
            values[values == IGNORE] = nan
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
                f"({_describe(grid)}). Check that both show the same place and that their CRS are right."
            )
        inside, unseen = landslides.burn(grid), self.unseen.burn(grid) if self.unseen else None

        def read(window: Window) -> NDArray[np.float32]:
            values = inside(window).astype(np.float32)
            if unseen is not None:
                values[(values == 0) & unseen(window)] = nan
            return values

        return read


def _describe(grid: Grid) -> str:
    return f"{grid.width} x {grid.height} pixels, {grid.crs.to_string() if grid.crs else 'no CRS'}"
