"""Files out. Everything is written beside and then renamed: an output is whole or as it was before."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import rasterio
import rasterio.shutil
import shapely
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
from pyproj import CRS as ProjCRS
from pyproj.exceptions import CRSError, ProjError
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from l4s_geo.complete import check_shapefile, check_tiff
from l4s_geo.errors import OutputError, reason
from l4s_geo.paths import is_text
from l4s_geo.qgis import write_styles

#: Vector formats by extension; None is written without GDAL.
VECTOR_DRIVERS: Mapping[str, str | None] = {
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".geojson": "GeoJSON",
    ".parquet": None,
    ".shp": "ESRI Shapefile",
}
RASTER_EXTENSIONS = (".tif", ".tiff")

#: What other programs leave beside a file and what would be wrong beside a new one, added to the name.
SIDECARS = ("-wal", "-shm", "-journal", ".aux.xml", ".ovr", ".msk", ".xml")
#: The same in place of the extension.
SHAPEFILE_PARTS = (".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx", ".qmd")

#: What the libraries raise where writing fails; rasterio lets errors of GDAL through that it keeps private.
FAILURES = (
    OSError,
    RasterioError,
    CPLE_BaseError,
    DataSourceError,
    DataLayerError,
    FeatureError,
    ProjError,
    sqlite3.Error,
)


def check_output(path: Path, extensions: Sequence[str] = tuple(VECTOR_DRIVERS), *, crs: CRS | None = None) -> None:
    """Check before any work that an output can be written.

    Args:
        path: Of the output.
        extensions: Which are allowed.
        crs: That it will be written in, if known by now.

    Raises:
        OutputError: The extension is not among them, the folder is missing or not writable, a folder or a
            protected file has the name, or the format needs a place on Earth and the scene has none.
    """
    extension, folder = path.suffix.lower(), path.absolute().parent
    if extension not in extensions:
        raise OutputError(
            f"{path}: no format for {extension or 'a name without extension'}. Use one of {' '.join(extensions)}."
        )
    if not is_text(path):
        raise OutputError(f"The name {str(path)!r} is not in UTF-8. Choose another one.")
    try:
        is_folder = path.is_dir()
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {e.strerror}. Choose another name.") from e
    if is_folder:
        raise OutputError(f"{path} is a folder. Give the name of a file in it.")
    if not folder.is_dir():
        raise OutputError(f"{path}: there is no folder {folder}. Create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {folder} is not writable. Choose another one.")
    check_replaceable(path)
    if extension == ".geojson" and crs is not None and not (crs.is_geographic or crs.is_projected):
        raise OutputError(f"{path}: GeoJSON needs a place on Earth, and the scene has none. Use .gpkg.")
    if VECTOR_DRIVERS.get(extension) and crs is not None:
        _check_crs(path, crs)


def check_replaceable(path: Path) -> None:
    """Raises OutputError for a file that is protected, or somebody else's in a folder where only owners may replace."""
    if not path.exists():
        return
    folder = path.absolute().parent.stat()
    owners = (path.lstat().st_uid, folder.st_uid, 0)
    kept = bool(folder.st_mode & stat.S_ISVTX) and hasattr(os, "geteuid") and os.geteuid() not in owners
    if kept or not os.access(path, os.W_OK):
        raise OutputError(f"{path} exists and is protected. Choose another name.")


def _check_crs(path: Path, crs: CRS) -> None:
    """Raises OutputError for a CRS that GDAL cannot write down, such as rotated longitudes and latitudes."""
    try:
        ProjCRS.from_wkt(crs.to_wkt()).to_wkt("WKT1_GDAL")
    except CRSError as e:
        raise OutputError(
            f"{path} cannot hold the scene's coordinate system. Bring the scene into another one first, for instance "
            "with gdalwarp -t_srs EPSG:32654, with your UTM zone."
        ) from e


