"""``l4s-map search``: scenes of a catalogue, and a scene with its elevation ready to be mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4s_geo.cli.options import FILE, Number, emit, report_options, reporting

if TYPE_CHECKING:
    from l4s_geo.catalogue.api import Catalogue
    from l4s_geo.catalogue.search import Scene
    from l4s_geo.progress import Progress


@click.command("search")
@click.option(
    "--catalog", required=True, metavar="URL", help="STAC catalogue: address of its API or catalog.json, or a file."
)
@click.option("--bbox", metavar="W,S,E,N", help="Area: longitudes and latitudes in degrees.")
@click.option("--aoi", metavar="FILE", help="Area: the polygons of any vector file, instead of --bbox.")
@click.option(
    "--dates", metavar="START/END", help="Such as 2018-09-06/2018-10-06 (both included), 2018-09-06/.. or 2018-09."
)
@click.option("--max-cloud", type=Number(0, 100), metavar="PERCENT", help="Leave out scenes with more clouds.")
@click.option(
    "--collection", "collections", multiple=True, metavar="ID", help="Repeatable. Default: Sentinel-2 Level-2A."
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Scenes to list.")
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Write the chosen scene with its elevation as a STAC item (.json) for `l4s-map FILE`; "
    "a folder for several scenes.",
)
@click.option(
    "--pick", "picks", multiple=True, metavar="N|ID", help="Scene for --out, by its line or id; repeatable. Default: 1."
)
@click.option(
    "--dem-collection",
    metavar="ID|none",
    help="Of the elevation for --out. Default: Copernicus GLO-30, else ALOS, of the same catalogue.",
)
@click.option("--overwrite", is_flag=True, help="Replace what --out names.")
@report_options
def command(
    catalog: str,
    bbox: str | None,
    aoi: str | None,
    dates: str | None,
    max_cloud: float | None,
    collections: tuple[str, ...],
    limit: int,
    out: Path | None,
    picks: tuple[str, ...],
    dem_collection: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """List the Sentinel-2 scenes of a STAC catalogue, and get one ready to be mapped.

    Those that are likely to show most of the area come first (the share that a scene covers, less its
    clouds), and among equals the earliest.

    \b
      l4s-map search --catalog https://earth-search.aws.element84.com/v1 \\
          --bbox 141.8,42.6,142.1,42.9 --dates 2018-09-06/2018-10-31 --max-cloud 30 --out stack.json
      l4s-map stack.json --out landslides.gpkg
    """  # noqa: D301 (click wants the character itself)
    if (bbox is None) == (aoi is None):
        raise click.UsageError("Say where: either --bbox W,S,E,N or --aoi FILE.")
    if picks and out is None:
        raise click.UsageError("--pick chooses what --out writes. Give --out too.")
    from l4s_geo.catalogue.api import open_catalogue
    from l4s_geo.catalogue.places import parse_bbox, read_area
    from l4s_geo.catalogue.search import Query, choose, find_scenes, parse_dates, table

    area = parse_bbox(bbox) if bbox is not None else read_area(str(aoi))
    query = Query(area, parse_dates(dates) if dates else (None, None), max_cloud, collections)
    if out is not None:
        _check(out, picks, overwrite)
    with reporting(quiet, verbose) as progress, open_catalogue(catalog) as catalogue:
        found = find_scenes(catalogue, query, progress)
        listed = found.scenes[:limit]
        notes = list(found.notes)
        if len(listed) < len(found.scenes):
            notes.append(f"{len(found.scenes) - len(listed)} more scenes: --limit")
        written: list[Path] = []
        if out is not None and listed:
            written = _write(out, choose(listed, picks), catalogue, dem_collection, notes, progress)
    summary: dict[str, Any] = {
        "catalog": catalogue.address,
        "collections": list(found.collections),
        "found": len(found.scenes),
        "scenes": [{"number": n, **scene.to_dict()} for n, scene in enumerate(listed, 1)],
        "out": [str(path) for path in written],
        "notes": notes,
    }
    lines = [*table(listed)] if listed else [f"No scene found in {catalogue.address}."]
    emit(summary, "\n".join([*lines, *(f"note: {n}" for n in notes), *_next(listed, written, out)]), as_json)


def _check(out: Path, picks: Sequence[str], overwrite: bool) -> None:
    """Check before any work whether ``--out`` can be written."""
    from l4s_geo.errors import OutputError
    from l4s_geo.outputs import check_output

    if out.suffix.lower() == ".json" and len(picks) < 2:
        check_output(out, (".json",))
        if out.exists() and not overwrite:
            raise OutputError(f"{out} exists. Give --overwrite to replace it, or another name.")
    elif out.suffix:
        raise OutputError(f"{out}: one scene is written as a .json file, several into a folder. Change the name.")


def _write(
    out: Path,
    scenes: Sequence[Scene],
    catalogue: Catalogue,
    dem: str | None,
    notes: list[str],
    progress: Progress,
) -> list[Path]:
    """Write a file for every scene, and note what is in them."""
    from l4s_geo.catalogue.stack import build, dem_collection, write_stacks

    collection = dem_collection(catalogue, dem)
    stacks = [build(scene, catalogue, collection, progress) for scene in scenes]
    notes += dict.fromkeys(note for stack in stacks for note in stack.notes)
    return write_stacks(stacks, out)


def _next(listed: Sequence[Scene], written: Sequence[Path], out: Path | None) -> list[str]:
    """What to type next."""
    if len(written) == 1:
        return [f"Written to {written[0]}. Map it: l4s-map {written[0]} --out landslides.gpkg"]
    if written:
        return [f"Written to {out}: {len(written)} scenes. Map them: l4s-map batch '{out}/*.json' --out maps"]
    if not listed:
        return ["Nothing was written."] if out else []
    return ["To map the first, or another one (--pick), with its elevation, add: --out stack.json"]
