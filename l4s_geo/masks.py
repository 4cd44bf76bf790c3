"""Where on a grid to look: inside an area of interest, and not under masks such as clouds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window
from scipy.ndimage import maximum_filter

from l4s_geo.errors import InputError
from l4s_geo.paths import check_input
from l4s_geo.raster import Layered
from l4s_geo.scene import Grid
from l4s_geo.scene.layer import Layer
from l4s_geo.scene.source import open_raster
from l4s_geo.scene.warp import source_window
from l4s_geo.vector import Mask, is_vector, layer_names, read_polygons


@dataclass(frozen=True)
class Limits:
    """Where to look on a grid. For one thread at a time where a mask is a raster.

    Attributes:
        area: Reads which pixels lie in the area of interest; None: all do.
        masks: Each reads which pixels it covers.
        notes: For the user.
    """

    area: Mask | None = None
    masks: tuple[Mask, ...] = ()
    notes: tuple[str, ...] = ()

    def inside(self, window: Window, margin: int = 0) -> NDArray[np.bool_]:
        """Pixels (h, w) in the area of interest, or at most ``margin`` rows and columns from it."""
        if self.area is None:
            return np.ones((int(window.height), int(window.width)), np.bool_)
        side = 2 * margin
        wide = Window(
            window.col_off - margin, window.row_off - margin, window.width + side, window.height + side
        )  # fmt: skip
        found = self.area(wide)
        if margin and found.any():
            found = maximum_filter(found, side + 1)
        return found[margin : margin + int(window.height), margin : margin + int(window.width)]

    def clear(self, window: Window) -> NDArray[np.bool_]:
        """Pixels (h, w) that no mask covers."""
        found = np.ones((int(window.height), int(window.width)), np.bool_)
        for mask in self.masks:
            found &= ~mask(window)
        return found

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.area is not None or bool(self.masks)


#: All of a grid.
EVERYWHERE = Limits()


@dataclass(frozen=True)
class Limited:
    """A raster of layers that is not seen beyond limits."""

    raster: Layered
    limits: Limits

    @property
    def grid(self) -> Grid:
        """That of the raster."""
        return self.raster.grid

    def read(self, window: Window, layer: str) -> NDArray[np.float32]:
        """One layer (h, w), NaN where not seen."""
        seen = self.limits.inside(window) & self.limits.clear(window)
        return np.where(seen, self.raster.read(window, layer), np.float32(np.nan))


@contextmanager
def open_limits(
    grid: Grid, source: str, aoi: str | Path | None = None, masks: Sequence[str | Path] = ()
) -> Iterator[Limits]:
    """Open an area of interest and masks for reading window by window.

    Args:
        grid: That windows refer to.
        source: What lies on it, for messages.
        aoi: Polygons of a vector file in any CRS; everything is inside if not given.
        masks: Polygons, or rasters of one band in any CRS (nearest pixel), where everything but 0 and nodata is masked.

    Raises:
        InputError: A file cannot be used, or the area of interest lies elsewhere.
    """
    with ExitStack() as stack:
        area = None if aoi is None else _area_of_interest(aoi, grid, source)
        found = [_mask(path, grid, stack) for path in masks]
        notes = (f"the mask {path} does not reach {source}" for path, m in zip(masks, found, strict=True) if m is None)
        yield Limits(area, tuple(m for m in found if m is not None), tuple(notes))


def nothing_left(source: str, aoi: str | Path | None, masks: Sequence[str | Path]) -> InputError:
    """The error of a scene without a valid pixel within its limits."""
    limits = ([f"inside {aoi}"] if aoi else []) + [f"outside {mask}" for mask in masks]
    return InputError(
        f"{source} has no valid pixel {' and '.join(limits)}. Give a larger area of interest; in a mask, only what is "
        "not to be used is marked, in a raster by any value but 0."
    )


def _area_of_interest(path: str | Path, grid: Grid, source: str) -> Mask:
    """Reads which pixels lie inside."""
    polygons = read_polygons(path, "aoi")
    if not len(polygons):
        raise InputError(f"{path} holds no polygons. Draw the outline of the area of interest.")
    near = polygons.near(grid)
    if not len(near):
        raise InputError(
            f"The area of interest {path} does not overlap {source}. Check that both show the same place and that "
            "their CRS are right."
        )
    return near.burn(grid)


def _mask(path: str | Path, grid: Grid, stack: ExitStack) -> Mask | None:
    """Reads which pixels are covered; None where it does not reach the grid."""
    check_input(path)
    if is_vector(path) or _has_layers(path):
        near = read_polygons(path, "mask").near(grid)
        return near.burn(grid) if len(near) else None
    raster = open_raster(str(path), stack)
    if len(raster.indexes) != 1:
        raise InputError(f"{path} has {len(raster.indexes)} bands; a mask is a raster with one, or polygons.")
    if source_window(raster.grid, grid) is None:
        return None
    layer = Layer([raster.renamed("mask")], ("mask",), grid, Resampling.nearest)

    def read(window: Window) -> NDArray[np.bool_]:
        values, known = layer.read(window)
        masked: NDArray[np.bool_] = known & (values[0] != 0)
        return masked

    return read


def _has_layers(path: str | Path) -> bool:
    """Whether it is a vector file, whatever its name ends in."""
    try:
        return bool(layer_names(str(path)))
    except InputError:
        return False
