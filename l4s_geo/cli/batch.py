"""``l4s-map batch``: many scenes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4s_geo.cli.options import (
    FILE,
    device_options,
    emit,
    libraries,
    limit_options,
    map_options,
    polygon_options,
    pre_options,
    report_options,
    reporting,
    run_options,
    scene_options,
)

if TYPE_CHECKING:
    from l4s_geo.batch import Outcome


def part(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """Parse ``i/n``."""
    first, _, of = value.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise click.BadParameter(f"{value!r} is not i/n with i from 1 to n, such as 3/10.", ctx, param)
    return int(first), int(of)


@click.command("batch")
@click.argument("scenes", nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Folder of the results, one for each scene.")
@click.option(
    "--format",
    "extension",
    type=click.Choice(["gpkg", "fgb", "geojson", "parquet", "shp"]),
    default="gpkg",
    show_default=True,
    help="Of the polygons.",
)
@click.option("--prob", is_flag=True, help="Also write the probabilities of each scene, NAME.tif.")
@click.option("--density", is_flag=True, help="Also write landslide area per km2 of each scene, NAME-density.tif.")
@click.option("--stac", is_flag=True, help="Also write a STAC item of each scene, NAME-item.json, and of the model.")
@click.option("--report", is_flag=True, help="Also write a page about each scene, NAME.html.")
@click.option("--quicklook", is_flag=True, help="Also draw each scene with its landslides, NAME.png.")
@click.option(
    "--split",
    callback=part,
    default="1/1",
    metavar="i/n",
    help="Map the i-th of n parts of the list only: for n jobs of a scheduler that share the work.",
)
@click.option(
    "--ray",
    is_flag=False,
    flag_value="auto",
    metavar="[ADDRESS]",
    help="Compute on the machines of a Ray cluster: its address, or auto for the one that this machine belongs to.",
)
@scene_options
@limit_options
@pre_options
@map_options
@polygon_options
@device_options
@run_options
@report_options
def command(
    scenes: tuple[str, ...],
    out: Path,
    extension: str,
    split: tuple[int, int],
    ray: str | None,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Map many SCENES, one after another.

    A word is a scene, a pattern in quotes ('scenes/*.tif'), or a list: a .txt file with one scene a
    line, or a .csv file with the column scene and, if wanted, dem, slope, pre and name. What fails does not stop
    the rest. With --resume, scenes whose result is there are left alone, and one that was
    interrupted goes on.

    \b
      l4s-map batch 'scenes/*.tif' --dem dem.tif --out maps/
      l4s-map batch list.csv --out maps/ --resume --split $SLURM_ARRAY_TASK_ID/20
      l4s-map batch list.csv --out maps/ --ray
    """  # noqa: D301 (click wants the character itself)
    with libraries():
        import l4s_geo.models.zoo  # noqa: F401 (else imported when the networks are loaded)
        from l4s_geo.batch import BESIDE, find_jobs, map_batch
        from l4s_geo.pipeline import MapOptions

    jobs = find_jobs(scenes, split)
    also = [name for name in BESIDE if options.pop(name)]
    wanted = MapOptions(scene="", out=out, **options)
    with reporting(quiet, verbose) as progress:
        if ray:
            from l4s_geo.cluster import on_ray
        with on_ray(ray) if ray else nullcontext() as source:
            batch = map_batch(
                jobs,
                out,
                wanted,
                progress,
                extension=f".{extension}",
                also=also,
                source=source,
            )
            outcomes = list(batch)
    emit({"scenes": [o.to_dict() for o in outcomes]}, table(outcomes), as_json)
    if any(o.state == "failed" for o in outcomes):
        raise click.exceptions.Exit(2)


def table(outcomes: list[Outcome]) -> str:
    """One line a scene, and below what went wrong."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    shown = Table("scene", "", "landslides", "ha", "expected F1", "seconds", box=None, pad_edge=False)
    for o in outcomes:
        shown.add_row(o.job.name, o.state, *_figures(o.summary), f"{o.seconds:.0f}")
    text = StringIO()
    Console(file=text, width=160).print(shown)
    failed = [f"{o.job.name}: {o.error}" for o in outcomes if o.error]
    states = ", ".join(
        f"{count} {state}"
        for state in ("mapped", "there already", "failed")
        if (count := sum(o.state == state for o in outcomes))
    )
    return "\n".join([text.getvalue().rstrip(), states or "no scenes", *failed])


def _figures(summary: dict[str, Any] | None) -> tuple[str, str, str]:
    """Number of landslides, their area and the expected F1 of a scene, empty where they are not known."""
    if not summary:
        return "", "", ""
    expected = summary["expected_f1"]
    return f"{summary['landslides']}", f"{summary['area_m2'] / 1e4:,.1f}", "" if expected is None else f"{expected:.2f}"
