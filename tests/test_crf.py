"""Dense CRF: what it may change, what it must not, and that blocks leave no seams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

from l4s_geo import crf, metrics
from l4s_geo.crf import CrfParams
from l4s_geo.errors import InputError

SCENE = Path(__file__).resolve().parents[2] / "shared" / "data" / "l4s_scenes" / "hokkaido"

needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is not installed")


def two_fields(height: int = 40, width: int = 40) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A sharp border in the image at half the width; the probability crosses 0.5 three columns on."""
    columns = np.arange(width)
    prob = 1 / (1 + np.exp((columns - width / 2 - 2.5) / 2))
    colours = np.where(columns < width // 2, 200, 40)
    image = np.broadcast_to(colours[None, :, None], (height, width, 3)).astype(np.uint8)
    return np.broadcast_to(prob, (height, width)).astype(np.float32), np.ascontiguousarray(image)


@needs_crf
def test_border_moves_to_where_the_image_changes() -> None:
    prob, image = two_fields()
    refined = crf.refine(prob, image, CrfParams(bilateral_sxy=10, bilateral_compat=3))
    assert (prob[20] >= 0.5).sum() == 23
    assert (refined[20] >= 0.5).sum() == 20
    assert refined.dtype == np.float32
    assert 0 <= refined.min() <= refined.max() <= 1


@needs_crf
@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.floats(0.2, 0.8),
    st.integers(0, 2**32 - 1),
)
def test_without_kernels_nothing_changes(shape: tuple[int, int], threshold: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prob = rng.random(shape, dtype=np.float32)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    params = CrfParams(gaussian_compat=0, bilateral_compat=0, threshold=threshold)
    np.testing.assert_allclose(crf.refine(prob, image, params), prob, atol=1e-5)


@needs_crf
def test_threshold_is_kept_where_neighbours_agree() -> None:
    """In a flat field every pixel moves away from the threshold, whatever the threshold is."""
    image = np.full((20, 20, 3), 90, np.uint8)
    params = CrfParams(threshold=0.3, lo=0.05)
    for value, above in ((0.35, True), (0.25, False)):
        refined = crf.refine(np.full((20, 20), value, np.float32), image, params)
        assert ((refined >= 0.3) == above).all()
        assert ((refined > value) == above).all()


@needs_crf
def test_unseen_pixels_stay_unseen_and_pass_nothing_on() -> None:
    prob, image = two_fields()
    prob = prob.copy()
    prob[10:20, 12:30] = np.nan
    refined = crf.refine(prob, image)
    assert np.array_equal(np.isnan(refined), np.isnan(prob))
    other = image.copy()
    other[10:20, 12:30] = (255, 0, 255)
    np.testing.assert_array_equal(crf.refine(prob, other), refined)


@needs_crf
def test_all_unseen_and_single_pixel() -> None:
    image = np.zeros((3, 3, 3), np.uint8)
    assert np.isnan(crf.refine(np.full((3, 3), np.nan, np.float32), image)).all()
    assert crf.refine(np.full((1, 1), 0.6, np.float32), image[:1, :1]).shape == (1, 1)


def test_needs_refinement_finds_undecided_pixels_and_edges_only() -> None:
    prob = np.zeros((20, 20), np.float32)
    prob[:, 10:] = 1.0
    prob[3, 2] = 0.4
    prob[:, 19] = np.nan
    found = crf.needs_refinement(prob, CrfParams(gaussian_sxy=2))
    expected = np.zeros_like(found)
    expected[:, 8:12] = True
    expected[3, 2] = True
    np.testing.assert_array_equal(found, expected)


def assemble(
    prob: NDArray[np.float32], image: NDArray[np.uint8], params: CrfParams, block: int
) -> tuple[NDArray[np.float32], int]:
    """Refined raster and how many blocks asked for the image; blocks must not overlap or leave gaps."""
    asked: list[Window] = []

    def read_image(window: Window) -> NDArray[np.uint8]:
        asked.append(window)
        return image[window.toslices()]

    out = np.zeros(prob.shape, np.float32)
    times = np.zeros(prob.shape, int)
    for window, part in crf.refine_blocks(*prob.shape, lambda w: prob[w.toslices()], read_image, params, block):
        out[window.toslices()] = part
        times[window.toslices()] += 1
    assert (times == 1).all()
    return out, len(asked)


@needs_crf
def test_blocks_give_the_result_of_the_whole() -> None:
    rng = np.random.default_rng(7)
    prob = gaussian_filter(rng.normal(size=(150, 130)), 6)
    prob = (1 / (1 + np.exp(-prob / prob.std() * 3))).astype(np.float32)
    prob[60:90, 50:70] = np.nan
    image = np.stack([gaussian_filter(rng.normal(size=prob.shape), 2) for _ in range(3)])
    image = crf.to_uint8((image / image.std()).astype(np.float32))
    params = CrfParams(bilateral_sxy=4, bilateral_srgb=20, bilateral_compat=4)
    whole, _ = assemble(prob, image, params, 200)
    parts, _ = assemble(prob, image, params, 48)
    assert np.array_equal(np.isnan(whole), np.isnan(parts))
    assert np.nanmax(np.abs(whole - prob)) > 0.2
    seams = np.zeros(prob.shape, bool)
    for border in (48, 96, 144):
        seams[border - 3 : border + 3] = seams[:, border - 3 : border + 3] = True
    assert np.nanmean(np.abs(whole - parts)) < 0.008
    assert np.nanmean(np.abs(whole - parts)[seams]) < 0.008


@needs_crf
def test_decided_blocks_are_passed_through_without_reading_the_image() -> None:
    prob = np.full((100, 100), 0.02, np.float32)
    prob[:5, :5] = np.nan
    prob[70:80, 70:80] = 0.6
    params = CrfParams(bilateral_sxy=2)
    out, asked = assemble(prob, np.zeros((100, 100, 3), np.uint8), params, 50)
    assert asked == 1
    decided = ~crf.needs_refinement(prob, params)
    np.testing.assert_array_equal(out[decided], prob[decided])
    assert (out[~decided] != prob[~decided]).all()


@needs_crf
def test_colours_clear_noise_better_than_smoothing_does_on_a_real_scene() -> None:
    if not SCENE.exists():
        pytest.skip(f"no data in {SCENE}")
    window = Window(512, 1024, 256, 256)
    with rasterio.open(SCENE / "rgb.tif") as src:
        rgb = src.read(window=window).astype(np.float32)
    with rasterio.open(SCENE / "labels.tif") as src:
        labels = src.read(1, window=window)
    centred = rgb - np.median(rgb, axis=(1, 2), keepdims=True)
    image = crf.to_uint8(centred / rgb.std(axis=(1, 2), keepdims=True))
    odds = np.random.default_rng(5).normal(np.where(labels == 1, 1, -1), 1.0)
    prob = (1 / (1 + np.exp(-odds))).astype(np.float32)

    def f1(p: NDArray[np.float32]) -> float:
        return metrics.confusion(p >= 0.5, labels).f1

    coloured, grey = f1(crf.refine(prob, image)), f1(crf.refine(prob, np.zeros_like(image)))
    assert coloured > grey + 0.02
    assert coloured > f1(prob) + 0.1


def test_colours_do_not_depend_on_the_rest_of_the_block() -> None:
    x = np.array([[[-3.0, 0.0, 5.0]], [[-9.0, 1.0, 99.0]], [[np.nan, 0.0, 5.0]]], np.float32)
    image = crf.to_uint8(x)
    assert image.shape == (1, 3, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0, :, 0], [0, 96, 255])
    np.testing.assert_array_equal(image[0, :, 1], [0, 128, 255])
    np.testing.assert_array_equal(crf.to_uint8(x[:, :, :2]), image[:, :2])


def test_parameters_survive_a_round_trip() -> None:
    params = CrfParams(iterations=3, bilateral_sxy=7.5, threshold=0.4)
    assert CrfParams.from_dict(params.to_dict()) == params
    assert CrfParams.from_dict({"iterations": 3}).iterations == 3


@pytest.mark.parametrize(
    "values",
    [{"sxy": 3}, {"lo": 0.6}, {"bilateral_srgb": 0}, {"iterations": 0}, {"gaussian_compat": -1}, {"hi": "a"}],
)
def test_senseless_parameters_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="CRF"):
        CrfParams.from_dict(values)
