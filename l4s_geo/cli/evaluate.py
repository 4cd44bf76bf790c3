"""``l4s-map evaluate``: a result against reference data."""

from __future__ import annotations

import re

import click

from l4s_geo.cli.options import SHARE, emit, report_options, reporting


def row_range(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """``ROW0-ROW1``, half open as in ``train --holdout``, to numbers."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)-(\d+)", value)
    if not found or int(found[1]) >= int(found[2]):
        raise click.BadParameter(f"{value!r} is not a range of rows such as 6400-7936.", ctx, param)
    return int(found[1]), int(found[2])


@click.command("evaluate")
@click.argument("pred")
@click.argument("truth")
@click.option("--threshold", type=SHARE, default=0.5, show_default=True, help="Where PRED is a probability.")
@click.option(
    "--rows",
    callback=row_range,
    metavar="ROW0-ROW1",
    help="Only pixel rows ROW0 up to, not including, ROW1 of TRUTH.",
)
@click.option("--aoi", metavar="FILE", help="Only inside these polygons, or inside the frame of this raster.")
@click.option("--exclude", metavar="FILE", help="Not inside these polygons, such as those that a model learnt from.")
@report_options
def command(
    pred: str,
    truth: str,
    threshold: float,
    rows: tuple[int, int] | None,
    aoi: str | None,
    exclude: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compare PRED with TRUTH, pixel by pixel: precision, recall, F1 and IoU.

    Each may be a raster (1 landslide, 0 background, 255 unknown; PRED also a probability) or polygons.
    """
    from l4s_geo.evaluate import evaluate

    with reporting(quiet, verbose):
        found = evaluate(pred, truth, threshold=threshold, rows=rows, aoi=aoi, exclude=exclude)
    emit(found.to_dict(), found.text(), as_json)
