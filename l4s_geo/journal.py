"""Work that can be taken up again: a folder beside the output, a list of what was asked for, and how far it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from l4s_geo.errors import InputError, OutputError, reason

#: Files in the folder of a run: what was asked for, and a line for every part that is done.
ASKED, DONE = "asked.json", "done.txt"


class Journal:
    """Notes of a run, each written when what it is about is safe on disk.

    Args:
        folder: Of the run; holds working data as well.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, int] = {}
        if (folder / DONE).exists():
            # A line that was cut off by the end of the process is not done.
            for line in (folder / DONE).read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
                stage, _, steps = line.partition(" ")
                if not (re.fullmatch("[0-9]{1,9}", steps) and int(steps) >= self.done(stage)):
                    raise _damaged(folder / DONE)
                self._done[stage] = int(steps)

    def done(self, stage: str) -> int:
        """Steps of a stage that need not be done again."""
        return self._done.get(stage, 0)

    @property
    def begun(self) -> bool:
        """Whether there is anything that need not be done again."""
        return any(self._done.values())

    def record(self, stage: str, steps: int) -> None:
        """Note that the first ``steps`` steps of a stage are done.

        Raises:
            OutputError: The disk is full.
        """
        with _writing(self.folder), (self.folder / DONE).open("a") as file:
            file.write(f"{stage} {steps}\n")
        self._done[stage] = steps


@contextmanager
def journal(out: Path, asked: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False) -> Iterator[Journal]:
    """The folder of a run, gone when the run ends well or when nothing in it is worth keeping.

    An exception that leaves it there gets a note that says how to go on.

    Args:
        out: Output of the run; the folder lies beside it.
        asked: What makes the result what it is, as JSON types.
        resume: Go on with what an earlier run has left, if it has.
        overwrite: Throw that away instead.

    Raises:
        InputError: The earlier run was asked for something else, or neither of the two was said.
        OutputError: The folder cannot be written, or another run is at work in it.
    """
    folder = out.absolute().with_name(f".{out.name}.l4s-map")
    with _writing(folder):
        folder.mkdir(exist_ok=True)
    with _alone(folder, out):
        _claim(folder, out, json.loads(json.dumps(asked)), resume, overwrite)
        notes = Journal(folder)
        try:
            yield notes
        except BaseException as e:
            if notes.begun and folder.exists():
                e.add_note(f"What is done so far is kept in {folder}: go on with the same command and --resume.")
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _claim(folder: Path, out: Path, asked: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Check what an earlier run has left, or begin anew."""
    left = (resume or not overwrite) and Journal(folder).begun and (folder / ASKED).exists()
    if left and resume:
        try:
            before = dict(json.loads((folder / ASKED).read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError):
            raise _damaged(folder / ASKED) from None
        changed = sorted(k for k in {*asked, *before} if asked.get(k) != before.get(k))
        if changed:
            raise InputError(
                f"The interrupted run for {out} was asked for something else, or its input has changed: "
                f"{', '.join(f'{k} was {_short(before.get(k))} and is {_short(asked.get(k))}' for k in changed)}. "
                "Give the same as before, or begin anew with --overwrite instead of --resume."
            )
        return
    if left:
        raise InputError(
            f"An earlier run for {out} was interrupted and its work is kept in {folder}. "
            "Go on with --resume, or begin anew with --overwrite."
        )
    with _writing(folder):
        for path in folder.iterdir():
            if path.name != LOCK:
                path.unlink()
        (folder / ASKED).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")


def _damaged(file: Path) -> InputError:
    return InputError(f"{file}, which an interrupted run has left, is damaged. Begin anew with --overwrite.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


LOCK = "lock"


@contextmanager
def _alone(folder: Path, out: Path) -> Iterator[None]:
    """Keep other processes of this machine out; the system frees the lock however this one ends."""
    with _writing(folder):
        file = (folder / LOCK).open("wb")
    with file:
        if not _lock(file):
            raise OutputError(f"Another l4s-map is writing {out} at this moment. Wait for it, or choose another name.")
        yield


def _lock(file: BinaryIO) -> bool:
    """Whether the file could be locked; where the system has no such locks it is as if it could."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return True
    return True


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OutputError(
            f"Working data cannot be written to {folder}: {reason(e)}. Check the space left and the permissions."
        ) from e


def stamp(path: str | Path) -> Any:
    """What tells a changed input from the same: size and time of change of a file, or of all files of a folder."""
    found = Path(path)
    try:
        files = sorted(p for p in found.iterdir() if p.is_file()) if found.is_dir() else [found]
        return {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.exists()} or str(path)
    except OSError:
        return str(path)
