"""Robust statistics and the named normalizers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_geo.errors import InputError
from l4s_geo.normalize import NAMED, Normalizer, RobustStats, blend, fit

from .conftest import DATA


def blocks(image, valid, at):
    for r0, r1 in zip([0, *at], [*at, image.shape[1]], strict=True):
        yield image[:, r0:r1], valid[r0:r1]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.lists(st.integers(1, 59), max_size=4, unique=True))
def test_streaming_does_not_depend_on_how_the_scene_is_cut(seed, cuts):
    rng = np.random.default_rng(seed)
    image = rng.gamma(3, 200, (3, 60, 20)).astype(np.float32)
    valid = rng.random((60, 20)) < 0.8
    whole = fit([(image, valid)], ("B4", "B3", "B2"))
    assert fit(blocks(image, valid, sorted(cuts)), ("B4", "B3", "B2")) == whole
    low, high = np.quantile(image[:, valid], (0.02, 0.98), axis=1)[..., None]
    winsorized = np.clip(image[:, valid], low, high)
    assert whole.center == pytest.approx(winsorized.mean(axis=1).tolist(), rel=0.02)
    assert whole.scale == pytest.approx(winsorized.std(axis=1).tolist(), rel=0.05)


def test_clouds_and_nodata_hardly_move_the_statistics():
    rng = np.random.default_rng(0)
    image = rng.normal(500, 50, (1, 200, 200)).astype(np.float32)
    valid = np.ones((200, 200), bool)
    clean = fit([(image, valid)], ("B4",))
    image[:, :20] = 9000
    cloudy = fit([(image, valid)], ("B4",))
    assert clean.scale[0] == pytest.approx(50, rel=0.06)
    assert cloudy.center[0] < clean.center[0] + 0.4 * cloudy.scale[0]
    assert cloudy.scale[0] < 4 * clean.scale[0]
    image[:, 100:], valid[100:] = 0, False
    image[:, :20], valid[:20] = 0, False
    assert fit([(image, valid)], ("B4",)).center[0] == pytest.approx(500, abs=4)


def test_invalid_pixels_become_zero_and_saved_statistics_come_back(tmp_path):
    stats = Normalizer(("B4", "B3"), (400.0, 600.0), (100.0, 50.0), "asinh", "here", 7)
    x = np.full((2, 3, 3), 700, np.float32)
    valid = np.eye(3, dtype=bool)
    z = stats(x, valid)
    assert z.dtype == np.float32
    assert np.allclose(z[0], np.where(valid, np.arcsinh(3), 0))
    stats.save(tmp_path / "s.json")
    assert Normalizer.load(tmp_path / "s.json") == stats
    assert stats.select(["B3"]).center == (600.0,)


@pytest.mark.parametrize("text", ["", "[]", '{"bands": ["B4"]}', '{"bands": ["B4"], "center": [1], "scale": [0]}'])
def test_bad_statistics_are_refused(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError):
        Normalizer.load(tmp_path / "s.json")


def test_missing_band_and_empty_scene_are_refused():
    with pytest.raises(InputError, match="B8"):
        Normalizer(("B4",), (1.0,), (1.0,)).select(["B8"])
    with pytest.raises(InputError, match="No valid pixel"):
        RobustStats(("B4",)).normalizer()


def test_blended_statistics_lie_a_bit_of_the_way_to_the_training_regions():
    own = Normalizer(("B4", "B3"), (400.0, 600.0), (100.0, 50.0), "asinh", "scene hill", 7)
    training = Normalizer(("B2", "B3", "B4"), (1.0, 650.0, 500.0), (1.0, 100.0, 50.0), "none", "training regions", 9)
    found = blend(own, training)
    assert (found.center, found.scale) == ((415.0, 607.5), (92.5, 57.5))
    assert (found.bands, found.compression, found.pixels) == (own.bands, own.compression, own.pixels)
    assert found.source == "scene hill, 15% of the way to training regions"
    assert blend(own, own).center == own.center
    with pytest.raises(InputError, match="B3"):
        blend(own, Normalizer(("B4",), (1.0,), (1.0,)))


def test_l4s_contract_on_original_patches():
    h5py = pytest.importorskip("h5py")
    files = sorted((DATA / "l4s_h5").glob("*.h5"))
    if not files:
        pytest.skip("original L4S patches are not here")
    with h5py.File(files[0]) as f:
        stored = f["img"][:].transpose(2, 0, 1)
    contract, baseline = NAMED["l4s"](), NAMED["l4s-baseline"]()
    raw = np.rint(stored * np.array(contract.scale)[:, None, None]).astype(np.float32)
    valid = np.ones(raw.shape[1:], bool)
    np.testing.assert_allclose(contract(raw, valid), stored, rtol=1e-5)
    expected = (stored[1] - -0.3074) / 0.8775
    np.testing.assert_allclose(baseline(raw, valid)[1], expected, rtol=1e-4, atol=1e-5)
