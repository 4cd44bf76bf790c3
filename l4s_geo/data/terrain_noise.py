"""Synthetic ground: fractal noise, eroded relief, streams and the way down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse
from scipy.sparse import csgraph

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Ground size of a pixel in metres.
PIXEL_M = 10.0

#: Pixels per cell of the grid on which rivers erode the relief.
CELL = 4

#: Cells around the picture, so that the base level at the border of the domain stays out of sight.
MARGIN = 12

#: Rounds of erosion; with fewer, the uplifted block is not dissected to its ridges.
ROUNDS = 12

#: Catchment above which water runs in a bed, in cells.
STREAM_CELLS = 40

#: Slices of the two ends of every step between neighbouring cells: right, down and the two diagonals.
ALL, FIRST, LAST = slice(None), slice(None, -1), slice(1, None)
STEPS = (
    ((ALL, FIRST), (ALL, LAST)),
    ((FIRST, ALL), (LAST, ALL)),
    ((FIRST, FIRST), (LAST, LAST)),
    ((FIRST, LAST), (LAST, FIRST)),
)


@dataclass(frozen=True)
class Ground:
    """The relief of a scene; every array is (h, w) float32.

    Attributes:
        dem: Height in metres.
        slope: Slope in degrees.
        hand: Height above the nearest stream in metres (Nobre et al. 2011).
        stream: Distance to the nearest stream in pixels.
        width: Half the width of that stream's bed in pixels, grows with its catchment.
    """

    dem: Floats
    slope: Floats
    hand: Floats
    stream: Floats
    width: Floats


def fractal(rng: np.random.Generator, shape: tuple[int, int], scale: float, beta: float = 2.0) -> Floats:
    """Noise by spectral synthesis (Saupe 1988), mean 0 and standard deviation 1.

    Args:
        rng: Source of the phases.
        shape: Rows and columns.
        scale: Wavelength in pixels of the largest features.
        beta: Exponent of the power spectrum: 0 is white, 2 rough relief, 4 smooth.

    Returns:
        (h, w) float32.
    """
    size = tuple(fft.next_fast_len(max(n, 16), real=True) for n in shape)
    white = rng.standard_normal(size, dtype=np.float32)
    f2 = np.square(fft.fftfreq(size[0]))[:, None] + np.square(fft.rfftfreq(size[1]))[None]
    gain = ((f2 + 1 / scale**2) ** (-beta / 4)).astype(np.float32)
    noise = fft.irfft2(fft.rfft2(white) * gain, size)[: shape[0], : shape[1]]
    noise -= noise.mean()
    scaled: Floats = (noise / max(float(noise.std()), 1e-6)).astype(np.float32)
    return scaled


def slope_degrees(dem: Floats) -> Floats:
    """Slope of a height field on the pixel grid, degrees."""
    down, right = np.gradient(dem, PIXEL_M)
    slope: Floats = np.degrees(np.arctan(np.hypot(down, right))).astype(np.float32)
    return slope


def ramp(x: Floats, low: float, high: float) -> Floats:
    """0 below ``low``, 1 above ``high``, straight between (falls where ``high < low``)."""
    share: Floats = np.clip((x - low) / (high - low), 0, 1).astype(np.float32)
    return share


def _receivers(z: Floats, outlets: Mask) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Flat index of the cell that every cell drains to (itself at an outlet) and the way there in cells.

    The minimum spanning tree over the heights of the steps between neighbours is steepest descent that leaves
    every hollow over its lowest pass (as Barnes et al. 2014 do by flooding), so all streams reach an outlet.
    """
    h, w = z.shape
    index = np.arange(z.size).reshape(h, w)
    starts, ends, costs = [], [], []
    for here, there in STEPS:
        a, b = z[here], z[there]
        starts.append(index[here].ravel())
        ends.append(index[there].ravel())
        diagonal = here[0] != there[0] and here[1] != there[1]
        costs.append((np.maximum(a, b) - 0.01 * np.abs(a - b) / (1.414 if diagonal else 1.0)).ravel())
    sea = np.flatnonzero(outlets)
    low = float(min(c.min() for c in costs))
    costs = [c - low + 1 for c in costs] + [np.full(sea.size, 0.5, np.float32)]
    start, end = np.concatenate([*starts, np.full(sea.size, z.size)]), np.concatenate([*ends, sea])
    graph = sparse.coo_array((np.concatenate(costs), (start, end)), (z.size + 1, z.size + 1)).tocsr()
    tree = csgraph.minimum_spanning_tree(graph)
    _, before = csgraph.breadth_first_order(tree, z.size, directed=False)
    target = np.where(before[:-1] == z.size, index.ravel(), before[:-1])
    aside = (target // w != index.ravel() // w) & (target % w != index.ravel() % w)
    return target, np.where(aside, np.float32(1.414), np.float32(1))


def _levels(target: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Cells grouped by the number of steps to their outlet, outlets first."""
    jump, depth = target.copy(), (target != np.arange(target.size)).astype(np.int32)
    while True:
        more = depth[jump]
        if not more.any():
            break
        depth = depth + more
        jump = jump[jump]
    order = np.argsort(depth, kind="stable")
    return np.split(order, np.cumsum(np.bincount(depth))[:-1])


def _catchments(target: NDArray[np.intp], levels: list[NDArray[np.intp]]) -> NDArray[np.float32]:
    """Cells that drain through each cell."""
    area = np.ones(target.size, np.float32)
    for cells in levels[:0:-1]:
        np.add.at(area, target[cells], area[cells])
    return area


def _erode(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, NDArray[np.intp], NDArray[np.float32]]:
    """Uplift cut by streams: the implicit stream power law of Braun and Willett (2013).

    Returns:
        Heights (arbitrary unit), flat receivers and catchment sizes in cells.
    """
    inside = _open_sides(rng, shape)
    z = rng.uniform(0, 0.3) * ndimage.distance_transform_edt(inside).astype(np.float32)
    z += rng.uniform(4, 10) * fractal(rng, shape, max(shape) / 3, 3) + rng.random(shape, dtype=np.float32)
    uplift = inside * np.exp(rng.uniform(0.2, 0.6) * fractal(rng, shape, max(shape) / 2, 3.5))
    strength = rng.uniform(0.2, 0.5)
    for _ in range(ROUNDS):
        z = z + uplift
        target, way = _receivers(z, inside == 0)
        levels = _levels(target)
        area = _catchments(target, levels)
        pull = strength * np.sqrt(area) / way
        flat = z.ravel()
        for cells in levels[1:]:
            flat[cells] = (flat[cells] + pull[cells] * flat[target[cells]]) / (1 + pull[cells])
        z = flat.reshape(shape)
    return ndimage.gaussian_filter(z, rng.uniform(0.9, 1.4)), target, area


def _open_sides(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """1 inside, 0 on the one to three sides of the domain that hold the base level."""
    inside = np.ones(shape, np.float32)
    sides = rng.permutation(4)[: rng.integers(1, 4)]
    for side in sides:
        np.rot90(inside, side)[0] = 0
    return inside


def make_ground(rng: np.random.Generator, shape: tuple[int, int], steepness: float, valley: float) -> Ground:
    """Relief that streams have cut, with flat valley floors.

    Args:
        rng: Source of all that is random.
        shape: Rows and columns.
        steepness: Upper quartile of the slope in degrees before the valleys are filled.
        valley: Depth of valley fill in metres; more makes flood plains wider.
    """
    coarse = (shape[0] // CELL + 2 * MARGIN, shape[1] // CELL + 2 * MARGIN)
    z, target, area = _erode(rng, coarse)
    bend = [rng.uniform(2, 6) * fractal(rng, shape, 60, 3.5) for _ in range(2)]
    rows, columns = np.indices(shape, dtype=np.float32)
    at = [(x - b) / CELL + MARGIN for x, b in zip((rows, columns), bend, strict=True)]
    dem = ndimage.map_coordinates(z, at, order=3, mode="nearest").astype(np.float32)
    slope = slope_degrees(dem)
    factor = np.tan(np.radians(steepness)) / max(float(np.tan(np.radians(np.quantile(slope, 0.75)))), 1e-6)
    dem *= factor
    bed, catchment, distance = _streams(z * factor, target, area, bend, shape)
    hand = np.maximum(dem - bed, 0)
    fill = valley * np.sqrt(catchment / 1000).clip(0.1, 3) + 0.1
    dem -= ndimage.gaussian_filter(hand * fill / (hand + fill), 4)
    dem += 0.03 * steepness * fractal(rng, shape, 40, 2.6) * ramp(hand, 2, 30) + rng.uniform(5, 600)
    hand = hand * hand / (hand + fill)
    width = (0.04 * np.sqrt(catchment)).astype(np.float32)
    return Ground(dem.astype(np.float32), slope_degrees(dem), hand.astype(np.float32), distance, width)


def flood(ground: Ground, share: float) -> tuple[Ground, Floats]:
    """Put the lowest ``share`` of the ground under a level lake.

    Returns:
        The ground with the lake's surface, and the depth of the water in metres, negative on land, (h, w).
    """
    level = np.float32(np.quantile(ground.dem, share))
    dem = np.maximum(ground.dem, level)
    return replace(ground, dem=dem, slope=slope_degrees(dem)), level - ground.dem


def _streams(
    z: Floats, target: NDArray[np.intp], area: NDArray[np.float32], bend: list[Floats], shape: tuple[int, int]
) -> tuple[Floats, Floats, Floats]:
    """Height, catchment and distance (pixels) of the stream nearest to every pixel, (h, w) each.

    Stream positions are averaged over five steps downstream: D8 flow knows only eight directions.
    """
    wet = np.flatnonzero(area > STREAM_CELLS)
    points = np.stack(np.unravel_index(np.arange(z.size), z.shape)).astype(np.float32)
    line = (points[:, wet] / 5).astype(np.float32)
    step = wet
    for _ in range(4):
        step = target[step]
        line += points[:, step] / 5
    ends = _bent(line, bend, shape)
    full = np.full(z.size, -1)
    full[wet] = np.arange(wet.size)
    after = full[target[wet]]
    bed = np.zeros(shape, np.float32)
    catchment = np.ones(shape, np.float32)
    dry = np.ones(shape, bool)
    order = np.argsort(area[wet])
    heights = z.ravel()
    for part in np.linspace(0, 1, 2 * CELL, endpoint=False, dtype=np.float32):
        r, c = np.rint(ends[:, order] * (1 - part) + ends[:, after[order]] * part).astype(int)
        ok = (r >= 0) & (r < shape[0]) & (c >= 0) & (c < shape[1])
        cells, r, c = wet[order][ok], r[ok], c[ok]
        bed[r, c] = heights[cells] * (1 - part) + heights[target[cells]] * part
        catchment[r, c] = area[cells]
        dry[r, c] = False
    if dry.all():
        dry[:, 0] = False
    distance, (r, c) = ndimage.distance_transform_edt(dry, return_indices=True)
    return ndimage.gaussian_filter(bed[r, c], 2), catchment[r, c], distance.astype(np.float32)


def _bent(line: Floats, bend: list[Floats], shape: tuple[int, int]) -> Floats:
    """Pixel positions of points on the coarse grid, moved as the relief was."""
    straight = (line - MARGIN) * CELL
    r, c = (np.clip(np.rint(x), 0, n - 1).astype(int) for x, n in zip(straight, shape, strict=True))
    moved: Floats = straight + np.stack([b[r, c] for b in bend])
    return moved


def downhill(dem: Floats, row: float, column: float, steps: int) -> Iterator[tuple[float, float]]:
    """Steps of one pixel down the steepest slope, (row, column); ends at the border and on level ground."""
    h, w = dem.shape
    heading = np.zeros(2)
    for _ in range(steps):
        r, c = round(row), round(column)
        if not (2 <= r < h - 2 and 2 <= c < w - 2):
            return
        yield row, column
        fall = np.array([dem[r - 2, c] - dem[r + 2, c], dem[r, c - 2] - dem[r, c + 2]]) / (4 * PIXEL_M)
        if np.hypot(*fall) < 0.06:
            return
        heading = 0.5 * heading + fall / np.hypot(*fall)
        heading /= np.hypot(*heading)
        row, column = row + heading[0], column + heading[1]
