"""``l4s-map train``: labelled scenes to a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4s_geo.cli.options import FILE, Number, emit, names, report_options, reporting

if TYPE_CHECKING:
    from l4s_geo.models.card import Card


@click.command("train")
@click.option(
    "--recipe",
    "recipe_name",
    default="bundled",
    show_default=True,
    metavar="NAME|FILE.toml",
    help="How to train: a recipe of the package (see `l4s-map models recipes`) or your own file. 'bundled' is how the "
    "model that comes with the package was made.",
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
@click.option(
    "--arch", "networks", multiple=True, metavar="NETWORK", help="Network instead of the recipe's; repeat for more."
)
@click.option("--bands", callback=names, metavar="B4,B3,B2", help="Input bands instead of the recipe's.")
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
    "--unlabelled",
    multiple=True,
    metavar="SCENE[@UNITS]",
    help="Scene to adapt to without labels (file, folder or 'dir/post_B*.tif'), or a folder of Landslide4Sense "
    "patches: for recipes with rounds of self-training. Repeat it for more.",
)
@click.option(
    "--synthetic",
    type=click.IntRange(0),
    help="Synthetic scenes without landslides instead of the recipe's number.",
)
@click.option(
    "--synthetic-landslides",
    type=click.IntRange(0),
    default=0,
    help="Synthetic scenes with landslides to learn from as well.",
)
@click.option(
    "--negative-share",
    type=Number(0, 0.9),
    help="Share of the patches drawn from synthetic scenes and those without landslides, instead of the recipe's.",
)
@click.option("--steps", type=click.IntRange(1), help="Steps of each network instead of the recipe's.")
@click.option(
    "--minutes", type=Number(0.01), help="Time for all networks; stages and learning-rate cycles are fitted into it."
)
@click.option("--batch-size", type=click.IntRange(2), help="Patches a step instead of the recipe's.")
@click.option("--accumulate", type=click.IntRange(1), default=1, help="Parts to cut a batch into, to save memory.")
@click.option("--learning-rate", type=Number(0), help="Peak of every stage instead of the recipe's.")
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
    recipe_name: str,
    scenes: tuple[str, ...],
    networks: tuple[str, ...],
    bands: tuple[str, ...] | None,
    batch_size: int | None,
    learning_rate: float | None,
    unlabelled: tuple[str, ...],
    synthetic: int | None,
    negative_share: float | None,
    out: Path,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on labelled scenes.

    \b
      l4s-map train --data scenes/taitung --data scenes/rasuwa --out model \\
          --holdout taitung:6400-7936 --validate taitung:6016-6400 --minutes 60
      l4s-map scene.tif --model model --out landslides.gpkg

    A run that was stopped continues with --resume. Recipes with rounds of self-training also learn from scenes without
    labels:

    \b
      l4s-map train --recipe seek --data scenes/taitung --unlabelled new/rgb.tif --out model
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.train import parallel
    from l4s_geo.train import recipe as recipes
    from l4s_geo.train.rounds import train_rounds
    from l4s_geo.train.run import TrainOptions
    from l4s_geo.train.split import DataOptions

    recipe = recipes.changed(
        recipes.load(recipe_name),
        networks=networks,
        bands=bands,
        batch_size=batch_size,
        learning_rate=learning_rate,
        synthetic=synthetic,
        negative_share=negative_share,
    )
    data = DataOptions(
        scenes,
        recipe.bands,
        synthetic=recipe.synthetic,
        negative_share=recipe.negative_share,
        compression=recipe.compression,
        normalization=recipe.normalization,
        **{k: options.pop(k) for k in ("holdout", "validate", "unseen", "negatives", "synthetic_landslides")},
    )
    wanted = TrainOptions(data=data, out=out, name=out.name, recipe=recipe, **options)
    with reporting(quiet, verbose) as progress, parallel.processes(wanted.device):
        card = train_rounds(wanted, unlabelled, progress)
        first = parallel.is_first()
    if first:
        emit(card.to_dict(), _summary(card, out, bool(recipe.rounds and not unlabelled)), as_json)


def _summary(card: Card, out: Path, rounds_left: bool) -> str:
    """What was made, in plain words."""
    text = [
        f"Model {card.name} in {out}: thresholds {card.thresholds}",
        *(f"{k}: {v}" for k, v in card.metrics.items()),
    ]
    if rounds_left:
        text.append("note: without --unlabelled scenes only the supervised training of the recipe was done")
    for i, round_ in enumerate(card.training.get("rounds", []), 1):
        text += [f"round {i} learnt from {name}: {pixels}" for name, pixels in round_["selected"].items()]
    return "\n".join(text)
