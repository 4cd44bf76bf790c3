"""A landslide map against labels: raster or polygons on either side, in any CRS, streaming strips of rows."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from l4s_geo.errors import InputError
from l4s_geo.evaluation.boundary import TOLERANCE
from l4s_geo.evaluation.comparison import Pair, describe
from l4s_geo.evaluation.details import Details, Tally, or_none
from l4s_geo.metrics import IGNORE, Counts, Interval, block_counts, of_counts, resample
from l4s_geo.scene import Grid
from l4s_geo.scene.raster import GDAL_OPTIONS

#: Side of the blocks that the bootstrap draws, in pixels: a Landslide4Sense patch.
BLOCK = 128


@dataclass(frozen=True)
class Evaluation:
    """Figures of one comparison. Pixels are those of the common grid that have a label.

    Attributes:
        pred: What was evaluated.
        truth: What it was compared with.
        threshold: Probability from which a pixel counts as mapped.
        rows: First row and end of the compared rows of the grid.
        grid: The common grid in words.
        counts: Confusion counts, in pixels.
        unseen: Labelled pixels that the prediction did not see; they count as not mapped.
        blocks: Blocks of 128 x 128 pixels with labels.
        intervals: 95 % bootstrap interval over these blocks, by figure.
        details: Objects, edges and probabilities, where they were asked for.
    """

    pred: str
    truth: str
    threshold: float
    rows: tuple[int, int]
    grid: str
    counts: Counts
    unseen: int
    blocks: int
    intervals: dict[str, Interval]
    details: Details | None = None

    @property
    def unseen_share(self) -> float:
        """Share of the labelled pixels that the prediction did not see."""
        return self.unseen / self.counts.total

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; figures that are not defined are None."""
        own = {name: value for name, value in vars(self).items() if name != "details"}
        figures = {name: or_none(value) for name, value in self.counts.figures().items()}
        intervals = {name: [or_none(v) for v in pair] for name, pair in self.intervals.items()}
        plain = own | {"rows": list(self.rows), "intervals": intervals, "counts": asdict(self.counts)}
        details = self.details.to_dict() if self.details else {}
        return plain | figures | {"unseen_share": self.unseen_share} | details

    def text(self) -> str:
        """The same for people, some lines."""
        c = self.counts
        lines = [f"{self.pred} against {self.truth}, threshold {self.threshold:g}"]
        for name, value in c.figures().items():
            low, high = self.intervals[name]
            shown = f"{value:.4f}  (95 % interval {low:.4f} to {high:.4f})"
            lines.append(f"  {name:<10}{shown if isfinite(value) else 'not defined'}")
        lines.append(f"  pixels    tp {c.tp:,}  fp {c.fp:,}  fn {c.fn:,}  tn {c.tn:,}")
        lines.append(f"  blocks    {self.blocks:,} of 128 x 128 pixels, drawn for the intervals")
        lines.append(f"  grid      {self.grid}, rows {self.rows[0]} to {self.rows[1] - 1}")
        if self.unseen:
            lines.append(f"  not seen  {self.unseen_share:.2%} of the labelled pixels, counted as not mapped")
        return "\n".join([*lines, *(self.details.lines() if self.details else ())])


def evaluate(
    pred: str | Path,
    truth: str | Path,
    *,
    threshold: float | None = None,
    rows: tuple[int, int] | None = None,
    aoi: str | Path | None = None,
    exclude: str | Path | None = None,
    seed: int = 0,
    details: bool = False,
    tolerance: int = TOLERANCE,
) -> Evaluation:
    """Compare a landslide map with labels.

    Pixels that the prediction did not see (nodata, NaN, outside the raster, layer ``not_seen``) count as not
    mapped, and their share is reported. Pixels whose truth is unknown (255, nodata, layer ``not_seen``) and
    pixels outside ``aoi`` are not counted. Where the truth is polygons, everything beside them is background.

    Args:
        pred: Probability raster (float, 0 to 1), mask (integer, 0 and 1), or polygons.
        truth: Label raster (0 background, 1 landslide, 255 or nodata unknown) or polygons.
        threshold: Pixels of at least this probability count as mapped; None: as the raster itself says, else 0.5.
        rows: First row and end of the rows of the common grid to compare; None compares all.
        aoi: Polygons to compare inside of, or a raster whose extent is meant; None compares everywhere.
        exclude: Polygons whose pixels are not counted, such as those that a model has learnt from.
        seed: Of the bootstrap.
        details: Whether to compare objects, edges and, where there are some, probabilities too.
        tolerance: Pixels by which an edge may be off.

    Raises:
        InputError: A file is missing, unreadable or holds other values, a CRS is missing, the inputs do not
            overlap, or no labelled pixel is left.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"The threshold must lie between 0 and 1, got {threshold:g}.")
    blocks: list[Counts] = []
    unseen = 0
    with rasterio.Env(**GDAL_OPTIONS), ExitStack() as stack:
        pair = Pair.open(pred, truth, stack, aoi, exclude)
        first, end = _checked_rows(rows, pair.grid)
        threshold = next((t for t in (threshold, pair.threshold) if t is not None), 0.5)
        tally = Tally(BLOCK, threshold, tolerance, pair) if details else None
        for strip in pair.strips(first, end, BLOCK, tally.halo if tally else 0):
            known, prob = strip.known[strip.core], strip.prob[strip.core]
            unseen += int(np.count_nonzero(known & np.isnan(prob)))
            labels = np.where(known, strip.landslide[strip.core], IGNORE).astype(np.uint8)
            blocks += [c for c in block_counts(prob >= threshold, labels, BLOCK) if c.total]
            if tally:
                tally.add(strip)
    counts = sum(blocks, Counts())
    if not counts.total:
        raise InputError(f"No labelled pixel of {truth} lies in rows {first} to {end - 1} of {describe(pair.grid)}.")
    if unseen == counts.total:
        raise InputError(
            f"Nothing to compare: {pred} has no value at any labelled pixel of {truth}. Check that both show "
            f"the same place and that their CRS are right."
        )
    measures = {"pixels": of_counts(blocks)} | (tally.measures() if tally else {})
    intervals = dict(zip(measures, resample([*measures.values()], seed=seed), strict=True))
    return Evaluation(
        pred=str(pred),
        truth=str(truth),
        threshold=threshold,
        rows=(first, end),
        grid=describe(pair.grid),
        counts=counts,
        unseen=unseen,
        blocks=len(blocks),
        intervals=intervals["pixels"],
        details=tally.details(measures, intervals) if tally else None,
    )


def _checked_rows(rows: tuple[int, int] | None, grid: Grid) -> tuple[int, int]:
    if rows is None:
        return 0, grid.height
    if not 0 <= rows[0] < rows[1] <= grid.height:
        raise InputError(f"Rows {rows[0]} to {rows[1] - 1} are not inside {describe(grid)}.")
    return rows
