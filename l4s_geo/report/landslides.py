"""What a page tells of landslides: figures of all of them, and outlines and attributes of the largest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from l4s_geo.report.frame import Frame

Floats = NDArray[np.float64]

#: Landslides that are drawn, and their vertices, at most.
MOST, MOST_POINTS = 5000, 250_000

#: Of one landslide; one with more is drawn coarser.
POINTS_OF_ONE = 25_000

#: Bins, by attribute: quarters of a decade in m2, degrees, probability, metres.
# The number of bins of the elevation is a multiple of all numbers that may be merged
BINS = {
    "area_m2": 10 ** np.arange(1, 10.01, 0.25),
    "slope_mean": np.arange(0, 91, 5.0),
    "prob_mean": np.linspace(0, 1, 21),
    "elevation": np.arange(-1000, 9501, 10.0),
}

#: Attributes with few values.
FLAGS = ("edge", "new")

#: Agreement below which a landslide is divided: of two networks, one alone would have mapped half of it.
AGREED = 0.75


@dataclass
class Landslides:
    """Takes landslides part by part; holds no more than it shows.

    Args:
        frame: In which they are drawn.
        pixel: Size in metres of a pixel of the picture behind them.
        most: Landslides that are kept.

    Attributes:
        count: Number so far.
        counts: Of each of ``BINS``, by attribute.
        flags: Number of landslides by value of each of ``FLAGS``, in small letters.
        divided: Number of those whose agreement is below ``AGREED``.
    """

    frame: Frame
    pixel: float
    most: int = MOST
    count: int = 0
    counts: dict[str, NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.zeros(len(edges) - 1, np.int64) for name, edges in BINS.items()}
    )
    flags: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in FLAGS})
    divided: int = 0
    _kept: gpd.GeoDataFrame | None = None

    def add(self, part: gpd.GeoDataFrame) -> None:
        """Take a part, in the CRS of the frame's grid."""
        self.count += len(part)
        columns = {name: part[name] for name in BINS if name in part}
        if {"elev_min", "elev_max"} <= {*part.columns}:
            columns["elevation"] = (part["elev_min"] + part["elev_max"]) / 2
        for name, values in columns.items():
            known = values.to_numpy(np.float64)
            low, high = BINS[name][[0, -1]]
            self.counts[name] += np.histogram(np.clip(known[np.isfinite(known)], low, high), BINS[name])[0]
        for name in (flag for flag in FLAGS if flag in part):
            self.flags[name].update(part[name].astype(str).str.lower())
        if "agreement" in part:
            self.divided += int((part["agreement"] < AGREED).sum())
        largest = part.nlargest(self.most, "area_m2")
        largest = pd.DataFrame(largest).assign(geometry=self._outlines(largest))
        kept = largest if self._kept is None else pd.concat([self._kept, largest])
        self._kept = kept.nlargest(self.most, "area_m2")

    def shown(self) -> pd.DataFrame:
        """Attributes of those that are drawn, the largest first, and their outlines in metres as ``geometry``.

        There are ``most`` at most, and as many as keep the number of vertices below ``MOST_POINTS``.
        """
        if self._kept is None:
            return pd.DataFrame({"geometry": []})
        points = np.cumsum(shapely.get_num_coordinates(self._kept["geometry"].to_numpy()))
        shown: pd.DataFrame = self._kept[points <= max(MOST_POINTS, points[:1].sum())].reset_index(drop=True)
        return shown

    def _outlines(self, part: gpd.GeoDataFrame) -> NDArray[np.object_]:
        """In metres, as fine as the picture; small ones finer, so that they keep their shape."""
        plane = np.asarray(shapely.transform(part.geometry.to_numpy(), self.frame.place), dtype=object)
        tolerance = np.minimum(self.pixel / 2, np.sqrt(shapely.area(plane)) / 8)
        # What keeps the topology takes the square of the number of points
        ragged = shapely.get_num_coordinates(plane) > POINTS_OF_ONE
        plane[~ragged] = shapely.simplify(plane[~ragged], tolerance[~ragged])
        plane[ragged] = [_coarser(outline, self.pixel / 2) for outline in plane[ragged]]
        return plane


def _coarser(outline: shapely.Geometry, tolerance: float) -> shapely.Geometry:
    """With as few points as one landslide may have; small holes vanish, and it may touch itself."""
    while shapely.get_num_coordinates(outline) > POINTS_OF_ONE:
        outline, tolerance = shapely.simplify(outline, tolerance, preserve_topology=False), 2 * tolerance
    return outline


def path_data(outline: shapely.Geometry, unit: float) -> str:
    """An outline as the ``d`` of an SVG path, in whole numbers of ``unit`` metres, relative to the point before."""
    pieces = []
    for ring in shapely.get_rings(shapely.get_parts(outline)):
        points = np.rint(shapely.get_coordinates(ring) / unit).astype(int)
        steps = np.diff(points[:-1], axis=0)
        steps = steps[steps.any(axis=1)]
        (x, y), moves = points[0], "".join(map(_step, *steps.T.tolist())) if len(steps) else "h0"
        pieces.append(f"M{x} {y}{moves}z")
    return "".join(pieces)


def _step(x: int, y: int) -> str:
    if y == 0:
        return f"h{x}"
    return f"v{y}" if x == 0 else f"l{x}{y:+d}" if y < 0 else f"l{x} {y}"
