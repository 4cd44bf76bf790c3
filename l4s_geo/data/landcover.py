"""Painters of synthetic ground covers: forest, fields, towns, rivers, lakes, rock, snow, roads and clouds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from l4s_geo.data.sensor import paint, vary
from l4s_geo.data.terrain_noise import Floats, Ground, fractal, ramp

FORESTS = {
    "lush": ("lush", "broadleaf", "broadleaf", "conifer", "meadow"),
    "dry": ("dry_forest", "broadleaf", "dry_forest", "heath"),
    "autumn": ("autumn", "autumn_red", "leafless", "conifer", "broadleaf"),
    "leafless": ("leafless", "leafless", "dry_forest", "conifer", "heath"),
}
CROPS = {
    "green": ("crop", "meadow", "grass", "young_crop", "crop", "soil"),
    "harvest": ("stubble", "ripe", "soil", "soil_pale", "young_crop", "crop", "soil_dark"),
    "winter": ("soil_dark", "soil", "dry_grass", "stubble", "grass", "soil_red"),
}
ROOFS = ("roof_red", "roof_grey", "roof_dark", "roof_blue", "roof_white", "asphalt", "concrete", "roof_grey")


def grain(
    rng: np.random.Generator, shape: tuple[int, int], amount: float, scale: float = 3.0, beta: float = 1.6
) -> Floats:
    """Brightness factor around 1 (log-normal fractal noise, ``amount`` the standard deviation of its log)."""
    noise: Floats = np.exp(amount * fractal(rng, shape, scale, beta))
    return noise


def lines(field: Floats, width: float) -> Floats:
    """Share of each pixel covered by the zero lines of a smooth field drawn ``width`` pixels wide."""
    away = np.abs(field) / np.maximum(np.hypot(*np.gradient(field)), 1e-6)
    return ramp(away, width / 2 + 0.5, width / 2 - 0.5)


def forest(image: Floats, ground: Ground, rng: np.random.Generator, season: str) -> None:
    """Stands of several species that follow height and noise, with the texture of crowns."""
    shape = ground.dem.shape
    names = list(rng.permutation(FORESTS[season])[: rng.integers(2, 5)])
    image += vary(rng, names[0])[:, None, None]
    height = (ground.dem - ground.dem.mean()) / (ground.dem.std() + 1)
    for name in names[1:]:
        field = fractal(rng, shape, rng.uniform(15, 200), rng.uniform(2.2, 3.6)) + rng.normal(0, 0.6) * height
        edge = rng.normal(0.7, 0.5)
        paint(image, vary(rng, name), ramp(field, edge, edge + rng.uniform(0.3, 2)))
    image *= grain(rng, shape, rng.uniform(0.04, 0.16), rng.uniform(1.5, 4))
    image *= grain(rng, shape, rng.uniform(0.03, 0.12), rng.uniform(10, 60))


def parcels(
    rng: np.random.Generator, shape: tuple[int, int], size: float, sector: float
) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Land divided into strips of blocks whose direction changes from sector to sector.

    Returns:
        Parcel numbers below 4096 (neighbours differ mostly), distance to the parcel's edge in pixels, and the
        coordinate across the rows of the plough in pixels; all (h, w).
    """
    home = _voronoi(rng, shape, sector)
    count = int(home.max()) + 1
    angle = rng.uniform(0, np.pi, count) if rng.random() < 0.6 else np.full(count, rng.uniform(0, np.pi))
    tall, wide = size * np.exp(rng.normal(0, 0.35, (2, count)))
    rows, columns = np.indices(shape, dtype=np.float32)
    bend = rng.uniform(0, 4) * fractal(rng, shape, 120, 3.5)
    u = (np.cos(angle)[home] * columns + np.sin(angle)[home] * rows + bend).astype(np.float32)
    v = (-np.sin(angle)[home] * columns + np.cos(angle)[home] * rows + bend).astype(np.float32)
    strip = np.floor(v / tall[home]).astype(np.intp)
    width = wide[home] * np.exp(rng.normal(0, 0.5, 1024))[strip % 1024]
    along = u / width + rng.random(1024)[strip % 1024]
    block = np.floor(along).astype(np.intp)
    number = (strip * 7919 + block * 104729 + home * 611953) % 4096
    edge = np.minimum(_from_edge(v / tall[home]) * tall[home], _from_edge(along) * width)
    return number, edge.astype(np.float32), v


