"""Tiles of elevation as one raster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from xml.sax.saxutils import escape

import rasterio
from affine import Affine

from l4s_geo.errors import InputError
from l4s_geo.scene.grid import Grid
from l4s_geo.scene.raster import GDAL_OPTIONS, Raster

#: Of the mosaic, where there is no tile or a tile has nodata; below every elevation.
NODATA = -32768

#: Pixels along a side at most: nine tiles of a degree, of the finest DEMs.
SIDE = 200_000


def mosaic(tiles: Sequence[Raster], stack: ExitStack) -> Raster:
    """Tiles in one CRS as one raster at the finest of their resolutions, read where it is asked for.

    It is a virtual raster (VRT) in memory. Tiles may have different pixel sizes, as those of Copernicus have from one
    zone of latitude to the next, and may lie on both sides of the date line.

    Args:
        tiles: Of one band each, north up.
        stack: Closes it.

    Raises:
        InputError: Their coordinate systems differ, or they lie too far apart.
    """
    if len(tiles) == 1:
        return tiles[0]
    crs = tiles[0].grid.crs
    odd = next((t for t in tiles if t.grid.crs != crs or not t.grid.is_north_up), None)
    if odd is not None:
        raise InputError(f"{odd.path} does not fit {tiles[0].path}: tiles of elevation must have one CRS, north up.")
    grids = [t.grid for t in tiles]
    if crs.is_geographic and max(g.bounds.left for g in grids) - min(g.bounds.left for g in grids) > 180:
        grids = [_turned(g) if g.bounds.left < 0 else g for g in grids]
    across, down = min(g.transform.a for g in grids), min(-g.transform.e for g in grids)
    left, top = min(g.bounds.left for g in grids), max(g.bounds.top for g in grids)
    width = round((max(g.bounds.right for g in grids) - left) / across)
    height = round((top - min(g.bounds.bottom for g in grids)) / down)
    if max(width, height) > SIDE:
        raise InputError(f"Tiles of elevation lie too far apart: {tiles[0].path} and {tiles[-1].path}, for instance.")
    grid = Grid(crs, Affine(across, 0, left, 0, -down, top), width, height)
    text = _document(grid, [_source(t, g, grid) for t, g in zip(tiles, grids, strict=True)])
    with rasterio.Env(**GDAL_OPTIONS):
        dataset = stack.enter_context(rasterio.open(text, driver="VRT"))
    return Raster(dataset, f"{len(tiles)} tiles of elevation", (1,), tiles[0].names)


def _turned(grid: Grid) -> Grid:
    """The same, a turn further east."""
    t = grid.transform
    return Grid(grid.crs, Affine(t.a, t.b, t.c + 360, t.d, t.e, t.f), grid.width, grid.height)


def _source(tile: Raster, at: Grid, grid: Grid) -> str:
    """A tile's part of the document."""
    own = tile.dataset.nodatavals[0]
    nodata = "" if own is None or not math.isfinite(own) else f"<NODATA>{own:.17g}</NODATA>"
    x, y = (at.bounds.left - grid.bounds.left) / grid.transform.a, (grid.bounds.top - at.bounds.top) / -grid.transform.e
    width, height = at.width * at.transform.a / grid.transform.a, at.height * at.transform.e / grid.transform.e
    return (
        '<ComplexSource resampling="bilinear">'
        f'<SourceFilename relativeToVRT="0">{escape(tile.dataset.name)}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{at.width}" ySize="{at.height}"/>'
        f'<DstRect xOff="{_whole(x):.9g}" yOff="{_whole(y):.9g}" xSize="{_whole(width):.9g}" '
        f'ySize="{_whole(height):.9g}"/>{nodata}</ComplexSource>'
    )


def _whole(pixels: float) -> float:
    """Without the error of rounding degrees, which would have a tile resampled."""
    return round(pixels) if abs(pixels - round(pixels)) < 1e-3 else pixels


def _document(grid: Grid, sources: Sequence[str]) -> str:
    t = grid.transform
    corner = ", ".join(f"{v:.17g}" for v in (t.c, t.a, t.b, t.f, t.d, t.e))
    return (
        f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}"><SRS>{escape(grid.crs.to_wkt())}</SRS>'
        f"<GeoTransform>{corner}</GeoTransform>"
        f'<VRTRasterBand dataType="Float32" band="1"><NoDataValue>{NODATA}</NoDataValue>{"".join(sources)}'
        "</VRTRasterBand></VRTDataset>"
    )
