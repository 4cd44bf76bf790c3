"""``l4s-map map``: a scene to polygons."""

from __future__ import annotations

from typing import Any

import click

from l4s_geo.cli.options import (
    FILE,
    device_options,
    emit,
    libraries,
    limit_options,
    map_options,
    polygon_options,
    report_options,
    reporting,
    run_options,
    scene_options,
)


@click.command("map")
@click.argument("scene")
@click.option(
    "--out",
    type=FILE,
    required=True,
    help="Polygons: .gpkg (best in QGIS), .fgb, .geojson, .parquet or .shp.",
)
@scene_options
@limit_options
@click.option("--prob", type=FILE, help="Also write the probabilities, as a Cloud-Optimized GeoTIFF.")
@click.option("--density", type=FILE, help="Also write landslide area per km2, in cells of 1 km, as a GeoTIFF.")
@map_options
@polygon_options
@device_options
@run_options
@report_options
def command(quiet: bool, verbose: bool, as_json: bool, **options: Any) -> None:
    """Map the landslides of SCENE.

    SCENE is a GeoTIFF, VRT or COG, a GDAL address (/vsicurl/..., s3://...), a Sentinel-2 product (.SAFE,
    or a zip of it), a STAC item (file or address; see `l4s-map search`), a folder of single-band files, or
    an L4S .h5 patch. Digital numbers of Sentinel-2 are expected; see --units for others.

    \b
      l4s-map scene.tif --dem dem.tif --out landslides.gpkg
      l4s-map S2A_folder/ --out landslides.geojson --preset recall
    """  # noqa: D301 (click wants the character itself)
    with libraries():
        import l4s_geo.models.zoo  # noqa: F401 (else imported when the networks are loaded)
        from l4s_geo.pipeline import MapOptions, map_scene

    with reporting(quiet, verbose) as progress:
        result = map_scene(MapOptions(**options), progress)
    emit(result.summary, result.message, as_json)
