"""Classes of the landslides' mean probability, in the colours that QGIS shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from l4s_geo.qml import CLASSES


@dataclass(frozen=True)
class Kind:
    """A class.

    Attributes:
        low: Probability from which on it is meant.
        high: Below which.
        colour: Red, green and blue, 0 to 255.
    """

    low: float
    high: float
    colour: tuple[int, int, int]

    @property
    def name(self) -> str:
        """For legends."""
        return f"{self.low:g} to {self.high:g}"


def _kind(low: float, high: float, fill: str, *_: str) -> Kind:
    red, green, blue = (int(v) for v in fill.split(","))
    return Kind(low, high, (red, green, blue))


KINDS = tuple(_kind(*each) for each in CLASSES)


def kinds_of(table: pd.DataFrame) -> list[int]:
    """Index in ``KINDS`` of each landslide."""
    if "prob_mean" not in table:
        return [0] * len(table)
    lower = [kind.low for kind in KINDS[1:]]
    return [int(i) for i in np.searchsorted(lower, table["prob_mean"].to_numpy(np.float64), side="right")]
