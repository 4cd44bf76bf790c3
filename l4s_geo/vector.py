"""Vector files as masks: polygons are read once and burnt onto a grid window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
from numpy.typing import NDArray
from pyarrow import ArrowException
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
from pyproj.exceptions import CRSError, ProjError
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.windows import Window
from shapely.errors import GEOSException
from shapely.geometry import box

from l4s_geo.errors import InputError, reason
from l4s_geo.network import NETWORK
from l4s_geo.paths import check_input
from l4s_geo.scene import Grid

#: By which a vector file is told from a raster.
VECTOR_SUFFIXES = (".gpkg", ".fgb", ".geojson", ".json", ".shp", ".parquet")

#: Parts of a grid's side, beyond which an edge is cut before it is bent into the grid's CRS.
PIECES = 64

#: Reads (h, w) bool of a window of a grid.
Mask = Callable[[Window], NDArray[np.bool_]]


@dataclass(frozen=True)
class Polygons:
    """Polygons of one file.

    Attributes:
        path: For messages.
        geometries: Polygons and multipolygons, none of them empty, with their CRS.
    """

    path: str
    geometries: gpd.GeoSeries

    def __len__(self) -> int:
        return len(self.geometries)

    def pick(self, which: NDArray[np.bool_]) -> Polygons:
        """Those where ``which`` (n,) is true."""
        return Polygons(self.path, self.geometries[which])

    def to_crs(self, crs: CRS | None) -> Polygons:
        """The same in another CRS.

        Raises:
            InputError: There is no CRS, or no way between both.
        """
        need_crs(self.path, self.geometries.crs, crs)
        try:
            return Polygons(self.path, self.geometries.to_crs(crs))
        except (ProjError, CRSError, ValueError) as e:
            raise InputError(f"Cannot bring {self.path} into another CRS ({crs}): {reason(e)}.") from e

    def near(self, grid: Grid) -> Polygons:
        """Those that reach the grid, in its CRS.

        Raises:
            InputError: As ``to_crs``.
        """
        need_crs(self.path, self.geometries.crs, grid.crs)
        if not len(self):
            return self
        left, bottom, right, top = grid.bounds
        found = self._cut(grid).to_crs(grid.crs).geometries
        return Polygons(self.path, found.cx[left:right, bottom:top])

    def _cut(self, grid: Grid) -> Polygons:
        """Those around a grid in another CRS, without what lies far from it.

        Far corners may have no place in the grid's CRS, and long edges are straight in their own CRS only.
        """
        if self.geometries.crs == grid.crs:
            return self
        xs, ys = grid.lattice(CRS.from_wkt(self.geometries.crs.to_wkt()))
        if np.isnan(xs).all():
            return Polygons(self.path, self.geometries.iloc[:0])
        low, high = np.nanmin([xs, ys], axis=1), np.nanmax([xs, ys], axis=1)
        side = float((high - low).max())
        around = (*(low - side / 10), *(high + side / 10))
        cut = self.geometries.clip(around, keep_geom_type=True)
        return Polygons(self.path, cut.segmentize(side / PIECES))

    def burn(self, grid: Grid) -> Mask:
        """A reader of masks: pixels whose centre lies in a polygon.

        Args:
            grid: That windows refer to.

        Raises:
            InputError: As ``to_crs``.
        """
        near = self.near(grid).geometries

        def read(window: Window) -> NDArray[np.bool_]:
            part = grid.part(window)
            here = near.iloc[np.sort(near.sindex.query(box(*part.bounds)))]
            if here.empty:
                return np.zeros(part.shape, np.bool_)
            burnt: NDArray[np.bool_] = rasterize(here, part.shape, transform=part.transform, dtype="uint8") == 1
            return burnt

        return read


def existing(path: str | Path) -> str:
    """The path as text; GDAL's own paths and URLs are left to GDAL.

    Raises:
        InputError: There is no such file, or it cannot be read twice.
    """
    check_input(path)
    return str(path)


def is_vector(path: str | Path) -> bool:
    """Whether a path ends as a vector file does."""
    return str(path).lower().endswith(VECTOR_SUFFIXES)


def need_crs(path: str, own: Any, other: Any) -> None:
    """Raises InputError unless a file and what it is laid over both have a CRS."""
    if own is None or other is None:
        which = path if own is None else f"What {path} is to be laid over"
        raise InputError(f"{which} has no CRS, so the two cannot be laid over each other. Assign its CRS first.")


def layer_names(path: str) -> list[str]:
    """Layers with geometries of a vector file; none of a GeoParquet, which is one nameless layer.

    Raises:
        InputError: The file cannot be read.
    """
    if path.lower().endswith(".parquet"):
        return []
    with _reading(path):
        return [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]


def read_polygons(path: str | Path, layer: str = "landslides") -> Polygons:
    """Polygons without their attributes, as ``read_table`` finds them.

    Raises:
        InputError: As ``read_table``.
    """
    return Polygons(str(path), read_table(path, layer, columns=[]).geometry)


def read_table(path: str | Path, layer: str = "landslides", columns: Sequence[str] | None = None) -> gpd.GeoDataFrame:
    """Polygons and their attributes; rows without a geometry are left out.

    Args:
        path: Vector file.
        layer: Which layer; the only one, whatever its name, where there is just one.
        columns: Attributes to read; all if not given.

    Raises:
        InputError: There is no such file, it cannot be read, it is unclear which layer is meant, or it holds other
            geometries.
    """
    text = existing(path)
    if text.lower().endswith(".parquet"):
        with _reading(text):
            table = gpd.read_parquet(text)
    else:
        layers = layer_names(text)
        name = layer if layer in layers or len(layers) != 1 else layers[0]
        if name not in layers:
            raise InputError(
                f"{text} needs a layer `{layer}` or just one layer of polygons; it has: {', '.join(layers) or 'none'}."
            )
        with _reading(text):
            table = gpd.read_file(text, layer=name, columns=columns)
    kept = table[~(table.geometry.isna() | table.geometry.is_empty)]
    other = sorted(set(kept.geom_type) - {"Polygon", "MultiPolygon"})
    if other:
        raise InputError(
            f"{text} holds {', '.join(other)} geometries, but only polygons can be used. Draw outlines, or turn points "
            "and lines into areas first (in QGIS: Vector, Geoprocessing Tools, Buffer)."
        )
    return kept


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Failures of reading as one message."""
    pyogrio.set_gdal_config_options(NETWORK)
    try:
        yield
    except (DataSourceError, DataLayerError, FeatureError, GEOSException, ArrowException, ValueError, OSError) as e:
        raise InputError(f"Cannot read polygons from {path}: {reason(e)}.") from e
