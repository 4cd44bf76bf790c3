"""Errors a user can act on. Each message says what is wrong, where, and what to do.

Library code raises these; only ``l4s_geo.cli`` turns them into exit codes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class L4SError(Exception):
    """Base of everything that a user's input or options can cause (exit code 2)."""


class InputError(L4SError):
    """A raster, vector or option that cannot be used as given."""


class ModelError(L4SError):
    """A model that is unknown, damaged, or does not fit the scene."""


class OutputError(L4SError):
    """An output that cannot be written; whatever was there before is untouched."""


def reason(error: BaseException) -> str:
    """What went wrong in a library, on one line: its error's cause where the error itself only points there."""
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.strerror:  # without its number
        text = cause.strerror if cause.filename is None else f"{cause.strerror} ({cause.filename})"
    else:
        text = str(cause)
    return " ".join(text.split()).rstrip(". ")


def meant(name: object, known: Iterable[str]) -> str:
    """A hint at the known name that is most like a misspelt one, empty where none is."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
