"""``l4s-map map``: a scene to polygons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from l4s_geo.cli.options import (
    FILE,
    device_options,
    emit,
    libraries,
    limit_options,
    map_options,
    picture_options,
    polygon_options,
    pre_options,
    report_options,
    reporting,
    run_options,
    scene_options,
)

if TYPE_CHECKING:
    from l4s_geo.provenance.recorded import Record


def read(ctx: click.Context, param: click.Parameter, value: Path | None) -> Record | None:
    """Read a record; what it says is the default of every option."""
    if value is None:
        return None
    with libraries():
        from l4s_geo.provenance.recorded import read_record

    record = read_record(value)
    ctx.default_map = record.options
    return record


@click.command("map")
@click.argument("scene")
@click.option(
    "--from",
    "record",
    type=FILE,
    is_eager=True,
    callback=read,
    metavar="FILE.json",
    help="Repeat the run that wrote this record beside its output; options that are given win over it.",
)
@click.option(
    "--out",
    type=FILE,
    required=True,
    help="Polygons: .gpkg (best in QGIS), .fgb, .geojson, .parquet or .shp.",
)
@scene_options
@limit_options
@pre_options
@click.option("--prob", type=FILE, help="Also write the probabilities, as a Cloud-Optimized GeoTIFF.")
@click.option("--density", type=FILE, help="Also write landslide area per km2, in cells of 1 km, as a GeoTIFF.")
@click.option("--stac", type=FILE, help="Also write a STAC item (.json) that describes the outputs, and the model's.")
@picture_options
@map_options
@polygon_options
@device_options
@run_options
@report_options
@click.pass_context
def command(
    ctx: click.Context, /, record: Record | None, quiet: bool, verbose: bool, as_json: bool, **options: Any
) -> None:
    """Map the landslides of SCENE.

    SCENE is a GeoTIFF, VRT or COG, a GDAL address (/vsicurl/..., s3://...), a Sentinel-2 product (.SAFE,
    or a zip of it), a STAC item (file or address; see `l4s-map search`), a folder of single-band files, or
    an L4S .h5 patch. Digital numbers of Sentinel-2 are expected; see --units for others.

    \b
      l4s-map scene.tif --dem dem.tif --out landslides.gpkg
      l4s-map S2A_folder/ --out landslides.geojson --preset recall
      l4s-map --from landslides.gpkg.json --out again.gpkg
    """  # noqa: D301 (click wants the character itself)
    with libraries():
        import l4s_geo.models.zoo  # noqa: F401 (else imported when the networks are loaded)
        from l4s_geo.pipeline import MapOptions, map_scene

    wanted = MapOptions(**options)
    if record is not None:
        from l4s_geo.provenance.repeat import repeated

        given = [name for name in options if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        wanted = repeated(record, wanted, given)
    with reporting(quiet, verbose) as progress:
        result = map_scene(wanted, progress)
    emit(result.summary, result.message, as_json)
