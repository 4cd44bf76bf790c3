"""``l4s-map map``: a scene to polygons."""

from __future__ import annotations

from typing import Any

import click

from l4s_geo.cli.options import (
    FILE,
    Number,
    device_options,
    emit,
    polygon_options,
    report_options,
    reporting,
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
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|DIR",
    help="Bundled model or model directory; repeat it to average several. Default: the bundled ensemble.",
)
@click.option("--prob", type=FILE, help="Also write the probabilities, as a Cloud-Optimized GeoTIFF.")
@click.option(
    "--preset",
    type=click.Choice(["balanced", "recall", "precision", "fast"]),
    default="balanced",
    show_default=True,
    help="Miss fewer (recall), be surer (precision), or take less time (fast). Other options override it.",
)
@polygon_options
@click.option("--overlap", type=Number(0, 0.9), help="Share of a patch's side that overlaps with the next.")
@click.option("--tta/--no-tta", default=None, help="Average over flips and rotations of every patch.")
@click.option("--crf/--no-crf", default=None, help="Refine outlines along the image's edges.")
@click.option(
    "--normalize",
    metavar="scene|centre|model|FILE",
    help="Band statistics: of this scene, its mean with the spread of the model's training data (centre), those of the "
    "training data alone, or from a file of `check --stats`; as the model's card says if not given.",
)
@device_options
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@report_options
def command(quiet: bool, verbose: bool, as_json: bool, **options: Any) -> None:
    """Map the landslides of SCENE.

    SCENE is a GeoTIFF, VRT or COG, a GDAL address (/vsicurl/..., s3://...), a folder of single-band
    files, or an L4S .h5 patch. Digital numbers of Sentinel-2 are expected; see --units for others.

    \b
      l4s-map scene.tif --dem dem.tif --out landslides.gpkg
      l4s-map S2A_folder/ --out landslides.geojson --preset recall
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.pipeline import MapOptions, map_scene

    with reporting(quiet, verbose) as progress:
        result = map_scene(MapOptions(**options), progress)
    emit(result.summary, result.message, as_json)
