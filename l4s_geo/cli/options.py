"""Options that several verbs share, and how results are printed."""

from __future__ import annotations

import gc
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from l4s_geo.errors import OutputError, reason

if TYPE_CHECKING:
    from l4s_geo.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

#: Outputs: whether they can be written is for the library to say, with what to do about it.
FILE = click.Path(path_type=Path)
UNITS = click.Choice(["auto", "dn", "reflectance", "byte"])
OFFSETS = click.Choice(["auto", "0", "-1000"])


class Number(click.FloatRange):
    """A number in a range; NaN and infinity are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse and check."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


SHARE = Number(0, 1)
METRES = Number(0)


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split ``B4,B3,B2``."""
    if value is None:
        return None
    found = tuple(part.strip() for part in value.split(","))
    if not all(found):
        raise click.BadParameter(f"{value!r} has an empty name; write them as B4,B3,B2.", ctx, param)
    return found


def scene_options(command: F) -> F:
    """What says how a scene is to be read."""
    for option in (
        click.option(
            "--scl/--no-scl",
            default=True,
            show_default=True,
            help="Leave out what the scene classification of a Level-2A product or item calls cloud, cirrus, shadow "
            "of a cloud, snow or defective.",
        ),
        click.option(
            "--clouds",
            is_flag=True,
            help="Leave out what looks like cloud: bright and white in B2, B3 and B4, or bright in B10. For Level-1C "
            "scenes, which have no classification; look at not_seen, for fresh scars are bright too.",
        ),
        click.option(
            "--s2-offset",
            type=OFFSETS,
            default="auto",
            show_default=True,
            help="Added to digital numbers: what the metadata of a SAFE product or STAC item say (auto; none for "
            "other files), nothing (0), or the -1000 of processing baseline 04.00 and newer for files that have lost "
            "their metadata.",
        ),
        click.option(
            "--units",
            type=UNITS,
            default="auto",
            show_default=True,
            help="Of the pixel values: Sentinel-2 digital numbers (dn), reflectance 0..1, or a byte rendering 0..255.",
        ),
        click.option(
            "--bands",
            callback=names,
            metavar="B4,B3,B2",
            help="Names of the scene's bands in file order, where the files do not say.",
        ),
        click.option("--slope", metavar="RASTER", help="Slope in degrees; derived from --dem if not given."),
        click.option("--dem", metavar="RASTER", help="Elevation in metres, any grid and coordinate system."),
    ):
        command = option(command)
    return command


def limit_options(command: F) -> F:
    """Where to look."""
    for option in (
        click.option(
            "--mask",
            "masks",
            multiple=True,
            metavar="FILE",
            help="Clouds and other ground not to be mapped: polygons, or a raster that is not 0 there. Repeatable.",
        ),
        click.option("--aoi", metavar="FILE", help="Map only what lies inside these polygons, any vector file."),
    ):
        command = option(command)
    return command


def pre_options(command: F) -> F:
    """What was there before the event."""
    for option in (
        click.option(
            "--pre-action",
            type=click.Choice(["drop", "flag"]),
            default="drop",
            show_default=True,
            help="Landslides that --pre shows as bare ground already: leave them out, or keep them with `new` = no.",
        ),
        click.option(
            "--pre",
            metavar="SCENE",
            help="Scene from before the event, in any form that SCENE may have: tells which landslides are new.",
        ),
    ):
        command = option(command)
    return command


def map_options(command: F) -> F:
    """What makes probabilities of a scene."""
    for option in (
        click.option(
            "--normalize",
            metavar="scene|blend|centre|model|FILE",
            help="Band statistics: of this scene, the same moved a bit towards the model's training data (blend), this "
            "scene's mean with the spread of the training data (centre), of the training data alone (model), or from "
            "a file of `check --stats`; as the model's card says if not given.",
        ),
        click.option("--crf/--no-crf", default=None, help="Refine outlines along the image's edges."),
        click.option("--tta/--no-tta", default=None, help="Average over flips and rotations of every patch."),
        click.option("--overlap", type=Number(0, 0.9), help="Share of a patch's side that overlaps with the next."),
        click.option(
            "--preset",
            type=click.Choice(["balanced", "recall", "precision", "fast"]),
            default="balanced",
            show_default=True,
            help="Miss fewer (recall), be surer (precision), or take less time (fast). Other options override it.",
        ),
        click.option(
            "--model",
            "models",
            multiple=True,
            metavar="NAME|DIR",
            help="Bundled model or model directory; repeat it to average several. Default: the bundled ensemble.",
        ),
    ):
        command = option(command)
    return command


