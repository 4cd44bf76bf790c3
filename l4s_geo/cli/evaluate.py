"""``l4s-map evaluate``: a result against reference data."""

from __future__ import annotations

import re
from pathlib import Path

import click

from l4s_geo.cli.options import FILE, SHARE, emit, report_options, reporting


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
@click.option("--threshold", type=SHARE, help="Where PRED is a probability; as in its own map if not given, else 0.5.")
@click.option(
    "--rows",
    callback=row_range,
    metavar="ROW0-ROW1",
    help="Only pixel rows ROW0 up to, not including, ROW1 of TRUTH.",
)
@click.option("--aoi", metavar="FILE", help="Only inside these polygons, or inside the frame of this raster.")
@click.option("--exclude", metavar="FILE", help="Not inside these polygons, such as those that a model learnt from.")
@click.option(
    "--tolerance",
    type=click.IntRange(0, 50),
    default=2,
    show_default=True,
    metavar="PIXELS",
    help="By which an edge may be off.",
)
@click.option("--report", type=FILE, metavar="FILE.html", help="Also write a page with all figures and curves.")
@click.option("--png", type=FILE, metavar="FILE.png", help="Also write the curves as a picture.")
@click.option("--overwrite", is_flag=True, help="Replace a page and a picture that exist.")
@report_options
def command(
    pred: str,
    truth: str,
    threshold: float | None,
    rows: tuple[int, int] | None,
    aoi: str | None,
    exclude: str | None,
    tolerance: int,
    report: Path | None,
    png: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compare PRED with TRUTH: pixels, landslides as objects by size, and edges.

    Each may be a raster (1 landslide, 0 background, 255 unknown; PRED also a probability) or polygons. Of
    probabilities it also says how true they are, which thresholds are best, and whether doubt finds the errors.

    \b
      l4s-map evaluate landslides.gpkg labels.tif
      l4s-map evaluate prob.tif labels.tif --report evaluation.html
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.evaluation.evaluate import evaluate
    from l4s_geo.evaluation.scorecard import check_target, write_curves, write_page

    with reporting(quiet, verbose):
        for path, extension in ((report, ".html"), (png, ".png")):
            if path is not None:
                check_target(path, extension, overwrite, (pred, truth))
        found = evaluate(
            pred, truth, threshold=threshold, rows=rows, aoi=aoi, exclude=exclude, details=True, tolerance=tolerance
        )
        if report is not None:
            write_page(report, found)
        if png is not None:
            write_curves(png, found)
    emit(found.to_dict(), found.text(), as_json)
