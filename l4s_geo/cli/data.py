"""``l4s-map data``: the Landslide4Sense data set, as it is, as whole scenes, and made up."""

from __future__ import annotations

from pathlib import Path

import click

from l4s_geo.cli.options import FILE, emit, report_options, reporting


@click.group("data")
def command() -> None:
    """Get the Landslide4Sense data set, put its patches back into scenes, or make synthetic ones."""


@command.command("l4s")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Folder for the data set.")
@report_options
def l4s(out: Path, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Download the Landslide4Sense data set from Hugging Face.

    It has 3799 training, 245 validation and 800 test patches, each with its mask, in several gigabytes.
    A download that was stopped goes on when you give the same command again. At the end every file is
    compared with its checksum, and the patches are counted.

    \b
      l4s-map data l4s --out landslide4sense
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.data.download import download_l4s

    with reporting(quiet, verbose):
        counts = download_l4s(out, quiet=quiet)
    text = ", ".join(f"{n['images']} {split}" for split, n in counts.items())
    emit({"out": str(out), "splits": counts}, f"Complete in {out}: {text} patches with their masks", as_json)


@command.command("mosaic")
@click.argument("folder", type=FILE)
@click.option("--out", type=FILE, required=True, metavar="DIR", help="New folder for the scenes.")
@report_options
def mosaic_(folder: Path, out: Path, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Put the training patches in FOLDER back into the scenes that they were cut from.

    FOLDER is the data set, or holds any of image_1.h5 to image_3799.h5. For each of the regions taitung,
    hokkaido, rasuwa and kodagu you get image.tif (12 Sentinel-2 bands, slope and elevation) and
    labels.tif (0 background, 1 landslide, 255 unknown), ready for `l4s-map train --data DIR/REGION` and
    for QGIS. Only hokkaido lies where it is on Earth; the position of the others is not known.

    \b
      l4s-map data mosaic landslide4sense --out scenes
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.data.mosaic import describe, mosaic, summary

    with reporting(quiet, verbose) as progress:
        made = mosaic(folder, out, progress)
    emit(summary(made), describe(made), as_json)


@command.command("synth")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="New folder for the data set.")
@click.option(
    "--count",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Training patches; validation gets a sixteenth of it and test a fifth, at least one.",
)
@click.option(
    "--layout",
    type=click.Choice(["traindata", "images"]),
    default="images",
    show_default=True,
    help="Folders as in the original download (TrainData/img ...) or as on Hugging Face (images/train ...).",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Another number, other patches.")
@report_options
def synth(out: Path, count: int, layout: str, seed: int, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Make synthetic patches in the layout of Landslide4Sense.

    They are drawn by a program, to try commands without the data set: what a model learns from them says
    nothing about real landslides. All 14 bands are there, in the units of the data set.

    \b
      l4s-map data synth --out synthetic --count 100
      l4s-map predict-patches synthetic --out masks.zip
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.data.synth_l4s import write_synthetic

    with reporting(quiet, verbose) as progress:
        counts = write_synthetic(out, count, layout, seed, progress)
    text = ", ".join(f"{n} {split}" for split, n in counts.items())
    emit({"out": str(out), "patches": counts}, f"Synthetic patches in {out}: {text}", as_json)
