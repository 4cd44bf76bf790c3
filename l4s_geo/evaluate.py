"""A landslide map against labels, pixel by pixel: raster or polygons on either side, in any CRS.

The comparison happens on the truth's own grid when the truth is a raster, so that labels are never resampled,
else on the prediction's grid, and on a 10 m UTM grid when both are polygons. It streams strips of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, floor, hypot, nan
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS as CRSText
from pyproj.exceptions import CRSError, ProjError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.transform import array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from shapely.geometry import Polygon

from l4s_geo.errors import InputError, reason
from l4s_geo.metrics import IGNORE, Counts, Evaluation, block_counts, bootstrap

#: Side of the blocks that the bootstrap draws, in pixels: a Landslide4Sense patch.
BLOCK = 128

#: Pixel of the grid on which polygons are compared with polygons, in metres: Sentinel-2's.
PIXEL_M = 10.0

_VECTOR_SUFFIXES = (".gpkg", ".fgb", ".geojson", ".json", ".shp", ".parquet")

#: Landslide probability (h, w) float32 of a window of the common grid, NaN where unknown.
Layer = Callable[[Window], NDArray[np.float32]]


def evaluate(
    pred: str | Path,
    truth: str | Path,
    *,
    threshold: float = 0.5,
    rows: tuple[int, int] | None = None,
    aoi: str | Path | None = None,
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
        area = None if aoi is None else _area(_existing(aoi))
        grid = _common_grid(mapped, reference, area)
        first, end = _checked_rows(rows, grid)
        read_prob, read_truth = mapped.on(grid), _labels(reference, grid, area)
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
    found = _existing(path)
    return _Vector(found, *_read_polygons(found)) if found.lower().endswith(_VECTOR_SUFFIXES) else _Raster(found, stack)


def _area(path: str) -> _Vector:
    """Polygons, or the frame of a raster."""
    if path.lower().endswith(_VECTOR_SUFFIXES):
        landslides, unseen = _read_polygons(path)
        return _Vector(path, landslides, unseen)
    try:
        with rasterio.open(path) as d:
            grid = _Grid(d.crs, d.transform, d.width, d.height)
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
    return _Vector(path, frame, frame.iloc[:0])


def _existing(path: str | Path) -> str:
    """The path as text; GDAL's own paths and URLs are left to GDAL."""
    text = str(path)
    if "://" not in text and not text.startswith("/vsi") and not Path(text).exists():
        raise InputError(f"There is no file {text}.")
    return text


def _common_grid(pred: _Raster | _Vector, truth: _Raster | _Vector, area: _Vector | None) -> _Grid:
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
    west, south, east, north = np.array([s.project(CRS.from_epsg(4326))[0].total_bounds for s in shown]).T
    corners = gpd.points_from_xy([west.min(), east.max()], [south.min(), north.max()], crs=4326)
    crs = CRS.from_user_input(corners.estimate_utm_crs())
    west, south, east, north = np.array([s.project(crs)[0].total_bounds for s in shown]).T / PIXEL_M
    left, top = floor(west.min()), ceil(north.max())
    transform = Affine(PIXEL_M, 0, left * PIXEL_M, 0, -PIXEL_M, top * PIXEL_M)
    return _Grid(crs, transform, ceil(east.max()) - left, top - floor(south.min()))


def _checked_rows(rows: tuple[int, int] | None, grid: _Grid) -> tuple[int, int]:
    if rows is None:
        return 0, grid.height
    if not 0 <= rows[0] < rows[1] <= grid.height:
        raise InputError(f"Rows {rows[0]} to {rows[1] - 1} are not inside {_describe(grid)}.")
    return rows


def _labels(side: _Raster | _Vector, grid: _Grid, area: _Vector | None) -> Callable[[Window], NDArray[np.uint8]]:
    """Reads labels: 0, 1 and 255 where unknown or outside the area of interest."""
    read, inside = side.on(grid), area.on(grid) if area else None

    def read_labels(window: Window) -> NDArray[np.uint8]:
        values = read(window)
        known = np.isfinite(values)
        if not np.isin(values[known], (0, 1)).all():
            raise InputError(f"{side.path} holds probabilities. As truth give labels: 0, 1, and 255 where unknown.")
        if inside is not None:
            known &= inside(window) == 1
        return np.where(known, values, IGNORE).astype(np.uint8)

    return read_labels


