"""``l4s-map adapt``: a model fitted to new scenes without labels."""

from __future__ import annotations

from typing import Any

import click

from l4s_geo.cli.options import FILE, Number, device_options, emit, names, report_options, reporting


@click.command("adapt")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENE...")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Model directory to write, with a report.")
@click.option("--model", help="Model to start from: a bundled one or a directory; the bundled one if not given.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    metavar="auto|progressive|mc-dropout|top-confidence|FILE.toml",
    help="How the model teaches itself.",
)
@click.option(
    "--source",
    multiple=True,
    metavar="DIR",
    help="Labelled scene or Landslide4Sense folder to learn from as well. Repeat it for more.",
)
@click.option(
    "--labels",
    type=FILE,
    metavar="FILE",
    help="Whole outlines of some landslides in the scenes; with a column 'landslide' (1 or 0) of other ground as well.",
)
@click.option("--aoi", type=FILE, metavar="FILE", help="Use only what lies inside these polygons.")
@click.option(
    "--mask",
    "masks",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Clouds and other ground not to be used: polygons, or a raster that is not 0 there. Repeatable.",
)
@click.option("--clouds", is_flag=True, help="Use nothing that looks like cloud, as `map --clouds` does.")
@click.option(
    "--truth",
    multiple=True,
    metavar="FILE",
    help="Labels of a scene, only for the figures in the report; one for each scene, in their order.",
)
@click.option(
    "--bands", callback=names, metavar="B4,B3,B2", help="Names of the bands in file order, if not in the file."
)
@click.option(
    "--arch", "networks", multiple=True, metavar="NETWORK", help="Network that learns instead of the model's."
)
@click.option("--rounds", type=click.IntRange(1), help="Rounds instead of the method's.")
@click.option("--steps", type=click.IntRange(1), help="Steps of each network in a round instead of the method's.")
@click.option("--minutes", type=Number(0.01), help="Most time for all trainings together.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with an adaptation that was stopped.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="CPU threads; 0: all.")
@device_options
@report_options
def command(model: str | None, quiet: bool, verbose: bool, as_json: bool, **options: Any) -> None:
    """Fit a model to SCENE without labels: it maps the scene and learns from what it is sure of.

    SCENE is what the map command takes, with @reflectance or @byte behind it for other units. Give several scenes of
    one region together. A guard without labels watches the model; if no round is safe, the starting model is kept.

    \b
      l4s-map adapt scene.tif --out my-region
      l4s-map scene.tif --model my-region --out landslides.gpkg
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.adapt.loop import adapt
    from l4s_geo.adapt.options import AdaptOptions
    from l4s_geo.models.registry import DEFAULT

    wanted = AdaptOptions(model=model or DEFAULT, **options)
    with reporting(quiet, verbose) as progress:
        found = adapt(wanted, progress)
    text = [
        f"Model {found.card.name} in {wanted.out}: {found.verdict}",
        *(f"round {r.number}: {_figures(r.figures)}" for r in found.rounds if r.figures),
        f"Report: {found.report}",
    ]
    emit(found.summary(), "\n".join(text), as_json)


def _figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
