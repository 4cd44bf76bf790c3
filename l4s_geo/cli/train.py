"""``l4s-map train``: labelled scenes to a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from l4s_geo.cli.options import FILE, Number, emit, names, report_options, reporting


@click.command("train")
@click.option(
    "--recipe",
    type=click.Choice(["bundled"]),
    default="bundled",
    show_default=True,
    help="How to train; 'bundled' is how the model that comes with the package was made.",
)
@click.option(
    "--data",
    "scenes",
    multiple=True,
    required=True,
    metavar="DIR",
    help="Labelled scene: a folder with rgb.tif (or image.tif) and labels.tif. Repeat it for more regions.",
)
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Model directory to write.")
@click.option("--arch", default="unet-resnet10t", show_default=True, help="Network; see `l4s_geo/models/zoo.py`.")
@click.option("--bands", callback=names, default="B4,B3,B2", show_default=True, help="Input bands.")
@click.option(
    "--holdout",
    multiple=True,
    metavar="NAME:ROW0-ROW1",
    help="Pixel rows of a scene that training never sees.",
)
@click.option(
    "--validate",
    multiple=True,
    metavar="NAME:ROW0-ROW1",
    help="Pixel rows to tune the thresholds on; held out as well.",
)
@click.option("--unseen", multiple=True, metavar="DIR", help="Labelled scene that is only watched, for the log.")
@click.option(
    "--negatives",
    multiple=True,
    metavar="SCENE[@UNITS]",
    help="Scene without any landslide (file, folder or 'dir/post_B*.tif').",
)
@click.option(
    "--synthetic",
    type=click.IntRange(0),
    default=32,
    show_default=True,
    help="Synthetic scenes without landslides.",
)
@click.option(
    "--negative-share",
    type=Number(0, 0.9),
    default=0.15,
    show_default=True,
    help="Share of the patches drawn from scenes without landslides.",
)
@click.option("--steps", type=click.IntRange(1), default=10_000, show_default=True, help="Most steps.")
@click.option("--minutes", type=Number(0.01), help="Time to train; the learning-rate cycle is fitted into it.")
@click.option("--batch-size", type=click.IntRange(2), default=16, show_default=True)
@click.option("--learning-rate", type=Number(0), default=2e-3, show_default=True, help="Peak of the cycle.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--init", type=FILE, metavar="DIR", help="Model directory to start from.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in --out.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="CPU threads; 0: all.")
@click.option(
    "--validate-minutes",
    type=Number(0.01),
    default=5.0,
    show_default=True,
    help="Time between validations and checkpoints.",
)
@report_options
def command(
    recipe: str,
    scenes: tuple[str, ...],
    out: Path,
    bands: tuple[str, ...],
    holdout: tuple[str, ...],
    validate: tuple[str, ...],
    unseen: tuple[str, ...],
    negatives: tuple[str, ...],
    synthetic: int,
    negative_share: float,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    r"""Train a network on labelled scenes.

    \b
      l4s-map train --data scenes/taitung --data scenes/rasuwa --out model \
          --holdout taitung:6400-7936 --validate taitung:6016-6400 --minutes 60
      l4s-map scene.tif --model model --out landslides.gpkg

    A run that was stopped continues with --resume.
    """
    from l4s_geo.train.split import DataOptions
    from l4s_geo.train.trainer import TrainOptions, train

    data = DataOptions(scenes, bands, holdout, validate, unseen, negatives, synthetic, negative_share)
    with reporting(quiet, verbose) as progress:
        card = train(TrainOptions(data=data, out=out, name=out.name, **options), progress)
    text = f"Model {card.name} in {out}: thresholds {card.thresholds}"
    emit(card.to_dict(), "\n".join([text, *(f"{k}: {v}" for k, v in card.metrics.items())]), as_json)
