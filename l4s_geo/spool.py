"""Components on disk: they come in as they are found and go out in order, however many there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import shapely
from numpy.typing import NDArray

from l4s_geo.components import Components, Totals
from l4s_geo.errors import OutputError


class Spool:
    """Components in a temporary database without a name, which is gone when nobody uses it any more.

    Args:
        names: Layers of their totals. Components are ordered by their lowest ``place``, which no two share.

    Attributes:
        bounds: Left, top, right and bottom of all outlines, NaN if there are none.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.bounds = np.full(4, np.nan)
        self._names = tuple(names)
        self._database = sqlite3.connect("")
        self._database.execute("CREATE TABLE component (place INTEGER PRIMARY KEY, totals BLOB, outline BLOB)")

    def __len__(self) -> int:
        (number,) = self._database.execute("SELECT count(*) FROM component").fetchone()
        return int(number)

    def parts(self, size: int) -> Iterator[Components]:
        """All components in order, at most ``size`` at a time; a part without any if there are none."""
        rows = self._database.execute("SELECT totals, outline FROM component ORDER BY place")
        part = rows.fetchmany(size)
        yield self._components(part)
        while part := rows.fetchmany(size):
            yield self._components(part)

    def add(self, components: Components) -> None:
        """Take in components, in any order.

        Raises:
            OutputError: The disk that temporary files lie on is full.
        """
        totals, outlines = components.totals, components.geometry
        bounds = np.vstack([self.bounds, shapely.bounds(outlines)])
        self.bounds = np.concatenate([np.fmin.reduce(bounds[:, :2]), np.fmax.reduce(bounds[:, 2:])])
        place = totals.low("place").astype(np.int64).tolist()
        numbers = np.stack([totals.sums, totals.counts, totals.lows, totals.highs], axis=1)
        rows = zip(place, map(_bytes, numbers), shapely.to_wkb(outlines), strict=True)
        with _no_space(), self._database:
            self._database.executemany("INSERT INTO component VALUES (?, ?, ?)", rows)

    def _components(self, rows: Sequence[tuple[bytes, bytes]]) -> Components:
        numbers = np.frombuffer(b"".join(totals for totals, _ in rows)).reshape(len(rows), 4, len(self._names))
        outlines = np.array([outline for _, outline in rows], dtype=object)
        geometry = np.asarray(shapely.from_wkb(outlines), dtype=object)
        return Components(Totals(self._names, *np.moveaxis(numbers, 1, 0)), geometry)


def _bytes(numbers: NDArray[np.float64]) -> bytes:
    return numbers.tobytes()


@contextmanager
def _no_space() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as e:
        raise OutputError(
            f"Cannot keep outlines in the folder for temporary files: {e}. Make room there, or name another folder "
            "in the environment variable TMPDIR."
        ) from e
