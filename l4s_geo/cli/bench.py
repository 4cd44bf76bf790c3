"""``l4s-map bench``: how fast this machine maps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4s_geo.cli.options import device_options, emit, map_options, report_options, reporting, scene_options

if TYPE_CHECKING:
    from l4s_geo.bench import Bench


def pixels(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """Parse ``WIDTHxHEIGHT`` or one number for both."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", value)
    size = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(size) < 1:
        raise click.BadParameter(f"{value!r} is no size in pixels, such as 4096 or 10980x4096.", ctx, param)
    return size


@click.command("bench")
@click.option(
    "--size",
    callback=pixels,
    default="2048",
    show_default=True,
    metavar="WIDTHxHEIGHT",
    help="Of the synthetic scene, in pixels.",
)
@click.option("--scene", metavar="SCENE", help="Measure on a scene of yours instead.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Repeat; medians are shown.")
@click.option("--workers", type=click.IntRange(1), help="Processor cores to use; all if not given.")
@scene_options
@map_options
@device_options
@report_options
def command(
    size: tuple[int, int], scene: str | None, rounds: int, quiet: bool, verbose: bool, as_json: bool, **options: Any
) -> None:
    """Map a scene, and say how long that takes beside the networks alone.

    The limit of any map is the forward pass of its networks. In turns, the forward passes alone are timed
    on patches that wait in memory, and the whole command in a process of its own, from its start to the
    finished file.

    \b
      l4s-map bench
      l4s-map bench --scene scene.tif --crf --json
    """  # noqa: D301 (click wants the character itself)
    from l4s_geo.bench import bench
    from l4s_geo.pipeline import MapOptions

    with reporting(quiet, verbose) as progress:
        wanted = MapOptions(scene=scene or "", out=Path("bench.gpkg"), **options)
        found = bench(wanted, None if scene else size, rounds, progress)
    emit(found.to_dict(), table(found), as_json)


def table(bench: Bench) -> str:
    """The figures as a text."""
    d = bench.to_dict()
    rounds = ", ".join(f"{r:.2f}" for r in d["over_bare_by_round"])
    lines = [
        f"{d['width']} x {d['height']} pixels, {d['patches']} patches, {d['device']}, {d['rounds']} rounds",
        f"{'forward passes alone':28}{d['bare_patches_per_second']:10,.0f} patches/s{d['bare_seconds']:10.1f} s",
        f"{'the command':28}{d['patches_per_second']:10,.0f} patches/s{d['seconds']:10.1f} s",
        f"{'command over forward':28}{d['over_bare']:10.2f} ({rounds})",
        f"{'its stages over forward':28}{d['stages_over_bare']:10.2f}",
        *(f"  {name:26}{share:10.1%}" for name, share in d["share"].items()),
        *(f"{'peak memory, ' + name:28}{mb:10,.0f} MB" for name, mb in d["memory_mb"].items()),
    ]
    return "\n".join(lines)
