from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from rasterio.crs import CRS

from l4s_geo.scene import open_scene
from l4s_geo.scene.grid import Grid
from l4s_geo.scene.terrain import aspect_degrees, slope_degrees

from .conftest import DATA, UTM, UTM_10M, needs_data

UTM_CRS = CRS.from_string(UTM)


def plane(grid: Grid, east: float, north: float) -> NDArray[np.float32]:
    """Elevations that rise by ``east`` and ``north`` per unit of the CRS."""
    cols, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    xs, ys = grid.at(cols, rows)
    return (east * (xs - xs.mean()) + north * (ys - ys.mean())).astype(np.float32)


rises = st.floats(-2, 2)


@given(rises, rises, st.floats(0, 360), st.integers(2, 6), st.integers(2, 6))
def test_a_plane_has_its_slope_everywhere_on_any_grid(east: float, north: float, angle: float, h: int, w: int) -> None:
    grid = Grid(UTM_CRS, Affine.rotation(angle) * Affine.scale(10, -7), w, h)
    slope = slope_degrees(plane(grid, east, north), np.ones((h, w), bool), grid)
    assert_allclose(slope, math.degrees(math.atan(math.hypot(east, north))), atol=2e-3)


def test_horn_weights_on_a_single_peak() -> None:
    grid = Grid(UTM_CRS, UTM_10M, 5, 5)
    dem = np.zeros((5, 5), np.float32)
    dem[2, 2] = 80
    slope = slope_degrees(dem, np.ones((5, 5), bool), grid)
    straight, diagonal = (math.degrees(math.atan(v)) for v in (2 * 80 / 80, math.hypot(1, 1)))
    assert slope[2, 2] == 0
    assert_allclose(slope[[1, 2, 2, 3], [2, 1, 3, 2]], straight, rtol=1e-6)
    assert_allclose(slope[[1, 1, 3, 3], [1, 3, 1, 3]], diagonal, rtol=1e-6)


def test_a_hole_is_no_cliff() -> None:
    grid = Grid(UTM_CRS, UTM_10M, 9, 9)
    dem, valid = plane(grid, 0.5, 0.25), np.ones((9, 9), bool)
    valid[3:6, 4] = False
    dem[~valid] = -32768
    slope = slope_degrees(dem, valid, grid)
    assert_allclose(slope[valid], math.degrees(math.atan(math.hypot(0.5, 0.25))), rtol=1e-5)
    assert (slope[~valid] == 0).all()


def test_a_lonely_pixel_is_flat() -> None:
    grid = Grid(UTM_CRS, UTM_10M, 1, 1)
    assert slope_degrees(np.full((1, 1), 900, np.float32), np.ones((1, 1), bool), grid) == 0


def test_degrees_are_taken_in_metres_at_their_latitude() -> None:
    step = 1 / 3600
    grid = Grid(CRS.from_epsg(4326), Affine(step, 0, 10, 0, -step, 60.001), 5, 5)
    east = slope_degrees(plane(grid, 10 / step, 0), np.ones((5, 5), bool), grid)
    north = slope_degrees(plane(grid, 0, 10 / step), np.ones((5, 5), bool), grid)
    # at 60 degrees north on WGS 84 a degree has 55,800 m east and 111,412 m north
    assert_allclose(east, math.degrees(math.atan(10 / (55800 * step))), rtol=1e-3)
    assert_allclose(north, math.degrees(math.atan(10 / (111412 * step))), rtol=1e-3)


def test_feet_on_the_ground_are_metres() -> None:
    feet = Grid(CRS.from_epsg(2229), Affine(30, 0, 6.5e6, 0, -30, 1.8e6), 4, 4)
    slope = slope_degrees(plane(feet, 0.3048, 0), np.ones((4, 4), bool), feet)
    assert_allclose(slope, 45, atol=1e-2)


@pytest.mark.parametrize(("east", "north", "aspect"), [(-1, 0, 90), (1, 0, 270), (0, -1, 0), (0, 1, 180), (-1, -1, 45)])
def test_aspect_is_where_water_runs(east: float, north: float, aspect: float) -> None:
    grid = Grid(UTM_CRS, UTM_10M, 4, 4)
    wanted = np.eye(4, dtype=bool)
    found = aspect_degrees(plane(grid, east, north), np.ones((4, 4), bool), grid, wanted)
    assert_allclose(np.cos(np.radians(found[wanted] - aspect)), 1, atol=1e-6)
    assert np.isnan(found[~wanted]).all()


def test_slope_of_a_scene_is_that_of_the_dems_own_resolution(raster: Callable[..., Path]) -> None:
    """A saw of 20 m teeth has slopes at 20 m that are gone at 80 m."""
    teeth = np.tile(np.array([0, 10], np.float32), (40, 20))
    scene_path = raster("s.tif", np.full((20, 20), 900, np.uint16), names=["B4"])
    shift = UTM_10M * Affine.translation(-20, -20)
    dem = raster("d.tif", np.repeat(teeth, 2, axis=1), transform=shift)
    with open_scene(scene_path, dem=dem) as scene:
        image, valid = scene.read(scene.grid.window())
    assert scene.bands == ("B4", "slope", "dem")
    assert valid.all()
    with rasterio.open(dem) as d:
        own = Grid(d.crs, d.transform, d.width, d.height)
        expected = slope_degrees(d.read(1), np.ones(own.shape, bool), own)
    assert_allclose(image[1], expected[20:40, 20:40], atol=0.01)
    assert any("slope derived" in note for note in scene.notes)


@needs_data
def test_derived_slope_agrees_with_the_slope_that_came_with_the_data() -> None:
    folder = DATA / "hokkaido_s2"
    post = str(folder / "post_B*.tif")
    with open_scene(post, dem=folder / "dem.tif") as ours:
        derived, valid = ours.read(ours.grid.window(), ["slope"])
    with open_scene(post, dem=folder / "dem.tif", slope=folder / "slope.tif") as theirs:
        given_, also = theirs.read(theirs.grid.window(), ["slope"])
    both = valid & also
    # theirs is from the four nearest neighbours, which smooths less than Horn's eight
    assert np.median(abs(derived - given_)[0][both]) < 1.5
    assert np.corrcoef(derived[0][both], given_[0][both])[0, 1] > 0.95
