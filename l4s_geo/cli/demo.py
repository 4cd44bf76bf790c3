"""``l4s-map demo``: a synthetic scene, mapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4s_geo.cli.options import FILE, emit, report_options, reporting
from l4s_geo.errors import OutputError

if TYPE_CHECKING:
    from l4s_geo.progress import Progress


#: What it writes.
FILES = ("scene.tif", "dem.tif", "truth.tif", "landslides.gpkg", "prob.tif")


@click.command("demo")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Folder for the scene and the result.")
@click.option(
    "--size",
    type=click.IntRange(64, 4096),
    default=512,
    show_default=True,
    help="Side of the scene in pixels of 10 m.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Another number, another scene.")
@click.option("--no-map", is_flag=True, help="Only write the scene.")
@click.option("--overwrite", is_flag=True, help="Replace files of an earlier demo.")
@report_options
def command(
    out: Path, size: int, seed: int, no_map: bool, overwrite: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Make a small synthetic scene with landslides and map it.

    The folder gets scene.tif (12 Sentinel-2 bands), dem.tif and truth.tif, then landslides.gpkg and
    prob.tif. The scene is drawn by a program: its figures show that everything works, not how good the
    models are.
    """
    with reporting(quiet, verbose) as progress:
        refuse_to_replace(out, overwrite)
        paths = write_demo_scene(out, size, seed)
        summary: dict[str, Any] = {name: str(path) for name, path in paths.items()}
        lines = [f"Synthetic scene: {', '.join(summary.values())}"]
        if not no_map:
            message, found = map_demo_scene(out, paths, progress)
            summary |= found
            lines.append(message)
    emit(summary, "\n".join(lines), as_json)


def refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Keep a person's own scene.tif or dem.tif where the folder holds one.

    Raises:
        OutputError: A file of the demo's is there.
    """
    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise OutputError(f"{out} already holds {', '.join(there)}. Give another folder, or --overwrite to replace.")


def write_demo_scene(out: Path, size: int, seed: int) -> dict[str, Path]:
    """Write the scene, its DEM and its truth into a folder that is made if needed.

    Raises:
        OutputError: The folder cannot be made or written.
    """
    from l4s_geo.data.synthetic import make_scene, write_scene

    try:
        out.mkdir(parents=True, exist_ok=True)
        return write_scene(make_scene(size, size, seed), out)
    except OSError as e:
        raise OutputError(f"Cannot write the demo into {out}: {e.strerror or e}. Choose another one.") from e


def map_demo_scene(out: Path, paths: dict[str, Path], progress: Progress) -> tuple[str, dict[str, Any]]:
    """Map the scene as ``l4s-map`` would and compare the result with the truth.

    Returns:
        A text for people, and the summary: ``map`` and ``evaluation``.
    """
    from l4s_geo.evaluation.evaluate import evaluate
    from l4s_geo.pipeline import MapOptions, map_scene

    options = MapOptions(
        scene=str(paths["scene"]),
        dem=str(paths["dem"]),
        out=out / "landslides.gpkg",
        prob=out / "prob.tif",
        overwrite=True,
    )
    result = map_scene(options, progress)
    found = evaluate(options.out, paths["truth"])
    return f"{result.message}\n{found.text()}", {"map": result.summary, "evaluation": found.to_dict()}
