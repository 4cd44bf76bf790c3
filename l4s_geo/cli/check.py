"""``l4s-map check``: what a scene is, and what would go wrong in mapping it."""

from __future__ import annotations

from pathlib import Path

import click

from l4s_geo.cli.options import FILE, emit, report_options, reporting, scene_options


@click.command("check")
@click.argument("scene")
@scene_options
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|DIR",
    help="Check against this model (repeatable). Default: the bundled one.",
)
@click.option("--stats", type=FILE, help="Write the scene's band statistics (.json), for `map --normalize FILE`.")
@report_options
def command(
    scene: str,
    dem: str | None,
    slope: str | None,
    bands: tuple[str, ...] | None,
    units: str,
    s2_offset: str,
    scl: bool,
    clouds: bool,
    models: tuple[str, ...],
    stats: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Say what SCENE is and what would go wrong in mapping it.

    A sample of the pixels is read. The exit code is 2 where mapping would be meaningless.
    """
    from l4s_geo.check import check_scene
    from l4s_geo.models.registry import DEFAULT, load_card
    from l4s_geo.outputs import atomic, check_output

    with reporting(quiet, verbose):
        if stats:
            check_output(stats, (".json",))
        cards = [load_card(name) for name in models or (DEFAULT,)]
        report = check_scene(
            scene, cards, bands=bands, dem=dem, slope=slope, units=units, s2_offset=s2_offset, scl=scl, clouds=clouds
        )
        if stats and report.statistics:
            with atomic(stats) as part:
                report.statistics.save(part)
    emit(report.to_dict(), report.text(), as_json)
    if not report.ok:
        raise click.exceptions.Exit(2)
