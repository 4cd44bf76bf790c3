"""Warping arrays between grids."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window

from l4s_geo.scene.grid import Grid

#: Image (C, h, w) and where it is valid (h, w).
Pixels = tuple[NDArray[np.float32], NDArray[np.bool_]]

#: Source pixels that a cubic kernel reaches from its centre.
REACH = 2


def resample(
    image: NDArray[np.float32],
    valid: NDArray[np.bool_],
    source: Grid,
    target: Grid,
    resampling: Resampling,
) -> Pixels:
    """Warp an image so that invalid pixels give nothing to their neighbours.

    The image with zeros where it is invalid and the mask itself are warped with the same kernel; the ratio of
    both is the mean over valid pixels ("normalized convolution", Knutsson and Westin 1993). A pixel is valid
    where at least half of its kernel is.

    Args:
        image: (C, h, w) on ``source``.
        valid: (h, w) likewise.
        source: Grid of ``image``.
        target: Grid of the result.
        resampling: Kernel.

    Returns:
        (C, h', w') and (h', w') on ``target``; 0 where invalid.
    """
    stack = np.where(valid, image, np.float32(0))
    stack = np.concatenate([stack, valid[None].astype(np.float32)])
    warped = np.zeros((len(stack), *target.shape), np.float32)
    reproject(
        stack,
        warped,
        src_transform=source.transform,
        src_crs=source.crs,
        dst_transform=target.transform,
        dst_crs=target.crs,
        resampling=resampling,
    )
    weight = warped[-1]
    seen = weight >= 0.5
    return np.where(seen, warped[:-1] / np.where(seen, weight, 1), np.float32(0)), seen


def source_window(source: Grid, target: Grid) -> Window | None:
    """Pixels of ``source`` that warping to ``target`` needs; None where they do not meet."""
    at_col, at_row = _positions(source, target)
    if np.isnan(at_col).all():
        return None
    left, right = np.nanmin(at_col), np.nanmax(at_col)
    top, bottom = np.nanmin(at_row), np.nanmax(at_row)
    # a kernel widens where pixels get larger
    scale = max(1.0, (right - left) / target.width, (bottom - top) / target.height)
    margin = math.ceil(REACH * scale) + 1
    around = Window(math.floor(left), math.floor(top), math.ceil(right - left) + 1, math.ceil(bottom - top) + 1)
    window = clip(around, source, margin)
    return window if window.width > 0 and window.height > 0 else None


def clip(window: Window, grid: Grid, margin: int) -> Window:
    """A window and ``margin`` pixels around it, inside the grid."""
    left, top = max(int(window.col_off) - margin, 0), max(int(window.row_off) - margin, 0)
    right = min(int(window.col_off + window.width) + margin, grid.width)
    bottom = min(int(window.row_off + window.height) + margin, grid.height)
    return Window(left, top, max(right - left, 0), max(bottom - top, 0))


def share_covered(source: Grid, target: Grid) -> float:
    """Share of ``target`` that lies on ``source``, from a lattice of points; a pixel's overhang is none."""
    cols, rows = _positions(source, target)
    inside = (cols >= -1) & (cols <= source.width + 1) & (rows >= -1) & (rows <= source.height + 1)
    return float(inside.mean())


def _positions(source: Grid, target: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Columns and rows on ``source`` of a lattice of points all over ``target``."""
    xs, ys = target.lattice(source.crs)
    if source.crs.is_geographic:
        # scenes on the date line: longitudes on the source's side of it
        turn = math.tau / source.crs.units_factor[1]
        centre = source.bounds.left / 2 + source.bounds.right / 2
        xs = centre + (xs - centre + turn / 2) % turn - turn / 2
    to_pixel = ~source.transform
    return (
        to_pixel.a * xs + to_pixel.b * ys + to_pixel.c,
        to_pixel.d * xs + to_pixel.e * ys + to_pixel.f,
    )
