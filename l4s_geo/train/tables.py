"""Dataclasses from the tables of a TOML file, with messages for a person who wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from l4s_geo.errors import InputError, meant


def fill(kind: type, table: object, where: str) -> Any:
    """An instance of a dataclass from a table, field by field.

    Args:
        kind: The dataclass; its fields are of plain types, or are taken as they are.
        table: Values by name.
        where: For messages.

    Raises:
        InputError: A field that does not exist, is missing, or is of another type.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: expected a table, not {table!r}.")
    known = {f.name: f for f in fields(kind)}
    for name in table:
        if name not in known:
            raise InputError(
                f"{where} has no field {name!r}{meant(name, known)}. There are: {', '.join(sorted(known))}."
            )
    try:
        with said_of(where):
            return kind(**{k: _value(known[k].type, v, k) for k, v in table.items()})
    except TypeError as e:
        missing = str(e).rpartition(":")[2].strip()
        raise InputError(f"{where} lacks {missing}.") from e


def _value(kind: Any, value: object, where: str) -> object:
    """The value as the field's annotation wants it (annotations are text: ``from __future__ import annotations``)."""
    if kind == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(f"{where} must be a whole number, not {value!r}.")
    if kind == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{where} must be a number, not {value!r}.")
        return float(value)
    if kind == "bool" and not isinstance(value, bool):
        raise InputError(f"{where} must be true or false, not {value!r}.")
    if kind == "str" and not isinstance(value, str):
        raise InputError(f"{where} must be text, not {value!r}.")
    if kind == "tuple[str, ...]":
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise InputError(f"{where} must be a list of names, not {value!r}.")
        return tuple(value)
    return value


@contextmanager
def said_of(where: str) -> Iterator[None]:
    """Put before a message what it is about."""
    try:
        yield
    except InputError as e:
        raise InputError(f"{where}: {e}") from e


def one_of(value: object, known: tuple[str, ...], where: str) -> None:
    """Check a value that has a few names to choose from.

    Raises:
        InputError: It is none of them.
    """
    if value not in known:
        raise InputError(f"{where} cannot be {value!r}{meant(value, known)}; there are {', '.join(known)}.")