def _from_edge(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the nearest whole number."""
    return np.abs(x - np.rint(x))


def _voronoi(rng: np.random.Generator, shape: tuple[int, int], size: float) -> NDArray[np.intp]:
    """Number of the nearest of random points, about one for every ``size`` x ``size`` pixels."""
    count = max(2, round(shape[0] * shape[1] / size**2))
    away = np.ones(shape, bool)
    number = np.zeros(shape, np.intp)
    r, c = rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)
    away[r, c], number[r, c] = False, np.arange(count)
    stretch = (1.0, float(np.exp(rng.normal(0, 0.4))))
    nearest = ndimage.distance_transform_edt(away, sampling=stretch, return_distances=False, return_indices=True)
    found: NDArray[np.intp] = number[tuple(nearest)]
    return found


def fields(image: Floats, ground: Ground, rng: np.random.Generator, where: Floats, season: str) -> None:
    """Parcels of crops and bare soil with rows, blotches, hedges and tracks."""
    shape = where.shape
    number, edge, across = parcels(rng, shape, rng.uniform(7, 28), rng.uniform(60, 250))
    if rng.random() < 0.25:
        number = _voronoi(rng, shape, rng.uniform(10, 30)) % 4096
        edge = np.full(shape, 9, np.float32)
    names = CROPS[season]
    kinds = np.stack([vary(rng, name, 0.2) for name in names for _ in range(3)], axis=1)
    chance = rng.dirichlet(np.full(kinds.shape[1], 0.7))
    kind = rng.choice(kinds.shape[1], 4096, p=chance)[number]
    bright = np.exp(rng.normal(0, rng.uniform(0.05, 0.2), 4096)).astype(np.float32)[number]
    rows = 1 + rng.uniform(0, 0.05, 4096)[number] * np.sin(across * 2 * np.pi / rng.uniform(2.2, 6))
    blotch = grain(rng, shape, rng.uniform(0.02, 0.1), rng.uniform(6, 30)) * grain(rng, shape, 0.02, 2)
    texture = (bright * rows * blotch).astype(np.float32)
    flat = image.reshape(len(image), -1)
    at = np.flatnonzero(where)
    share = where.ravel()[at]
    flat[:, at] += share * (kinds[:, kind.ravel()[at]] * texture.ravel()[at] - flat[:, at])
    border = (rng.random(4096) < rng.uniform(0, 0.7))[number] * ramp(edge, 1.2, 0.4) * where
    name = str(rng.choice(["conifer", "broadleaf", "grass", "soil", "dry_grass"]))
    paint(image, vary(rng, name), border * rng.uniform(0.3, 0.9), grain(rng, shape, 0.15))


def town(image: Floats, rng: np.random.Generator, where: Floats) -> None:
    """Streets, houses with gardens, and big halls, denser inside."""
    shape = where.shape
    _, street, _ = parcels(rng, shape, rng.uniform(6, 12), rng.uniform(50, 150))
    garden = vary(rng, str(rng.choice(["grass", "meadow", "broadleaf", "dry_grass"])))
    paint(image, garden, where, grain(rng, shape, 0.15, 2))
    roofs = np.stack([vary(rng, name, 0.3) for name in ROOFS], axis=1)
    chance = rng.dirichlet(np.full(len(ROOFS), 1.0))
    halls = fractal(rng, shape, 60, 3.2) > rng.uniform(0.3, 2)
    for size, zone in ((rng.uniform(1.5, 3), ~halls), (rng.uniform(5, 12), halls)):
        number, edge, _ = parcels(rng, shape, size, rng.uniform(40, 120))
        built = (rng.random(4096) < rng.uniform(0.35, 0.8))[number]
        kind = rng.choice(len(ROOFS), 4096, p=chance)[number]
        bright = np.exp(rng.normal(0, 0.25, 4096)).astype(np.float32)[number]
        paint(image, roofs[:, kind], built * zone * where * ramp(edge, 0, 0.8) * rng.uniform(0.6, 1), bright)
    paint(image, vary(rng, "asphalt"), where * ramp(street, 1.0, 0.3) * rng.uniform(0.5, 1))
    trees = fractal(rng, shape, 8, 1.5) > rng.uniform(0.8, 2)
    paint(image, vary(rng, "broadleaf"), 0.8 * where * trees, grain(rng, shape, 0.15))


def roads(image: Floats, ground: Ground, rng: np.random.Generator, count: int, steepest: float) -> None:
    """Winding tracks and roads, the zero lines of tilted smooth noise (the tilt keeps them from closing)."""
    shape = ground.dem.shape
    for _ in range(count):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(60, 300)
        rows, columns = (np.indices(shape, dtype=np.float32).T - rng.uniform(0, 1, 2) * shape).T
        field = (rows * np.cos(angle) + columns * np.sin(angle)) / length
        field += rng.uniform(0.04, 0.2) * fractal(rng, shape, length, rng.uniform(3.6, 5))
        track = lines(field, rng.uniform(0.4, 1.6)) * ramp(ground.slope, steepest + 5, steepest)
        paint(
            image,
            vary(rng, str(rng.choice(["asphalt", "soil", "concrete", "gravel"]))),
            track * rng.uniform(0.4, 1),
        )


def rivers(image: Floats, ground: Ground, rng: np.random.Generator, breadth: float, gravel: float) -> Floats:
    """Beds of bars and braids; returns the share of each pixel that the beds take.

    Args:
        image: Surface reflectance, in place.
        ground: The relief.
        rng: Source of all that is random.
        breadth: Factor on the width of the beds.
        gravel: Share of the bed that is bare; the rest is water or green.
    """
    shape = ground.dem.shape
    ragged = ground.stream * np.exp(0.3 * fractal(rng, shape, 30, 3))
    bed = ramp(ragged - breadth * ground.width, 0.5, -0.5) * ramp(ground.width * breadth, 0.8, 1.6)
    bars = vary(rng, str(rng.choice(["gravel", "gravel", "sand", "scar_grey", "soil_dark"])), 0.25)
    field = fractal(rng, shape, 15, 2.2)
    paint(image, bars, bed, grain(rng, shape, rng.uniform(0.03, 0.12), 8, 2.5) * (1 + 0.1 * field))
    green = ramp(field, 1.6 * gravel - 0.1, 1.6 * gravel + 0.4)
    weeds = vary(rng, str(rng.choice(["grass", "heath", "dry_grass"])))
    paint(image, weeds, bed * green, grain(rng, shape, 0.12))
    water = vary(rng, str(rng.choice(["water", "water_green", "water_muddy"])), 0.3)
    channel = ramp(ground.stream, rng.uniform(0.6, 2.5), 0.5)
    for _ in range(rng.integers(4)):
        aside = breadth * ground.width * rng.uniform(0, 0.7) * (1 + fractal(rng, shape, rng.uniform(20, 60), 3.4))
        channel = np.maximum(channel, lines(ground.stream - aside, rng.uniform(0.8, 2)))
    paint(image, water, bed * channel * rng.uniform(0.5, 1))
    return bed


def lake(image: Floats, depth: Floats, rng: np.random.Generator) -> Floats:
    """Open water, muddy or green in the shallows, often with a pale shore.

    Args:
        image: Surface reflectance, in place.
        depth: Of the water in metres, negative on land, (h, w).
        rng: Source of all that is random.

    Returns:
        Share of each pixel under water, (h, w).
    """
    shore = float(rng.choice([0.0, 0.5, 1.5])) * rng.uniform(0.5, 1.5)
    sand = vary(rng, str(rng.choice(["sand", "gravel", "soil"])))
    paint(image, sand, ramp(depth, -shore - 0.2, -shore + 0.2))
    water = ramp(depth, -0.2, 0.2)
    deep = vary(rng, str(rng.choice(["water", "water_green", "water_muddy"])), 0.4)
    paint(image, deep, water, 1 + 0.05 * fractal(rng, depth.shape, 200, 3))
    shallow = ramp(depth, rng.uniform(2, 15), 0) * rng.uniform(0, 0.6)
    paint(image, vary(rng, "water_muddy", 0.2), water * shallow)
    return water


def bare(image: Floats, ground: Ground, rng: np.random.Generator, where: Floats) -> None:
    """Dry grass, debris and rock with beds of strata, as above the tree line or in dry hills."""
    shape = where.shape
    turf = str(rng.choice(["dry_grass", "heath", "grass", "soil_dark"]))
    paint(image, vary(rng, turf, 0.25), where, grain(rng, shape, rng.uniform(0.05, 0.15), 6))
    strata = np.sin(ground.dem / rng.uniform(5, 30) + 2 * fractal(rng, shape, 80, 3))
    steep = (ground.slope - 25) / 12 + 0.6 * fractal(rng, shape, rng.uniform(20, 100), 2.8) + 0.3 * strata
    edge = rng.normal(0.3, 0.6)
    stone = str(rng.choice(["rock", "rock", "rock", "rock_dark", "rock_dark", "soil"]))
    texture = grain(rng, shape, rng.uniform(0.06, 0.22), rng.uniform(2, 8)) * (1 + rng.uniform(0, 0.15) * strata)
    paint(image, vary(rng, stone, 0.3), where * ramp(steep, edge, edge + rng.uniform(0.2, 1.2)), texture)


def clearings(image: Floats, ground: Ground, rng: np.random.Generator, share: float) -> None:
    """Felled and young stands with straight sides."""
    shape = ground.dem.shape
    for name in ("grass", "heath", "leafless", "soil_dark", "conifer"):
        number, _, _ = parcels(rng, shape, rng.uniform(8, 30), rng.uniform(80, 200))
        cut = (rng.random(4096) < share / 4)[number]
        paint(image, vary(rng, name, 0.2), cut * rng.uniform(0.4, 1), grain(rng, shape, rng.uniform(0.05, 0.15)))


def snow(image: Floats, ground: Ground, rng: np.random.Generator, share: float, sunny: Floats) -> None:
    """Snow on about ``share`` of the ground, sooner where it is high, in a hollow or shaded.

    Args:
        image: (12, h, w) surface reflectance, in place.
        ground: The relief.
        rng: Source of all that is random.
        share: Part of the picture with snow.
        sunny: (h, w) light above that of level ground.
    """
    shape = ground.dem.shape
    height = (ground.dem - ground.dem.mean()) / (ground.dem.std() + 1)
    hollow = ndimage.gaussian_filter(ground.dem, 4) - ground.dem
    hollow /= hollow.std() + 0.1
    odds = rng.uniform(0, 1.5) * height + rng.uniform(0, 1) * hollow - rng.uniform(0, 0.8) * sunny
    odds = odds + rng.uniform(0.3, 0.8) * fractal(rng, shape, rng.uniform(10, 120), rng.uniform(2.2, 3.4))
    line = float(np.quantile(odds, 1 - share))
    cover = ramp(odds, line, line + rng.uniform(0.2, 1.5)) * rng.uniform(0.35, 1)
    paint(image, vary(rng, "snow", 0.12, 0.02), cover, grain(rng, shape, 0.04))


def clouds(rng: np.random.Generator, shape: tuple[int, int], share: float) -> Floats:
    """Opacity of clouds over about ``share`` of the picture, (h, w)."""
    field = fractal(rng, shape, rng.uniform(40, 250), rng.uniform(2.7, 3.6))
    line = float(np.quantile(field, 1 - share))
    return ramp(field, line, line + rng.uniform(0.3, 1.5)) * np.float32(rng.uniform(0.6, 1))


def shadow(opacity: Floats, azimuth: float, elevation: float, height: float) -> Floats:
    """Where clouds ``height`` pixels above the ground take the direct light away, 0..1."""
    away = height / np.tan(np.radians(elevation))
    a = np.radians(azimuth)
    moved: Floats = ndimage.shift(opacity, (away * np.cos(a), -away * np.sin(a)), order=1, mode="grid-wrap")
    return moved


def level(ground: Ground, steepest: float) -> Floats:
    """Share of land that can be farmed or built on, 0..1, smooth at its edges."""
    smooth = ndimage.gaussian_filter(ground.slope, 3)
    return ramp(smooth, steepest + 1, steepest - 1)
