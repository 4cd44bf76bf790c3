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

SCENES = Path(__file__).resolve().parents[2] / "shared" / "data" / "l4s_scenes"
SCENE, TAITUNG = SCENES / "hokkaido", SCENES / "taitung" / "rgb.tif"

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
@settings(max_examples=20)
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
    prob: NDArray[np.float32], image: NDArray[np.uint8], params: CrfParams, block: int, workers: int = 1
) -> tuple[NDArray[np.float32], int]:
    """Refined raster and how many blocks asked for the image; blocks must not overlap or leave gaps."""
    asked: list[Window] = []

    def read_image(window: Window) -> NDArray[np.uint8]:
        asked.append(window)
        return image[window.toslices()]

    out = np.zeros(prob.shape, np.float32)
    times = np.zeros(prob.shape, int)
    read_prob = lambda window: prob[window.toslices()]  # noqa: E731
    for window, part in crf.refine_blocks(*prob.shape, read_prob, read_image, params, block, workers):
        out[window.toslices()] = part
        times[window.toslices()] += 1
    assert (times == 1).all()
    return out, len(asked)


def field(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A synthetic scene with a hole: smooth probabilities of which a third is undecided, and colours with texture."""
    rng = np.random.default_rng(7)
    prob = gaussian_filter(rng.normal(size=(height, width)), 6)
    prob = (1 / (1 + np.exp(-prob / prob.std() * 3))).astype(np.float32)
    prob[height // 3 : height // 2, width // 3 : width // 2] = np.nan
    image = np.stack([gaussian_filter(rng.normal(size=prob.shape), 2) for _ in range(3)])
    return prob, crf.to_uint8((image / image.std()).astype(np.float32))


def real() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Probabilities of a network of the bundled model and colours of 1024 x 1024 pixels of Taitung."""
    import torch

    from l4s_geo.models import registry
    from l4s_geo.normalize import RobustStats

    with rasterio.open(TAITUNG) as src:
        dn = src.read(window=Window(600, 3416, 1024, 1024)).astype(np.float32)
    valid = (dn > 0).all(axis=0)
    stats = RobustStats(("B4", "B3", "B2"))
    stats.update(dn, valid)
    x = stats.normalizer("asinh", "test")(dn, valid)
    patches = torch.from_numpy(x.reshape(3, 8, 128, 8, 128).transpose(1, 3, 0, 2, 4).reshape(64, 1, 3, 128, 128))
    model = registry.find(registry.DEFAULT)
    network = registry.load_network(model, model.card.networks[0])
    with torch.inference_mode():
        found = torch.cat([network(p) for p in patches]).sigmoid().reshape(8, 8, 128, 128)
    prob = found.permute(0, 2, 1, 3).reshape(1024, 1024).numpy()
    return np.where(valid, prob, np.float32(np.nan)), crf.to_uint8(x)


TUNED = CrfParams(bilateral_sxy=10, bilateral_srgb=15, bilateral_compat=1.5)


@needs_crf
def test_blocks_agree_with_the_whole_at_999_of_1000_pixels_and_leave_no_seams() -> None:
    prob, image = real() if TAITUNG.exists() else field(1024, 1024)
    whole = np.where(crf.needs_refinement(prob, TUNED), crf.refine(prob, image, TUNED), prob)
    parts, _ = assemble(prob, image, TUNED, 256)
    before, after, expected = prob >= 0.5, parts >= 0.5, whole >= 0.5
    wrong, moved = after != expected, before != expected
    assert moved.mean() > 0.002
    assert wrong.mean() <= 0.001
    assert wrong.mean() < moved.mean() / 10
    seams = np.zeros(prob.shape, bool)
    for border in (256, 512, 768):
        seams[border - 3 : border + 3] = seams[:, border - 3 : border + 3] = True
    assert wrong[seams].mean() < moved[seams].mean() / 10


@needs_crf
def test_the_cut_of_an_array_does_not_matter_where_nothing_near_is_cut_off() -> None:
    """Parts of a raster lie on one lattice: away from its border, a part has the values of the whole."""
    prob, image = field(300, 300)
    whole = crf.refine(prob, image, TUNED)
    top, left, reach = 37, 61, 60
    part = np.s_[top:, left:]
    placed = crf.refine(prob[part], image[part], TUNED, (top, left))[reach:, reach:]
    elsewhere = crf.refine(prob[part], image[part], TUNED)[reach:, reach:]
    inner = whole[top + reach :, left + reach :]
    assert np.nanmax(np.abs(placed - inner)) < 1e-3
    assert np.nanmax(np.abs(elsewhere - inner)) > 0.01


@needs_crf
def test_the_number_of_processes_changes_no_bit() -> None:
    prob, image = field(150, 130)
    alone, asked = assemble(prob, image, CrfParams(bilateral_sxy=4), 20, workers=1)
    assert asked > 30
    for workers in (2, 3):
        together, _ = assemble(prob, image, CrfParams(bilateral_sxy=4), 20, workers=workers)
        np.testing.assert_array_equal(together, alone)


@needs_crf
def test_a_scene_that_cannot_be_read_stops_the_refinement() -> None:
    prob, image = field(150, 130)
    read: list[Window] = []

    def read_image(window: Window) -> NDArray[np.uint8]:
        read.append(window)
        if len(read) == 30:
            raise OSError("the mount is gone")
        return image[window.toslices()]

    with pytest.raises(OSError, match="mount is gone"):
        list(crf.refine_blocks(150, 130, lambda w: prob[w.toslices()], read_image, block=20, workers=2))
    assert len(read) == 30


@needs_crf
def test_cost_is_that_of_the_undecided_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that take part are those around undecided ones, whatever the size of the raster."""
    nodes: list[int] = []

    def counting(prob: NDArray[np.float32], *rest: Any) -> NDArray[np.float32]:
        nodes.append(int(np.isfinite(prob).sum()))
        return prob

    monkeypatch.setattr(crf, "refine", counting)
    for size in (300, 900):
        prob = np.full((size, size), 0.01, np.float32)
        prob[100:140, 100:150] = 0.6
        assemble(prob, np.zeros((size, size, 3), np.uint8), TUNED, 256, workers=1)
        assert sum(nodes) == (40 + 4 + 2 * TUNED.reach) * (50 + 4 + 2 * TUNED.reach)
        nodes.clear()


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
