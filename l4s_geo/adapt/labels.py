"""A few polygons that say what is landslide, and maybe what is not, in the region to adapt to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window
from scipy.ndimage import maximum_filter

from l4s_geo.data.ondisk import IMAGE, LABELS
from l4s_geo.errors import InputError
from l4s_geo.metrics import IGNORE
from l4s_geo.outputs import writing
from l4s_geo.raster import row_windows
from l4s_geo.scene import Grid
from l4s_geo.train.targets import grid_of, link, profile
from l4s_geo.vector import Polygons, read_table

#: Columns that may hold the class, the first that is there counts; in any case of letters.
CLASS_COLUMNS = ("landslide", "class", "label")

#: What they may hold, in any case of letters.
LANDSLIDE = ("1", "1.0", "true", "landslide")
BACKGROUND = ("0", "0.0", "false", "background")

#: Pixels around an outlined landslide that are background: an outline also says where the landslide ends, which is what
#: networks from elsewhere know least.
RIM = 3


@dataclass(frozen=True)
class Labels:
    """Polygons of both classes; everything else is unlabelled.

    Attributes:
        path: Of their file.
        landslides: At least one.
        background: Maybe none.
    """

    path: str
    landslides: Polygons
    background: Polygons

    @property
    def polygons(self) -> dict[str, int]:
        """Number of polygons of each class."""
        return {"background": len(self.background), "landslide": len(self.landslides)}

    def labels_on(self, grid: Grid) -> Callable[[Window], NDArray[np.uint8]]:
        """A reader of labels of the pixels whose centre lies in a polygon, or within ``RIM`` pixels of a landslide.

        Args:
            grid: That windows refer to.

        Returns:
            Gives (h, w) uint8 of a window: 1 landslide (also where both classes overlap), 0 background, 255 unlabelled.

        Raises:
            InputError: The polygons cannot be brought into the CRS of the grid.
        """
        landslides, background = self.landslides.burn(grid), self.background.burn(grid)

        def read(window: Window) -> NDArray[np.uint8]:
            row, column = int(window.row_off), int(window.col_off)
            top, left = max(0, row - RIM), max(0, column - RIM)
            bottom = min(grid.height, row + int(window.height) + RIM)
            right = min(grid.width, column + int(window.width) + RIM)
            wide = landslides(Window(left, top, right - left, bottom - top))
            inner = np.s_[row - top :, column - left :]
            h, w = int(window.height), int(window.width)
            around = maximum_filter(wide, 2 * RIM + 1, mode="constant")[inner][:h, :w]
            values = np.where(around | background(window), 0, IGNORE).astype(np.uint8)
            values[wide[inner][:h, :w]] = 1
            return values

        return read

    def pixels(self, grid: Grid) -> dict[str, int]:
        """Number of pixels of each class on a grid."""
        read, counts = self.labels_on(grid), np.zeros(256, np.int64)
        for window in row_windows(grid):
            counts += np.bincount(read(window).ravel(), minlength=256)
        return {"background": int(counts[0]), "landslide": int(counts[1])}


def read_labels(path: str | Path) -> Labels:
    """Read a vector file of polygons.

    All of them are landslides, unless a column ``landslide``, ``class`` or ``label`` tells: 1, true or "landslide"
    against 0, false or "background".

    Raises:
        InputError: The file cannot be read, has no CRS, no polygon of a landslide, or other geometries or classes.
    """
    table = read_table(path)
    if table.empty:
        raise InputError(f"{path} holds no polygons. Draw the outlines of some landslides.")
    if table.crs is None:
        raise InputError(f"{path} has no CRS, so nobody knows where its polygons are. Assign its CRS first.")
    polygons = Polygons(str(path), table.geometry)
    columns = {str(c).lower(): c for c in table.columns.drop(table.geometry.name)}
    column = next((columns[c] for c in CLASS_COLUMNS if c in columns), None)
    if column is None:
        is_landslide = np.ones(len(table), np.bool_)
    else:
        is_landslide = _classes(table[column].tolist(), f"{path}, column {column}")
    if not is_landslide.any():
        raise InputError(f"{path} marks no landslide, only background. Add the outlines of some landslides.")
    return Labels(str(path), polygons.pick(is_landslide), polygons.pick(~is_landslide))


def _classes(values: Sequence[object], where: str) -> NDArray[np.bool_]:
    """Which of the values mean landslide."""
    texts = ["empty" if v is None or v != v else str(v).strip().lower() for v in values]
    unknown = sorted({*texts} - {*LANDSLIDE, *BACKGROUND})
    if unknown:
        found = ", ".join(unknown[:8]) + (" ..." if len(unknown) > 8 else "")
        raise InputError(
            f"{where}, holds {found}. Write 1, true or landslide for landslides and 0, false or background for other "
            "ground, or rename the column if it means something else."
        )
    return np.isin(texts, LANDSLIDE)


def check_on_targets(labels: Labels, grids: Sequence[Grid]) -> None:
    """Check that the labels mark a landslide on at least one of the scenes.

    Raises:
        InputError: They lie elsewhere, or no landslide covers the centre of a pixel.
    """
    if any(labels.pixels(grid)["landslide"] for grid in grids):
        return
    landslides = labels.landslides
    if any(len(landslides.near(grid)) for grid in grids):
        raise InputError(
            f"No landslide of {labels.path} covers the centre of a pixel of the scenes. Are the polygons smaller than "
            "pixels? Draw the outlines of larger landslides."
        )
    crs = CRS.from_wkt(landslides.geometries.crs.to_wkt())
    west, south, east, north = landslides.geometries.total_bounds
    scenes = "; ".join(_extent(grid, crs) for grid in grids)
    raise InputError(
        f"The landslides of {labels.path} do not overlap the scenes: they lie in {west:g}..{east:g}, "
        f"{south:g}..{north:g}, the scenes in {scenes} ({crs.to_string()}). Give labels of the same area, or correct "
        "the CRS of the file."
    )


def _extent(grid: Grid, crs: CRS) -> str:
    """Where a grid lies in the CRS of the labels."""
    xs, ys = grid.lattice(crs)
    if np.isnan(xs).all():
        return "a place that it cannot hold"
    return f"{np.nanmin(xs):g}..{np.nanmax(xs):g}, {np.nanmin(ys):g}..{np.nanmax(ys):g}"


def write_focus(labels: Labels, scene: Path, out: Path, reach: int = 32) -> None:
    """Write a labelled scene that knows only the surroundings of the given polygons, so that training sees them often.

    Args:
        labels: The polygons.
        scene: Folder with the ``image.tif`` and ``labels.tif`` of the whole scene.
        out: Folder to write; none where the scene has no polygons.
        reach: In pixels around the pixels with a given label.

    Raises:
        OutputError: There is no space.
    """
    grid = grid_of(scene / IMAGE)
    if not any(labels.pixels(grid).values()):
        return
    read = labels.labels_on(grid)
    link(scene / IMAGE, out)
    kind = {"count": 1, "dtype": "uint8", "nodata": IGNORE}
    with (
        writing(out),
        rasterio.open(scene / LABELS) as whole,
        rasterio.open(out / LABELS, "w", **profile(grid), **kind) as near,
    ):
        for window in row_windows(grid):
            top, height = int(window.row_off), int(window.height)
            first, last = max(0, top - reach), min(grid.height, top + height + reach)
            given = read(Window(0, first, grid.width, last - first)) != IGNORE
            around = maximum_filter(given, 2 * reach + 1, mode="constant")[top - first :][:height]
            near.write(np.where(around, whole.read(1, window=window), IGNORE), 1, window=window)
