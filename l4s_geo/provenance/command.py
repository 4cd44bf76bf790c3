"""The command line that stands for options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

#: Options whose name is not that of their field, because they can be repeated.
REPEATED = {"masks": "--mask", "models": "--model"}

#: What says how a run goes on, not what it makes.
PASSING = ("resume", "overwrite")


def command_line(verb: str, argument: str, options: Any) -> str:
    """A command that makes the same again, as it is typed in a shell.

    Args:
        verb: Such as ``map``.
        argument: Field that is given without a name.
        options: Dataclass whose fields have the names of the options; those that are as they would be are left out.
    """
    return shlex.join(["l4s-map", verb, *words(argument, options)])


def words(argument: str, options: Any) -> Iterator[str]:
    """What follows the verb, word by word; arguments as in ``command_line``."""
    yield str(getattr(options, argument))
    for field in fields(options):
        if field.name not in (argument, *PASSING):
            yield from _option(field, getattr(options, field.name))


def _option(field: Field[Any], value: Any) -> Iterator[str]:
    if field.default is not MISSING and value == field.default:
        return
    if field.name == "decided":  # by the record of an earlier run
        yield from ("--from", str(value.record))
        return
    name = REPEATED.get(field.name, f"--{field.name.replace('_', '-')}")
    if isinstance(value, bool):
        yield name if value else f"--no-{name.removeprefix('--')}"
    elif field.name in REPEATED:
        for each in value:
            yield from (name, str(each))
    elif isinstance(value, tuple):
        yield from (name, ",".join(map(str, value)))
    elif isinstance(value, (str, Path, int, float)):  # others are never typed
        yield from (name, str(value))
