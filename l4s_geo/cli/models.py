"""``l4s-map models``: what models there are, and what their cards say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from l4s_geo.cli.options import FILE, emit, plain


@click.group("models")
def command() -> None:
    """List the bundled models and the training recipes, show a model's card, join models, or calibrate one."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def list_(as_json: bool) -> None:
    """List the bundled models."""
    from l4s_geo.models.registry import list_models

    cards = list_models()
    lines = [
        f"{c.name}  version {c.version}, {len(c.networks)} networks, bands {' '.join(c.bands)}, "
        f"{c.resolution_m:g} m, threshold {c.thresholds['balanced']:g}, {c.licence}"
        for c in cards
    ]
    text = "\n".join(lines) or "No bundled models; name a model directory with --model."
    emit({"models": [c.to_dict() for c in cards]}, text, as_json)


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def show(name: str, as_json: bool) -> None:
    """Show the card of the model NAME, a bundled model or a model directory."""
    from l4s_geo.models.registry import load_card

    card = load_card(name).to_dict()
    emit(card, "\n".join(f"{key}: {_readable(value)}" for key, value in card.items()), as_json)


@command.command("recipes")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def recipes_(as_json: bool) -> None:
    """List the recipes that `l4s-map train --recipe` takes."""
    from l4s_geo.train import recipe

    found = {name: recipe.load(name) for name in recipe.names()}
    lines = [f"{name}  {r.title}; {', '.join(r.networks)}" for name, r in found.items()]
    emit({"recipes": {name: asdict(r) for name, r in found.items()}}, "\n".join(lines), as_json)


@command.command("join")
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Model directory to write.")
@click.option("--data", "scenes", multiple=True, required=True, metavar="DIR", help="Labelled scene; repeatable.")
@click.option(
    "--validate",
    multiple=True,
    required=True,
    metavar="NAME:ROW0-ROW1",
    help="Pixel rows to tune the thresholds on; no model may have been trained on them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def join_(names: tuple[str, ...], out: Path, scenes: tuple[str, ...], validate: tuple[str, ...], as_json: bool) -> None:
    """Make one model of several: their networks' probabilities are averaged."""
    from l4s_geo.train.join import join
    from l4s_geo.train.split import DataOptions

    card = join(names, DataOptions(scenes, validate=validate), out, out.name)
    text = f"Model {card.name} with {len(card.networks)} networks in {out}: thresholds {card.thresholds}"
    emit(card.to_dict(), text, as_json)


@command.command("calibrate")
@click.argument("name", metavar="MODEL")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Model directory to write; must not exist.")
@click.option("--data", "scenes", multiple=True, required=True, metavar="DIR", help="Labelled scene; repeatable.")
@click.option(
    "--validate",
    multiple=True,
    metavar="NAME:ROW0-ROW1",
    help="Only these pixel rows; all of the scenes if not given. The model must not have been trained on them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def calibrate_(name: str, out: Path, scenes: tuple[str, ...], validate: tuple[str, ...], as_json: bool) -> None:
    """Write MODEL again with probabilities that fit labelled scenes: of the pixels with 0.8, 8 in 10 are landslide.

    Networks and maps stay the same; the thresholds change with the probabilities.
    """
    from l4s_geo.train.calibrate import calibrate
    from l4s_geo.train.split import DataOptions

    card = calibrate(name, DataOptions(scenes, validate=validate), out)
    found = card.calibration
    text = (
        f"Model {card.name} in {out}: log-odds x {found['slope']:g} {found['intercept']:+g}; calibration error on "
        f"{found['split']} {found['ece']['before']:.4f} before, {found['ece']['after']:.4f} after; thresholds "
        + ", ".join(f"{k} {t:.3g}" for k, t in card.thresholds.items())
    )
    emit(card.to_dict(), text, as_json)


def _readable(value: object) -> str:
    """One line for a plain value, indented JSON for a nested one."""
    if isinstance(value, (dict, list, tuple)) and value:
        return json.dumps(plain(value), indent=2)
    return "-" if value in (None, "", (), [], {}) else str(value)
