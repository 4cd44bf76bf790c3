"""Synthetic scenes: what they promise, and how near they are to real ones."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from scipy import ndimage

from l4s_geo.data.patches import UNKNOWN
from l4s_geo.data.sensor import SPECTRA, paint, spectrum, sunlight
from l4s_geo.data.synthetic import NEGATIVE_THEMES, THEMES, make_scene, write_scene
from l4s_geo.data.terrain_noise import (
    Ground,
    _catchments,
    _levels,
    _receivers,
    downhill,
    flood,
    fractal,
    make_ground,
    slope_degrees,
)
from l4s_geo.errors import InputError, OutputError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def scene():
    return make_scene(256, 256, 3)


def plane(fall_east: float, shape=(40, 40)) -> Ground:
    dem = (1000 - fall_east * 10 * np.arange(shape[1], dtype=np.float32)) * np.ones((shape[0], 1), np.float32)
    none = np.zeros(shape, np.float32)
    return Ground(dem, slope_degrees(dem), none, none, none)


def test_equal_arguments_give_equal_scenes_and_seeds_differ(scene):
    again, other = make_scene(256, 256, 3), make_scene(256, 256, 4)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(scene.truth, again.truth)
    assert np.array_equal(scene.valid, again.valid)
    assert not np.array_equal(scene.image, other.image)


@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (129, 64)])
def test_any_size(shape):
    made = make_scene(*shape, 1)
    assert made.image.shape == (14, *shape)
    assert made.image.dtype == np.float32
    assert made.truth.shape == made.valid.shape == shape
    assert made.truth.dtype == np.uint8
    assert np.isfinite(made.image).all()


def test_digital_numbers_are_whole_positive_and_zero_only_outside(scene):
    spectral = scene.image[:12]
    assert np.array_equal(spectral, np.rint(spectral))
    assert (spectral[:, scene.valid] >= 1).all()
    assert spectral.max() <= 20000
    assert (~scene.valid).any()
    assert (spectral[:, ~scene.valid] == 0).all()


def test_slope_belongs_to_the_dem(scene):
    assert np.allclose(scene.image[12], slope_degrees(scene.image[13]), atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_landslides_are_bare_scars_on_steep_slopes(seed):
    made = make_scene(256, 256, seed)
    slid = made.truth == 1
    other = made.valid & ~slid
    red, nir = made.image[made.bands.index("B4")], made.image[made.bands.index("B8")]
    ndvi = (nir - red) / np.maximum(nir + red, 1)
    assert 0.02 <= slid.mean() <= 0.07
    assert set(np.unique(made.truth)) <= {0, 1}
    assert not (slid & ~made.valid).any()
    assert made.image[12][slid].mean() > made.image[12][other].mean()
    assert np.median(red[slid]) > 1.5 * np.median(red[other])
    assert np.median(ndvi[slid]) < np.median(ndvi[other]) - 0.1


def test_landslides_run_downhill(scene):
    """Most of the larger ones are longer than wide and span some height."""
    label, count = ndimage.label(scene.truth, np.ones((3, 3)))
    areas = ndimage.sum_labels(scene.truth, label, np.arange(1, count + 1))
    big = np.flatnonzero(areas > 40) + 1
    relief = [np.ptp(scene.image[13][label == i]) for i in big]
    assert len(big) >= 5
    assert np.median(relief) > 30


@pytest.mark.parametrize("theme", NEGATIVE_THEMES)
def test_negatives_hold_no_landslide_and_differ_in_colour(theme):
    first, second = (make_scene(128, 128, s, landslides=False, theme=theme) for s in (1, 2))
    assert not first.truth.any()
    colours = [np.median(s.image[1:4][:, s.valid], axis=1) for s in (first, second)]
    assert np.abs(colours[0] - colours[1]).max() > 10


def test_every_theme_is_its_own():
    assert set(NEGATIVE_THEMES) == set(THEMES)
    images = [make_scene(64, 64, 5, landslides=False, theme=t).image for t in THEMES]
    assert len({image.tobytes() for image in images}) == len(THEMES)


def test_snow_and_cloud_are_bright_and_forest_is_not():
    def brightest(theme: str) -> float:
        return float(np.mean([_blue(theme, s).max() for s in range(3)]))

    assert brightest("snow") > 3000
    assert brightest("cloud") > 3000
    assert np.median(_blue("forest", 0)) < 1100


def _blue(theme: str, seed: int):
    made = make_scene(128, 128, seed, landslides=False, theme=theme)
    return made.image[1][made.valid]


def test_unknown_theme_and_empty_size_are_refused():
    with pytest.raises(InputError, match=r"'desert'.*mixed"):
        make_scene(10, 10, 0, theme="desert")
    with pytest.raises(InputError, match="0 x 10"):
        make_scene(0, 10, 0)
    with pytest.raises(InputError, match="-1"):
        make_scene(10, 10, -1)


def test_written_scene_reads_back(tmp_path, scene):
    paths = write_scene(scene, tmp_path / "new")
    with rasterio.open(paths["scene"]) as src:
        assert src.descriptions == scene.bands[:12]
        assert (src.dtypes[0], src.nodata) == ("uint16", 0)
        assert (src.crs, src.transform) == (scene.crs, scene.transform)
        assert np.array_equal(src.read(), scene.image[:12])
        assert np.array_equal(src.dataset_mask() > 0, scene.valid)
    with rasterio.open(paths["dem"]) as src:
        assert np.array_equal(src.read(1), scene.image[13])
    with rasterio.open(paths["truth"]) as src:
        truth = src.read(1)
    assert np.array_equal(truth[scene.valid], scene.truth[scene.valid])
    assert (truth[~scene.valid] == UNKNOWN).all()


def test_unwritable_folder_is_refused(tmp_path, scene):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        write_scene(scene, tmp_path / "file")


@settings(max_examples=15)
@given(st.integers(0, 999), st.integers(1, 70), st.integers(1, 70))
def test_noise_is_standardized_and_smoother_with_beta(seed, height, width):
    rough, smooth = (fractal(np.random.default_rng(seed), (height, width), 20, b) for b in (1.0, 4.0))
    assert rough.shape == smooth.shape == (height, width)
    if min(height, width) > 20:
        assert abs(float(rough.mean())) < 1e-3
        assert float(rough.std()) == pytest.approx(1, abs=1e-3)
        assert np.abs(np.diff(smooth)).mean() < np.abs(np.diff(rough)).mean()


@settings(max_examples=20)
@given(st.integers(0, 999), st.integers(3, 20), st.integers(3, 20))
def test_all_water_reaches_an_outlet(seed, height, width):
    """Also out of hollows: the catchments of the outlets add up to all cells."""
    z = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    outlets = np.zeros(z.shape, bool)
    outlets[0] = True
    target, way = _receivers(z, outlets)
    area = _catchments(target, _levels(target))
    index = np.arange(z.size)
    assert np.array_equal(np.flatnonzero(target == index), np.flatnonzero(outlets))
    assert area[target == index].sum() == z.size
    steps = np.abs(np.stack(np.unravel_index(target, z.shape)) - np.stack(np.unravel_index(index, z.shape)))
    assert steps.max() == 1
    assert np.allclose(way[target != index], np.hypot(*steps)[target != index], atol=1e-3)


def test_relief_has_the_asked_steepness():
    gentle, steep = (make_ground(np.random.default_rng(2), (128, 128), s, 5.0).slope for s in (5.0, 35.0))
    assert np.quantile(gentle, 0.75) < 10
    assert 20 < np.quantile(steep, 0.75) < 45


def test_flood_levels_the_lowest_ground():
    ground = plane(0.2)
    flooded, depth = flood(ground, 0.25)
    assert np.mean(depth > 0) == pytest.approx(0.25, abs=0.03)
    assert np.ptp(flooded.dem[depth > 0]) == 0
    assert np.array_equal(flooded.dem[depth < 0], ground.dem[depth < 0])
    assert flooded.slope[:, -5:].max() == 0


def test_downhill_follows_the_fall_and_stops_on_level_ground():
    path = list(downhill(plane(0.5).dem, 20, 5, 10))
    assert len(path) == 10
    assert path[-1] == pytest.approx((20, 14))
    assert len(list(downhill(plane(0.0).dem, 20, 5, 10))) == 1


def test_sun_lights_the_slopes_that_face_it():
    inner = np.s_[5:-5, 5:-5]
    level, east = (sunlight(plane(fall), 90, 45, 1.0)[inner] for fall in (0.0, 0.4))
    west = sunlight(plane(0.4), 270, 45, 1.0)[inner]
    assert np.allclose(level, 1, atol=1e-5)
    assert east.min() > 1.2
    assert west.max() < 0.7


def test_high_ground_casts_a_shadow_away_from_the_sun():
    ground = plane(0.0)
    ground.dem[:, 20:22] += 300
    light = sunlight(ground, 90, 30, 1.0)
    assert light[20, 10] < 0.1
    assert light[20, 32] == pytest.approx(1)


def test_paint_mixes_by_share():
    image = np.full((12, 1, 3), 100, np.float32)
    paint(image, spectrum("water"), np.array([[0.0, 0.5, 1.0]], np.float32))
    b4 = SPECTRA["water"][2]
    assert image[3, 0].tolist() == pytest.approx([100, (100 + b4) / 2, b4])


def test_colours_are_near_those_of_a_real_scene():
    path = DATA / "l4s_scenes" / "taitung" / "rgb.tif"
    if not path.is_file():
        pytest.skip(f"no real scene at {path}")
    with rasterio.open(path) as src, rasterio.open(path.with_name("labels.tif")) as labels:
        window = Window(2500, 5000, 640, 640)
        real, label = src.read(window=window).astype(np.float32), labels.read(1, window=window)
    made = [make_scene(256, 256, s) for s in range(5)]
    for truth in (0, 1):
        real_median = np.median(real[:, (label == truth) & (real > 0).all(0)], axis=1)
        ours = [np.median(s.image[[3, 2, 1]][:, s.valid & (s.truth == truth)], axis=1) for s in made]
        ratio = np.median(ours, axis=0) / real_median
        assert (ratio > 0.6).all(), ratio
        assert (ratio < 1.7).all(), ratio