def record_path(path: Path) -> Path:
    """Provenance of an output."""
    return path.with_name(path.name + ".json")


def model_path(path: Path) -> Path:
    """STAC item of the model beside that of a map."""
    return path.with_name(f"{path.stem}-model{path.suffix}")


def staged(path: Path) -> Path:
    """Where an output lies until it is put in place."""
    return path.absolute().with_name(f".{path.name}.part") / path.name


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A place to write an output, put in place of ``path`` at the end.

    It is the file of the same name in a hidden folder beside, which takes the place of one that a killed run has left.
    What is written beside it (the parts of a shapefile) moves along, the file itself last. After any failure nothing
    has changed.

    Args:
        path: Where the output goes.

    Yields:
        Where to write it.

    Raises:
        OutputError: The folder is missing or not writable.
    """
    folder = staged(path).parent
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as e:
        raise OutputError(
            f"{path} cannot be written: {e.strerror}. Check that its folder exists and is writable."
        ) from e
    try:
        yield folder / path.name
        try:
            _replace(path, folder)
        except OSError as e:
            raise OutputError(
                f"{path} cannot be replaced: {e.strerror}. Close it in other programs or choose another name."
            ) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(path: Path, folder: Path) -> None:
    """Move what was written into place and remove what belonged to the file before."""
    parts = sorted(folder.iterdir(), key=lambda part: part.name == path.name)
    stale = {path.with_name(path.name + end) for end in SIDECARS}
    if path.suffix.lower() == ".shp":
        stale |= {path.with_suffix(end) for end in SHAPEFILE_PARTS}
    for sidecar in stale - {path.with_name(part.name) for part in parts}:
        sidecar.unlink(missing_ok=True)
    for part in parts:
        part.replace(path.with_name(part.name))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which output could not be written where a library fails."""
    try:
        yield
    except FAILURES as e:
        raise OutputError(f"{path} cannot be written: {reason(e)}. Check the space left and the permissions.") from e


@contextmanager
def _place(path: Path, until: ExitStack | None) -> Iterator[Path]:
    """Where to write an output that is put in place at the end of this block, or of ``until`` if given."""
    with ExitStack() as own:
        temporary = (until or own).enter_context(atomic(path))
        with writing(path):
            yield temporary


def write_vector(
    path: Path,
    landslides: Iterable[gpd.GeoDataFrame],
    not_seen: Iterable[gpd.GeoDataFrame] | None = None,
    *,
    until: ExitStack | None = None,
) -> None:
    """Write polygons in the format of the extension.

    Args:
        path: ``.gpkg`` (layers ``landslides`` and ``not_seen``, styled in QGIS), ``.fgb``, ``.geojson``
            (EPSG:4326, RFC 7946), ``.parquet`` (GeoParquet) or ``.shp`` (field names cut to 10 characters).
        landslides: Parts of a table with one row per landslide; an empty one gives a layer with all its fields. Only
            a GeoPackage is written part by part, the other formats are written whole.
        not_seen: Likewise what was not seen; only a GeoPackage holds it.
        until: The output appears when this stack is closed, with all others on it; at once if not given.

    Raises:
        OutputError: As ``check_output``, or the disk is full. What was there before is untouched.
    """
    check_output(path)
    driver = VECTOR_DRIVERS[path.suffix.lower()]
    with _place(path, until) as temporary:
        if driver == "GPKG":
            layers = {"landslides": landslides} | ({} if not_seen is None else {"not_seen": not_seen})
            for name, parts in layers.items():
                for part in parts:
                    # Programs with a GDAL before 3.7 warn of newer versions
                    _write_layer(temporary, driver, name, part, append=True, VERSION="1.3")
            write_styles(temporary, tuple(layers))
        else:
            whole = gpd.GeoDataFrame(pd.concat(landslides, ignore_index=True))
            check_output(path, crs=None if whole.crs is None else CRS.from_wkt(whole.crs.to_wkt()))
            _write_whole(temporary, driver, whole)