def polygon_options(command: F) -> F:
    """What turns probabilities into polygons."""
    for option in (
        click.option(
            "--simplify",
            type=METRES,
            default=0.0,
            show_default=True,
            metavar="METRES",
            help="Straighten outlines by up to this much; shared borders stay shared.",
        ),
        click.option("--max-hole", type=METRES, metavar="M2", help="Close holes smaller than this."),
        click.option(
            "--min-slope",
            type=Number(0, 90),
            metavar="DEGREES",
            help="Leave out landslides on ground that is flatter on average, where the slope is known; 0 keeps all.",
        ),
        click.option("--min-area", type=METRES, metavar="M2", help="Leave out smaller landslides."),
        click.option("--threshold", type=SHARE, help="Probability from which on a pixel is landslide."),
    ):
        command = option(command)
    return command


def picture_options(command: F) -> F:
    """What shows a map to people."""
    for option in (
        click.option(
            "--quicklook", type=FILE, help="Also draw the image with the landslides, as a .png or .jpg to pass on."
        ),
        click.option(
            "--report",
            type=FILE,
            help="Also write a page with a map to move in, figures and warnings: one .html file that needs no network.",
        ),
    ):
        command = option(command)
    return command


def device_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Accept ``auto``, ``cpu``, ``cuda``, ``cuda:N`` and several of the last."""
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+(,cuda:\d+)*", value):
        raise click.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:0 or cuda:0,cuda:1.", ctx, param)
    return value


def device_options(command: F) -> F:
    """Where and how the networks run."""
    for option in (
        click.option("--batch-size", type=click.IntRange(1), help="Patches per step; less takes less memory."),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            default="auto",
            show_default=True,
            help="Number format that the networks compute in.",
        ),
        click.option(
            "--device",
            callback=device_name,
            default="auto",
            show_default=True,
            metavar="auto|cpu|cuda|cuda:N",
            help="Where the networks run.",
        ),
    ):
        command = option(command)
    return command


def run_options(command: F) -> F:
    """How a long run works, and what it does about an earlier one."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace outputs that exist, and what an interrupted run left."),
        click.option("--resume", is_flag=True, help="Go on where the same command was interrupted."),
        click.option("--workers", type=click.IntRange(1), help="Processor cores to use; all if not given."),
    ):
        command = option(command)
    return command


def report_options(command: F) -> F:
    """What is printed while working and at the end."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Say more about what is done, on stderr."),
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    ):
        command = option(command)
    return command


@contextmanager
def libraries() -> Iterator[None]:
    """Import inside: looking for garbage, of which imports leave none, would take a third of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def reporting(quiet: bool, verbose: bool) -> Iterator[Progress]:
    """Progress on stderr, ended whatever happens; what libraries say is shown only when ``verbose``."""
    from l4s_geo.progress import make_progress

    # GDAL's own errors repeat what the one message for the user says
    level = logging.WARNING if verbose else logging.CRITICAL
    logging.basicConfig(format="%(name)s: %(message)s", level=level)
    logging.getLogger("l4s_geo").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.captureWarnings(True)
    progress = make_progress(quiet)
    try:
        with _no_undecodable():
            yield progress
    finally:
        progress.finish()
        logging.captureWarnings(False)


@contextmanager
def _no_undecodable() -> Iterator[None]:
    """Leave out what rasterio prints where a message of GDAL quotes a damaged file that is not in UTF-8."""
    shown, unraisable = sys.excepthook, sys.unraisablehook

    def show(kind: type[BaseException], e: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, UnicodeDecodeError):
            shown(kind, e, trace)

    def show_unraisable(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, UnicodeDecodeError):
            unraisable(what)

    sys.excepthook, sys.unraisablehook = show, show_unraisable
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = shown, unraisable


def plain(value: Any) -> Any:
    """The value in JSON's types: NaN and infinity become null, paths and other objects text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def emit(summary: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print the result: one JSON object for programs, or a text for people.

    Raises:
        OutputError: There is no room for it.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = json.dumps(plain(summary)) if as_json else text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(shown)
    except BrokenPipeError:  # who reads it has seen enough
        raise
    except OSError as e:
        raise OutputError(
            f"The result cannot be printed: {reason(e)}. Everything else is done, and files that were asked for are "
            "complete."
        ) from e
