"""A folder as an output: it appears whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from l4s_geo.errors import OutputError, reason
from l4s_geo.outputs import FAILURES, atomic


def check_new_folder(out: Path) -> None:
    """Check before any work that a folder can be made.

    Raises:
        OutputError: There is something of that name that is not an empty folder, or its parent is missing.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file. Give the name of a new folder.")
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out} is there and not empty. Give the name of a new folder.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.absolute().parent}. Create it first.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A place to fill, renamed to ``out`` at the end; after a failure nothing is there.

    Yields:
        A temporary empty folder beside.

    Raises:
        OutputError: As ``check_new_folder``, or writing fails.
    """
    check_new_folder(out)
    try:
        with atomic(out.absolute()) as temporary:
            temporary.mkdir()
            yield temporary
            if out.is_dir():
                out.rmdir()  # empty; not every system renames onto a folder
    except FAILURES as e:
        raise OutputError(f"{out} cannot be written: {reason(e)}. Check the space left and the permissions.") from e