def _write_whole(path: Path, driver: str | None, landslides: gpd.GeoDataFrame) -> None:
    if driver is None:
        landslides.to_parquet(path, compression="zstd", index=False)
    elif driver == "GeoJSON":
        _write_layer(path, driver, "landslides", _cut_at_date_line(landslides.to_crs(4326)), RFC7946="YES")
    elif driver == "ESRI Shapefile":
        short = landslides.rename(columns={c: c[:10] for c in landslides.columns.drop("geometry")})
        _write_layer(path, driver, path.stem, short)
        check_shapefile(path, len(short))
    else:
        _write_layer(path, driver, "landslides", landslides)


def _cut_at_date_line(landslides: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Longitudes from -180 to 180; what lies across the date line is in two parts, as RFC 7946 has it (section 3.1.9).

    No landslide is half as wide as the Earth: one that seems to be has its longitudes on both sides of the line.
    """
    left, _, right, _ = landslides.bounds.to_numpy().T
    across = (right - left > 180) | (right > 180) | (left < -180)
    if not across.any():
        return landslides
    east = shapely.transform(landslides.geometry[across].values, lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]]))
    halves = [shapely.intersection(east, shapely.box(side, -90, side + 180, 90)) for side in (0, 180)]
    halves[1] = shapely.transform(halves[1], lambda xy: xy - (360, 0))
    geometry = landslides.geometry.copy()
    geometry[across] = gpd.GeoSeries(shapely.union(*halves), index=geometry.index[across], crs=geometry.crs)
    return landslides.set_geometry(geometry)


def _write_layer(path: Path, driver: str, name: str, layer: gpd.GeoDataFrame, **options: str | bool) -> None:
    pyogrio.write_dataframe(
        layer,
        path,
        driver=driver,
        layer=name,
        geometry_type="Polygon" if driver == "ESRI Shapefile" else "MultiPolygon",
        promote_to_multi=True,
        **options,
    )


def write_cog(source: Path, path: Path, tags: Mapping[str, str], *, until: ExitStack | None = None) -> None:
    """Make a Cloud-Optimized GeoTIFF with overviews.

    Args:
        source: A closed GeoTIFF, with NaN as nodata and descriptions of its bands; it gets the tags too.
        path: Of the output, ``.tif`` or ``.tiff``.
        tags: Metadata of the file, such as the provenance.
        until: As in ``write_vector``.

    Raises:
        OutputError: It cannot be written. What was there before is untouched.
    """
    check_output(path, RASTER_EXTENSIONS)
    with _place(path, until) as temporary:
        # Before the copy: tags added later would break the order of a COG
        with rasterio.open(source, "r+") as raster:
            raster.update_tags(**tags)
        rasterio.shutil.copy(
            source,
            temporary,
            driver="COG",
            COMPRESS="DEFLATE",
            PREDICTOR="YES",
            OVERVIEW_RESAMPLING="AVERAGE",
            BIGTIFF="IF_SAFER",
            NUM_THREADS="ALL_CPUS",
        )
        check_tiff(temporary)


def write_provenance(path: Path, record: Mapping[str, Any], *, until: ExitStack | None = None) -> None:
    """Write how an output came about as JSON.

    Args:
        path: Of the JSON file.
        record: Nested mappings, lists, numbers (also numpy's), text and paths; NaN and infinity become null.
        until: As in ``write_vector``.

    Raises:
        OutputError: It cannot be written. What was there before is untouched.
    """
    write_text(path, json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n", until=until)


def write_text(path: Path, text: str, *, until: ExitStack | None = None) -> None:
    """Write a text in UTF-8.

    Raises:
        OutputError: It cannot be written. What was there before is untouched.
    """
    with _place(path, until) as temporary:
        # a name that is not in UTF-8 becomes an escape, which is JSON too
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
