"""``l4s-map predict-patches``: Landslide4Sense patches to masks."""

from __future__ import annotations

from typing import Any

import click

from l4s_geo.cli.options import FILE, SHARE, device_options, emit, report_options, reporting


@click.command("predict-patches")
@click.argument("folder", type=FILE)
@click.option(
    "--out",
    type=FILE,
    required=True,
    metavar="ZIP|DIR",
    help="NAME.zip: the archive that the leaderboard takes. Any other name: a new folder with masks and archive.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|DIR",
    help="Bundled model or model directory; repeat it to average several. Default: the bundled ensemble.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="Which patches, where FOLDER is a whole data set.",
)
@click.option("--threshold", type=SHARE, help="Probability from which on a pixel is landslide. Default: the model's.")
@click.option(
    "--preset",
    type=click.Choice(["balanced", "recall", "precision"]),
    default="balanced",
    show_default=True,
    help="Which of the model's thresholds: miss fewer (recall) or be surer (precision).",
)
@click.option("--tta/--no-tta", default=None, help="Average over flips and rotations of every patch.")
@click.option(
    "--normalize",
    metavar="folder|blend|model|FILE",
    help="Band statistics: of all patches together, the same moved a bit towards the model's training data (blend), of "
    "the training data alone (model), or from a file of `check --stats`; as the model's card says if not given.",
)
@device_options
@click.option("--overwrite", is_flag=True, help="Replace an archive that exists.")
@report_options
def command(quiet: bool, verbose: bool, as_json: bool, **options: Any) -> None:
    """Map every image_N.h5 of FOLDER to a mask_N.h5.

    FOLDER holds patches of Landslide4Sense: image_N.h5 itself, or the whole data set (TestData/img or
    images/test; see --split). Masks are 128 x 128 pixels, 1 where there is a landslide and 0 elsewhere.
    Where the folder has masks already, precision, recall and F1 against them are printed.

    \b
      l4s-map predict-patches landslide4sense --split validation --out submission.zip
      l4s-map predict-patches landslide4sense/TestData/img --out masks
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.submission import PatchOptions, predict_patches

    with reporting(quiet, verbose) as progress:
        result = predict_patches(PatchOptions(**options), progress)
    emit(result.summary, result.message, as_json)