@dataclass(frozen=True)
class _Grid:
    """Where pixels lie: what a raster and a warp need to agree on."""

    crs: CRS | None
    transform: Affine
    width: int
    height: int

    def bounds(self, window: Window) -> tuple[float, float, float, float]:
        """West, south, east, north of a window, also of a rotated grid."""
        west, south, east, north = array_bounds(window.height, window.width, window_transform(window, self.transform))
        return west, south, east, north

    def same_as(self, other: _Grid) -> bool:
        """Whether every pixel is the same (to a millionth of its size: rounding in headers)."""
        if (self.crs, self.width, self.height) != (other.crs, other.width, other.height):
            return False
        pixel = hypot(self.transform.a, self.transform.d)
        return bool(self.transform.almost_equals(other.transform, precision=1e-6 * pixel))


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
        self.grid = _Grid(d.crs, d.transform, d.width, d.height)
        self.is_mask = np.issubdtype(np.dtype(d.dtypes[0]), np.integer)
        if self.is_mask and d.nodata == 0:
            raise InputError(
                f"{path} has 0 as nodata, so background cannot be told from unknown. Mark unknown pixels "
                "with 255 and set that as nodata (gdal_edit.py -a_nodata 255)."
            )

    def on(self, grid: _Grid) -> Layer:
        """Read from ``grid``: as it is, or warped (nearest for a mask, bilinear for a probability)."""
        source = self.dataset
        if not self.grid.same_as(grid):
            _need_crs(self.path, self.grid.crs, grid.crs)
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

    def __init__(self, path: str, landslides: gpd.GeoSeries, unseen: gpd.GeoSeries) -> None:
        self.path, self.landslides, self.unseen = path, landslides, unseen

    def project(self, crs: CRS | None) -> tuple[gpd.GeoSeries, gpd.GeoSeries]:
        """Both layers in another CRS."""
        _need_crs(self.path, self.landslides.crs, crs)
        try:
            return self.landslides.to_crs(crs), self.unseen.to_crs(crs)
        except (ProjError, CRSError, ValueError) as e:
            raise InputError(f"Cannot bring {self.path} into the CRS of the comparison ({crs}): {e}.") from e

    def on(self, grid: _Grid) -> Layer:
        """Rasterize onto ``grid``: pixels whose centre lies inside.

        Raises:
            InputError: There are polygons, but none of them is near the grid.
        """
        landslides, unseen = self.project(grid.crs)
        west, south, east, north = grid.bounds(Window(0, 0, grid.width, grid.height))
        if len(landslides) and landslides.cx[west:east, south:north].empty:
            raise InputError(
                f"Nothing to compare: the polygons of {self.path} lie outside the other input "
                f"({_describe(grid)}). Check that both show the same place and that their CRS are right."
            )

        def read(window: Window) -> NDArray[np.float32]:
            values = _burn(landslides, grid, window).astype(np.float32)
            values[(values == 0) & _burn(unseen, grid, window)] = nan
            return values

        return read


def _burn(polygons: gpd.GeoSeries, grid: _Grid, window: Window) -> NDArray[np.bool_]:
    """(h, w) mask of the pixels whose centre lies in a polygon."""
    west, south, east, north = grid.bounds(window)
    near = polygons.cx[west:east, south:north]
    shape = (window.height, window.width)
    if near.empty:
        return np.zeros(shape, np.bool_)
    transform = window_transform(window, grid.transform)
    burnt: NDArray[np.bool_] = rasterize(near, shape, transform=transform, dtype="uint8") == 1
    return burnt


def _read_polygons(path: str) -> tuple[gpd.GeoSeries, gpd.GeoSeries]:
    """Geometries of the landslides and of what was not seen (maybe empty)."""
    try:
        if path.lower().endswith(".parquet"):
            landslides = gpd.read_parquet(path).geometry
            return _polygons(landslides, path), landslides.iloc[:0]
        shaped = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
        name = "landslides" if "landslides" in shaped or len(shaped) != 1 else shaped[0]
        if name not in shaped:
            found = ", ".join(shaped) or "none"
            raise InputError(f"{path} needs a layer `landslides` or just one layer of polygons; it has: {found}.")
        landslides = _polygons(gpd.read_file(path, layer=name, columns=[]).geometry, path)
        if "not_seen" not in shaped or name == "not_seen":
            return landslides, landslides.iloc[:0]
        return landslides, _polygons(gpd.read_file(path, layer="not_seen", columns=[]).geometry, path)
    except (DataSourceError, DataLayerError, ValueError, OSError) as e:
        raise InputError(f"Cannot read polygons from {path}: {reason(e)}.") from e


def _polygons(geometries: gpd.GeoSeries, path: str) -> gpd.GeoSeries:
    """Without empty geometries; anything but polygons is refused."""
    kept = geometries[~(geometries.isna() | geometries.is_empty)]
    other = sorted(set(kept.geom_type) - {"Polygon", "MultiPolygon"})
    if other:
        raise InputError(f"{path} holds {', '.join(other)} geometries. Only polygons can be compared.")
    return kept


def _describe(grid: _Grid) -> str:
    return f"{grid.width} x {grid.height} pixels, {grid.crs.to_string() if grid.crs else 'no CRS'}"


def _need_crs(path: str, own: Any, common: Any) -> None:
    if own is None or common is None:
        which = path if own is None else f"The input that {path} is compared with"
        raise InputError(f"{which} has no CRS, so the two cannot be laid over each other. Assign its CRS first.")
