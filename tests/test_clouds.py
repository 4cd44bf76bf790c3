"""Clouds of scenes that bring no classification: bright and white, or bright in the cirrus band."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window

from l4s_geo.check import check_scene
from l4s_geo.cli import main
from l4s_geo.errors import InputError
from l4s_geo.models.registry import DEFAULT, load_card
from l4s_geo.pipeline import map_scene
from l4s_geo.progress import Silent
from l4s_geo.scene import L4S_BANDS, L4S_MEAN, Grid, open_scene
from l4s_geo.scene.clouds import BANDS as CLOUD_BANDS
from l4s_geo.scene.clouds import Cloudless, clouds
from l4s_geo.train.targets import copy_target, find_targets

from .conftest import DATA, needs_data
from .test_pipeline import BANDS, model, options, write  # noqa: F401 (fixtures)

UTM, AT = "EPSG:32651", Affine(10, 0, 3e5, 0, -10, 2.6e6)
SHAPE = (200, 160)

#: Pixels around a cloud that are hidden as well, at 10 m.
RIM = 6


def ground(**bands):
    """14 bands of the data set's mean values with some texture, but for those given."""
    texture = np.random.default_rng(0).normal(1, 0.05, (len(L4S_BANDS), *SHAPE))
    image = texture * np.array(L4S_MEAN)[:, None, None]
    return {**dict(zip(L4S_BANDS, image, strict=True)), **bands}


def patch(image, where, **values):
    for band, value in values.items():
        image[band][where] = value
    return image


def full(tmp_path, image, name="s.tif", **how):
    return write(tmp_path / name, np.stack([*image.values()]), names=tuple(image), **how)


def seen(path, bands=BANDS, **how):
    """Where a scene is valid with the cloud test on."""
    with open_scene(path, clouds=True, wanted=bands, **how) as scene:
        return scene.read(scene.grid.window(), bands)[1]


def square(row, col, end_row, end_col, rim=0):
    found = np.zeros(SHAPE, bool)
    found[max(row - rim, 0) : end_row + rim, max(col - rim, 0) : end_col + rim] = True
    return found


OPAQUE = np.s_[20:40, 30:60]
CIRRUS = np.s_[100:120, 100:130]
SCAR = np.s_[150:170, 20:60]
SNOW = np.s_[60:80, 100:140]
ROOF = np.s_[5:7, 120:122]


@pytest.fixture
def cloudy():
    """A cloud, cirrus that only B10 sees, a fresh scar, snow, and a white roof."""
    image = ground()
    patch(image, OPAQUE, B2=4000, B3=3900, B4=4100, B11=3000, B10=20)
    patch(image, CIRRUS, B10=200)
    patch(image, SCAR, B2=2400, B3=3000, B4=3600, B11=4000)
    patch(image, SNOW, B2=7000, B3=7000, B4=6900, B11=800)
    return patch(image, ROOF, B2=5000, B3=5000, B4=5000, B11=4000)


def test_clouds_and_cirrus_are_hidden_with_a_rim(cloudy, tmp_path):
    hidden = ~seen(full(tmp_path, cloudy))
    expected = square(20, 30, 40, 60, RIM) | square(100, 100, 120, 130, RIM)
    assert np.array_equal(hidden, expected)


@pytest.mark.parametrize(
    ("left", "found", "said"),
    [
        (("B4", "B3", "B2"), {"OPAQUE", "SNOW"}, ["without B10 thin cirrus", "without B11 snow counts as cloud"]),
        (("B4", "B3", "B2", "B11"), {"OPAQUE"}, ["without B10 thin cirrus"]),
        (("B4", "B8", "B10"), {"CIRRUS"}, ["without B2, B3 and B4 only cirrus"]),
    ],
)
def test_the_bands_at_hand_decide_what_is_found(left, found, said, cloudy, tmp_path):
    path = full(tmp_path, {b: cloudy[b] for b in left})
    hidden = ~seen(path, left[:1])
    for name in ("OPAQUE", "CIRRUS", "SNOW", "SCAR", "ROOF"):
        assert hidden[globals()[name]].all() == (name in found), name
    with open_scene(path, clouds=True, wanted=left[:1]) as scene:
        notes = "\n".join(scene.notes)
    assert all(text in notes for text in said)


def test_it_is_off_unless_asked_for(cloudy, tmp_path):
    with open_scene(full(tmp_path, cloudy)) as scene:
        assert scene.read(scene.grid.window(), BANDS)[1].all()
        assert not any("cloud" in note for note in scene.notes)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 39), st.integers(0, 49), st.integers(1, 40), st.integers(1, 50))
def test_clouds_do_not_depend_on_the_window(seed, row, col, h, w):
    rng = np.random.default_rng(seed)
    values = np.kron(rng.choice([300, 4000], (20, 25), p=[0.95, 0.05]), np.ones((2, 2)))
    values[rng.random(values.shape) < 0.05] = 300

    class Image:
        grid, bands = Grid(CRS.from_string(UTM), AT, 50, 40), ("B4", "B3", "B2")

        def read(self, window, bands):
            rows, cols = window.toslices()
            return np.stack([values[rows, cols]] * 3).astype(np.float32), rng.random((1, 1)) < 2

    layer = Cloudless(Image())
    whole = layer.read(Window(0, 0, 50, 40))[1]
    h, w = min(h, 40 - row), min(w, 50 - col)
    assert np.array_equal(layer.read(Window(col, row, w, h))[1], whole[row : row + h, col : col + w])


