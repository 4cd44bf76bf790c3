"""Copies of scenes to adapt to: pixels outside an area of interest or under a mask are not valid."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from shapely.geometry import box

from l4s_geo.data.synth_l4s import write_synthetic
from l4s_geo.errors import InputError
from l4s_geo.progress import Silent
from l4s_geo.train.targets import copy_target, find_targets
from tests.conftest import UTM, UTM_10M

BANDS = ("B4", "B3", "B2")
SHAPE = (300, 90)


@pytest.fixture
def target(raster):
    """A scene of which all pixels are valid, but for a corner."""
    values = np.random.default_rng(0).integers(200, 3000, (3, *SHAPE), np.uint16)
    values[:, :20, :20] = 0
    (found,) = find_targets([str(raster("scene.tif", values, names=BANDS, nodata=0))], BANDS, 10)
    return found


def polygons(path, *pixels, crs=UTM, to="EPSG:4326"):
    """A vector file of rectangles (row, column, end row, end column) of the scene."""
    shapes = [box(*(UTM_10M @ (c, end_r)), *(UTM_10M @ (end_c, r))) for r, c, end_r, end_c in pixels]
    gpd.GeoSeries(shapes, crs=crs).to_crs(to).to_file(path)
    return path


def valid_in(path):
    with rasterio.open(path) as file:
        return file.read(), file.dataset_mask() != 0


def test_only_the_area_of_interest_without_masks_is_valid(target, tmp_path, raster):
    whole, seen = valid_in(copy_target(target, tmp_path / "whole", BANDS, 10))
    assert not seen[:20, :20].any()
    assert seen.sum() == 300 * 90 - 400
    area = polygons(tmp_path / "aoi.geojson", (10, 10, 290, 80))
    river = polygons(tmp_path / "river.gpkg", (100, 0, 120, 90))
    # clouds on another grid: pixels of 30 m, nodata (255) is not masked
    clouds = np.zeros((100, 20), np.uint8)
    clouds[50:60, 5:10], clouds[70:80] = 3, 255
    clouds = raster("clouds.tif", clouds, transform=UTM_10M @ Affine.scale(3), nodata=255)
    copied, left = valid_in(copy_target(target, tmp_path / "part", BANDS, 10, aoi=area, masks=[river, clouds]))
    expected = np.zeros(SHAPE, bool)
    expected[10:290, 10:80] = True
    expected[100:120] = expected[150:180, 15:30] = expected[:20, :20] = False
    assert np.array_equal(left, expected)
    assert np.array_equal(copied, whole * expected)


def test_a_mask_in_another_crs_and_one_elsewhere(target, tmp_path, raster):
    west, south, east, north = gpd.GeoSeries(
        [box(*(UTM_10M @ (0, 300)), *(UTM_10M @ (90, 0)))], crs=UTM
    ).to_crs(4326).total_bounds  # fmt: skip
    half = Affine((east - west) / 200, 0, west, 0, (south - north) / 400, north)
    cloud = raster("cloud.tif", np.ones((200, 200), np.float32), crs="EPSG:4326", transform=half, nodata=np.nan)
    far = raster("far.tif", np.ones((9, 9), np.uint8), transform=Affine(10, 0, 200000, 0, -10, 100000))
    _, left = valid_in(copy_target(target, tmp_path / "copy", BANDS, 10, masks=[cloud, far]))
    assert not left[:145].any()
    assert left[155:].all()


def test_nothing_left_is_refused_and_leaves_no_file(target, tmp_path, raster):
    away = polygons(tmp_path / "away.geojson", (5000, 0, 5010, 10))
    corner = polygons(tmp_path / "corner.geojson", (2, 2, 18, 18))
    all_ = raster("all.tif", np.ones(SHAPE, np.uint8))
    many = raster("many.tif", np.ones((2, 9, 9), np.uint8))
    gpd.GeoSeries([], crs=UTM).to_file(tmp_path / "none.fgb")
    for limits, message in (
        ({"aoi": away}, r"away\.geojson does not overlap .*scene\.tif"),
        ({"aoi": corner}, r"no valid pixel inside .*corner\.geojson"),
        ({"masks": [all_]}, r"no valid pixel outside .*all\.tif.*any value but 0"),
        ({"aoi": tmp_path / "none.fgb"}, "holds no polygons"),
        ({"masks": [many]}, "2 bands"),
        ({"masks": [tmp_path / "missing.tif"]}, "no file"),
    ):
        with pytest.raises(InputError, match=message):
            copy_target(target, tmp_path / "copy", BANDS, 10, **limits)
        assert not list((tmp_path / "copy").iterdir())


def test_patches_take_no_limits(tmp_path):
    write_synthetic(tmp_path / "l4s", 4, "traindata", 1, Silent())
    (patches,) = find_targets([str(tmp_path / "l4s")], BANDS, 10)
    area = polygons(tmp_path / "aoi.geojson", (0, 0, 9, 9))
    for limits in ({"aoi": area}, {"masks": [area]}):
        with pytest.raises(InputError, match="scenes only"):
            copy_target(patches, tmp_path / "copy", BANDS, 10, **limits)
