"""Parts of STAC items: footprints, times, rasters and files."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import antimeridian
import numpy as np
import rasterio
import shapely
from rasterio.crs import CRS

from l4s_geo.provenance.record import fingerprint
from l4s_geo.raster import row_windows
from l4s_geo.scene import Grid
from l4s_geo.scene.grid import WGS84, convert

#: Points along each side of a footprint: a side of a tile in UTM is bent by metres in longitude and latitude.
POINTS = 32

#: Degrees by which a side may be off, about half a metre.
STRAIGHT = 5e-6

#: When the first Sentinel-2 image was taken, and an end that never comes, as MLM's best practices have it.
FIRST, NEVER = datetime(2015, 6, 23, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)

#: Units of bands by their names; the others are shares, which have none.
UNITS = {"landslide_m2_per_km2": "m2/km2"}


def footprint(grid: Grid) -> tuple[dict[str, Any] | None, list[float] | None]:
    """Outline and bounding box of a grid in longitude and latitude (RFC 7946), cut at the antimeridian.

    Args:
        grid: In any CRS.

    Returns:
        GeoJSON geometry, and west, south, east, north, where west is more than east across the antimeridian; None and
        None where the grid has no place on Earth.
    """
    if grid.is_local:
        return None, None
    steps, (height, width) = np.linspace(0, 1, POINTS, endpoint=False), grid.shape
    # against the clock: from the upper left corner down, right, up and left; the other way where the grid is flipped
    cols = np.concatenate([0 * steps, steps, 0 * steps + 1, 1 - steps]) * width
    rows = np.concatenate([steps, 0 * steps + 1, 1 - steps, 0 * steps]) * height
    if grid.transform.determinant > 0:
        cols, rows = cols[::-1], rows[::-1]
    lon, lat = convert(grid.crs, WGS84, *grid.at(cols, rows))
    known = np.isfinite(lon) & np.isfinite(lat)
    if known.sum() < 3:
        return None, None
    lon, lat = lon[known], lat[known]
    lon = np.where(abs(lon) > 180, (lon + 180) % 360 - 180, lon)  # as where a scene in degrees goes on beyond
    shape = antimeridian.fix_polygon(shapely.Polygon(np.column_stack([lon, lat])), fix_winding=False)
    shape = shapely.transform(shapely.simplify(shape, STRAIGHT), lambda xy: xy.round(7))
    outline: dict[str, Any] = shapely.geometry.mapping(shape)
    return outline, [round(float(v), 7) for v in antimeridian.bbox(shape)]


def times(date: str | None) -> dict[str, Any]:
    """When the image was taken: a day, or where that is unknown some time since the first image of Sentinel-2.

    STAC wants a moment or a span. A date without a time of day is given as the span of that day (UTC), whose begin is
    also the moment by which catalogues sort.
    """
    if date is None:
        return {"datetime": None, "start_datetime": FIRST, "end_datetime": datetime.now(UTC).replace(microsecond=0)}
    day = datetime.fromisoformat(date).replace(tzinfo=UTC)
    return {"datetime": day, "start_datetime": day, "end_datetime": day + timedelta(days=1, seconds=-1)}


def crs_code(crs: CRS) -> str | None:
    """Authority and code, if any."""
    found = crs.to_authority()
    return None if found is None else ":".join(found)


def raster_fields(path: Path) -> dict[str, Any]:
    """Bands of a GeoTIFF as STAC 1.1 has them, with statistics of all pixels, and its grid."""
    with rasterio.open(path) as raster:
        grid = Grid(raster.crs, raster.transform, raster.width, raster.height)
        bands = [_band(raster, index, grid) for index in raster.indexes]
    return {
        "bands": bands,
        "proj:code": crs_code(grid.crs),
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform)[:6],
    }


def _band(raster: Any, index: int, grid: Grid) -> dict[str, Any]:
    """Name, type, nodata, unit and statistics of a band, read strip by strip."""
    name, nodata = raster.descriptions[index - 1], raster.nodatavals[index - 1]
    low, high, count, total, squares = math.inf, -math.inf, 0, 0.0, 0.0
    for window in row_windows(grid, 512):
        values = raster.read(index, window=window, masked=True).compressed().astype(np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            count, total, squares = count + values.size, total + float(values.sum()), squares + float(values @ values)
    statistics: dict[str, float] = {"valid_percent": round(100 * count / (grid.width * grid.height), 4)}
    if count:
        mean = total / count
        spread = math.sqrt(max(squares / count - mean * mean, 0))
        statistics |= {"minimum": low, "maximum": high, "mean": mean, "stddev": spread, "count": count}
    found = {"name": name, "data_type": raster.dtypes[index - 1], "unit": UNITS.get(name), "statistics": statistics}
    if nodata is not None:
        found["nodata"] = "nan" if math.isnan(nodata) else nodata
    return {k: v for k, v in found.items() if v is not None}


def href(file: Path, item: Path) -> str:
    """Of a file, relative to the folder of an item; absolute where there is no such way (other drives)."""
    try:
        relative = Path(os.path.relpath(file.absolute(), item.absolute().parent)).as_posix()
    except ValueError:
        return file.absolute().as_uri()
    return relative if relative.startswith("../") else f"./{relative}"


def file_fields(path: Path) -> dict[str, Any]:
    """Size and checksum, by the file extension."""
    found = fingerprint(path)
    return {} if found is None else {"file:size": found["bytes"], "file:checksum": multihash(found["sha256"])}


def multihash(sha256: str) -> str:
    """Hex of a SHA-256 as a multihash: code 0x12, 32 (0x20) bytes."""
    return f"1220{sha256}"