def test_a_map_does_not_see_what_is_under_clouds(cloudy, model, tmp_path):  # noqa: F811
    """A landslide beside the cloud is mapped, the cloud itself is not, and does not count in the statistics."""
    image = {b: cloudy[b] for b in (*BANDS, "B10", "B11")}
    path = full(tmp_path, image)
    result = map_scene(options(path, model, tmp_path, clouds=True, prob=tmp_path / "p.tif"), Silent())
    with rasterio.open(tmp_path / "p.tif") as file:
        prob = file.read(1)
    expected = square(20, 30, 40, 60, RIM) | square(100, 100, 120, 130, RIM)
    assert np.array_equal(np.isnan(prob), expected)
    assert (prob[SCAR] > 0.5).all()
    record = json.loads((tmp_path / "out.gpkg.json").read_text())
    assert record["settings"]["clouds"] is True
    assert "--clouds" in result.message
    not_seen = gpd.read_file(tmp_path / "out.gpkg", layer="not_seen")
    assert not_seen.area_m2.sum() == pytest.approx(100 * expected.sum(), rel=1e-3)


def test_an_adapted_scene_has_no_clouds(cloudy, tmp_path):
    path = full(tmp_path, {b: cloudy[b] for b in (*BANDS, "B10")})
    (target,) = find_targets([str(path)], BANDS, 10.0)
    copies = [copy_target(target, tmp_path / name, BANDS, 10.0, clouds=name == "on") for name in ("off", "on")]
    for copy, hidden in zip(copies, (False, True), strict=True):
        with rasterio.open(copy) as file:
            assert (file.dataset_mask()[OPAQUE] == 0).all() == hidden
            assert (file.dataset_mask()[SCAR] > 0).all()


def test_the_check_tells_of_clouds(cloudy, tmp_path):
    path = full(tmp_path, cloudy)
    shares = [check_scene(path, [load_card(DEFAULT)], clouds=on).valid_share for on in (False, True)]
    assert shares[0] == 1
    assert shares[1] == pytest.approx(1 - (32 * 42 + 32 * 42) / np.prod(SHAPE))


@pytest.mark.parametrize(
    ("bands", "given", "said"),
    [
        (BANDS, ["--units", "byte"], "needs reflectances"),
        ((*BANDS, "B10"), [], "would hide all of it"),
    ],
)
def test_scenes_that_cannot_be_tested_are_refused(bands, given, said, model, tmp_path, monkeypatch):  # noqa: F811
    """The second has the offset of newer products and no metadata."""
    image = {b: v.clip(0, 255) if "byte" in given else v + 1000 for b, v in ground().items() if b in bands}
    full(tmp_path, image, dtype="uint8" if "byte" in given else "uint16")
    monkeypatch.chdir(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    words = ["map", "s.tif", "--model", model, "--out", "out.gpkg", "-q", "--clouds"]
    done = CliRunner().invoke(main, [*words, *given])
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == before


def test_two_visible_bands_do_not_do(tmp_path):
    path = full(tmp_path, {b: v for b, v in ground().items() if b in ("B4", "B3", "B11")})
    with pytest.raises(InputError, match="needs B10, or B2, B3 and B4"):
        open_scene(path, clouds=True, wanted=("B4", "B3"))


def test_the_offset_is_taken_off_first(cloudy, tmp_path):
    path = full(tmp_path, {b: v + 1000 for b, v in cloudy.items() if b in (*BANDS, "B10", "B11")})
    expected = square(20, 30, 40, 60, RIM) | square(100, 100, 120, 130, RIM)
    assert np.array_equal(~seen(path, s2_offset="-1000"), expected)


@needs_data
def test_a_real_patch_under_cirrus():
    """image_37 of Landslide4Sense lies under cirrus, the other five are clear."""
    shares = {p.name: seen(p).mean() for p in sorted((DATA / "l4s_h5").glob("*.h5"))}
    assert shares.pop("image_37.h5") < 0.5
    assert min(shares.values()) > 0.97
    assert len(shares) == 5


@needs_data
@pytest.mark.parametrize(("region", "most"), [("hokkaido", 0.001), ("taitung", 0.02), ("rasuwa", 0.005)])
def test_fresh_scars_are_not_clouds(region, most):
    """Without B10, B11 and with nothing but brightness, which is the hardest case."""
    folder = DATA / "l4s_scenes" / region
    rows = Window(0, 0, 2500, 1280)
    with rasterio.open(folder / "labels.tif") as file:
        landslide = file.read(1, window=rows.intersection(Window(0, 0, file.width, file.height))) == 1
    with open_scene(folder / "rgb.tif", clouds=True, resolution=None) as scene:
        valid = scene.read(Window(0, 0, *landslide.shape[::-1]))[1]
    with open_scene(folder / "rgb.tif", resolution=None) as scene:
        there = scene.read(Window(0, 0, *landslide.shape[::-1]))[1]
    assert landslide.sum() > 1000
    assert (landslide & there & ~valid).sum() / (landslide & there).sum() <= most


def test_only_bands_that_help_are_used():
    pixel = {b: np.full((1, 1), v, np.float32) for b, v in zip(CLOUD_BANDS, (4000, 4000, 4000, 0, 3000), strict=True)}
    assert clouds(pixel)[0, 0]
    assert not clouds({**pixel, "B11": np.full((1, 1), 500, np.float32)})[0, 0]
    assert not clouds({**pixel, "B4": np.full((1, 1), 6000, np.float32)})[0, 0]
    assert clouds({"B10": np.full((1, 1), 121, np.float32)})[0, 0]
