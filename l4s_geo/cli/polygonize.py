"""``l4s-map polygonize``: a probability raster to polygons."""

from __future__ import annotations

from typing import Any

import click

from l4s_geo.cli.options import (
    FILE,
    emit,
    limit_options,
    picture_options,
    polygon_options,
    pre_options,
    report_options,
    reporting,
)


@click.command("polygonize")
@click.argument("prob", type=FILE)
@click.option("--out", type=FILE, required=True, help="Polygons: .gpkg, .fgb, .geojson, .parquet or .shp.")
@click.option("--dem", metavar="RASTER", help="Elevation in metres, for the terrain attributes.")
@click.option("--slope", metavar="RASTER", help="Slope in degrees; derived from --dem if not given.")
@limit_options
@pre_options
@click.option("--scene", metavar="SCENE", help="What PROB was made of, for --pre; as PROB says if not given.")
@click.option("--density", type=FILE, help="Also write landslide area per km2, in cells of 1 km, as a GeoTIFF.")
@picture_options
@polygon_options
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@report_options
def command(quiet: bool, verbose: bool, as_json: bool, **options: Any) -> None:
    """Make polygons again from PROB, a raster that `map --prob` wrote.

    No network runs, so that other thresholds and areas are quick to try.

    \b
      l4s-map polygonize prob.tif --out sure.gpkg --threshold 0.7 --min-area 2000
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.polygonize import PolygonizeOptions, polygonize

    with reporting(quiet, verbose) as progress:
        result = polygonize(PolygonizeOptions(**options), progress)
    emit(result.summary, result.message, as_json)
