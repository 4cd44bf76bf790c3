"""The ``l4s-map`` command: verbs are imported when they run, so that ``--help`` answers at once."""

from __future__ import annotations

import atexit
import difflib
import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from l4s_geo import __version__
from l4s_geo.errors import L4SError, reason
from l4s_geo.paths import exists, shorten

#: Verbs and what ``l4s-map --help`` says about them. Each is a module here (``-`` becomes ``_``)
#: with a click ``command``.
VERBS = {
    "map": "Map the landslides of a scene (the verb meant when none is given).",
    "batch": "Map many scenes, on this machine or on a Ray cluster.",
    "search": "Find scenes in a STAC catalogue, and get one ready with its elevation.",
    "check": "Say what a scene is and what would go wrong in mapping it.",
    "polygonize": "Make polygons again from a probability raster, with other thresholds.",
    "evaluate": "Compare a result with reference data.",
    "adapt": "Fit a model to new scenes without labels.",
    "train": "Train a model on labelled scenes.",
    "predict-patches": "Map Landslide4Sense patches to masks for the competition's leaderboard.",
    "data": "Get the Landslide4Sense data set, put it back into scenes, or make synthetic patches.",
    "models": "List the bundled models, or show a model's card.",
    "demo": "Make a small synthetic scene and map it.",
    "bench": "Say how fast this machine maps, beside the networks alone.",
}


class UserError(click.ClickException):
    """A mistake of the user's: one message on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print the message without a traceback."""
        with suppress(OSError):  # where nothing can be said, the exit code must do
            click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class VerbGroup(click.Group):
    """Imports a verb's module only when that verb runs, and turns exceptions into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, the most used first."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's click command."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"l4s_geo.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put in ``map`` where the first argument is neither a verb nor an option of the group."""
        with explained(ctx):
            own = {name for p in self.get_params(ctx) for name in p.opts}
            if args and args[0] not in VERBS and args[0] not in own:
                refuse_unknown_verb(ctx, args[0])
                args = ["map", *args]
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        with explained(ctx), tidy_end():
            return super().invoke(ctx)


@contextmanager
def explained(ctx: click.Context) -> Iterator[None]:
    """End with 2 for what the user can mend, 130 when interrupted, 1 with a traceback for a bug."""
    try:
        yield
    except L4SError as e:
        raise UserError("\n".join([str(e), *_notes(e)])) from e
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as e:
        command = e.ctx.command_path if e.ctx else ctx.command_path
        raise UserError(f"{e.format_message()} See `{command} --help`.") from e
    except (KeyboardInterrupt, click.Abort) as e:
        click.echo("\n".join(["interrupted", *_notes(e)]), err=True)
        raise click.exceptions.Exit(130) from None
    except SystemExit as e:
        for note in _notes(e):
            click.echo(note, err=True)
        raise
    except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
        raise
    except Exception as e:
        if lack := _lacking(e):
            raise UserError("\n".join([lack, *_notes(e)])) from e
        traceback.print_exc(file=sys.stderr)
        click.echo(
            f"This is a bug in l4s-map {__version__}. Please report it with these lines and the command.",
            err=True,
        )
        raise click.exceptions.Exit(1) from None


#: What a machine may be short of, by the system's number, and what to do about it.
SHORT = {
    errno.ENOMEM: "Close other programs, or try --batch-size 1 and --workers 1.",
    errno.EMFILE: "Allow more open files, for instance with `ulimit -n 1024`.",
    errno.ENFILE: "Close other programs.",
    errno.ENOSPC: "Make room on the disk.",
    errno.EDQUOT: "Make room on the disk.",
    errno.EFBIG: "Write to a disk that takes larger files.",
    errno.EROFS: "Write to another disk.",
    errno.EIO: "Is a disk or network drive gone?",
    errno.ESTALE: "Is a disk or network drive gone?",
    errno.ENOENT: "Was it removed meanwhile?",
    errno.EACCES: "Check the permissions.",
    errno.EPERM: "Check the permissions.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}

#: How libraries say that there is no memory, when they are loaded as well as later.
NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)


def _lacking(e: Exception) -> str | None:
    """What the machine is short of, where that and no bug was the reason."""
    if isinstance(e, OSError) and e.errno in SHORT:
        return f"The machine says: {e.strerror}{f' ({e.filename})' if e.filename else ''}. {SHORT[e.errno]}"
    if isinstance(e, MemoryError) or any(words in str(e).lower() for words in NO_MEMORY):
        return f"Not enough memory ({reason(e) or 'none left'}). {SHORT[errno.ENOMEM]}"
    return None


def _notes(e: BaseException) -> list[str]:
    """What the user should know besides the error, such as how to go on."""
    return list(getattr(e, "__notes__", []))


@contextmanager
def tidy_end() -> Iterator[None]:
    """Let a run that is told to stop (SIGTERM, SIGHUP) unwind, so that its temporary files go."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # handlers can be set only there
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # what is ignored stays so: nohup means it
    before = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refuse_unknown_verb(ctx: click.Context, word: str) -> None:
    """Stop at a bare word that is no file: it is a mistyped verb rather than a scene.

    Raises:
        click.UsageError: With the verb that was probably meant.
    """
    if not word.replace("-", "").replace("_", "").isalpha() or word.startswith("-") or exists(word):
        return
    close = difflib.get_close_matches(word, VERBS, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else f"Verbs are {', '.join(VERBS)}."
    ctx.fail(f"'{shorten(word)}' is neither a verb nor a file. {hint}")


@click.group(
    cls=VerbGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`l4s-map VERB --help` explains a verb.",
)
@click.version_option(__version__, "--version", prog_name="l4s-map")
def main() -> None:
    """Landslide polygons from whole Sentinel-2 scenes.

    `l4s-map scene.tif --out landslides.gpkg` is short for `l4s-map map scene.tif --out landslides.gpkg`.
    """


def run() -> None:
    """The installed command: ``main``, ended without taking apart what was imported.

    To free what torch brings takes two seconds of a process that ends anyway; mypy ends in the same way.
    """
    code: list[int] = []
    atexit.register(leave, code)  # what is registered first is called last
    try:
        main(prog_name="l4s-map")
    except SystemExit as e:
        code.append(e.code if isinstance(e.code, int) else 0 if e.code is None else 1)
        raise


def leave(code: list[int]) -> None:
    """End this process here and now if it has an exit code; 120, as Python does, if its output is lost."""
    for number in code:
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except (OSError, ValueError):
            number = number or 120
        os._exit(number)
