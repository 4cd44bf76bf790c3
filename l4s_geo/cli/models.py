"""``l4s-map models``: what models there are, and what their cards say."""

from __future__ import annotations

import json

import click

from l4s_geo.cli.options import emit, plain


@click.group("models")
def command() -> None:
    """List the bundled models, or show a model's card."""


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


def _readable(value: object) -> str:
    """One line for a plain value, indented JSON for a nested one."""
    if isinstance(value, (dict, list, tuple)) and value:
        return json.dumps(plain(value), indent=2)
    return "-" if value in (None, "", (), [], {}) else str(value)
