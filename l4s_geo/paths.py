"""What users give as input: files, folders, and addresses of GDAL."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from l4s_geo.errors import InputError


def is_remote(path: str) -> bool:
    """Whether GDAL, not the file system, knows the path."""
    return path.startswith("/vsi") or "://" in path


def exists(path: str | Path) -> bool:
    """Whether there is such a file or folder; False also for what is too long to be a name."""
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises an OSError for such names)


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; False also for what is too long to be a name."""
    return os.path.isfile(path)  # noqa: PTH113 (as above)


def check_input(path: str | Path) -> None:
    """Check that an input can be read from any place in it, and more than once.

    Args:
        path: File or folder; addresses of GDAL are left to GDAL.

    Raises:
        InputError: There is none, or it is a pipe, a device or standard input.
    """
    text = str(path)
    if "/vsistdin" in text:
        raise InputError(f"{text}: standard input can be read only once. Save it to a file and give that.")
    if not is_text(text):
        raise InputError(f"The name {text!r} is not in UTF-8. Rename the file.")
    if is_remote(text):
        return
    try:
        mode = Path(text).stat().st_mode
        if stat.S_ISREG(mode):
            Path(text).open("rb").close()
        elif stat.S_ISDIR(mode):
            os.scandir(text).close()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise InputError(f"There is no file {shorten(text)!r}. Check the path.") from None
    except PermissionError as e:
        raise InputError(f"{text} cannot be read: {e.strerror}. Check the permissions.") from e
    except OSError as e:
        raise InputError(f"{shorten(text)} cannot be read: {e.strerror}. Check the path.") from e
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{text} is a pipe or a device, no file. Save what comes from it to a file and give that.")


def shorten(name: str) -> str:
    """A name that fits into a message."""
    return name if len(name) <= 300 else f"{name[:300]}..."


def is_text(name: str | Path) -> bool:
    """Whether a name can be written down in UTF-8."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True
