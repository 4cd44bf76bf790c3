"""Windows, stitching and nodata: the properties a seamless map rests on."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from l4s_geo.ensemble import Ensemble
from l4s_geo.inference import batches, cut_strips, predict
from l4s_geo.stitch import PatchRow, blend_weights, stitch
from l4s_geo.tiling import Tiling, offsets, pad

CPU = torch.device("cpu")
sizes = st.integers(1, 70)


class Pointwise(nn.Module):
    """A "model" whose answer for a pixel depends on that pixel alone."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x[:, :1] - 0.3 * x[:, 1:2]


class Blur(nn.Module):
    """Depends on a neighbourhood of 5 pixels each way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x[:, :1], 11, stride=1, padding=5, count_include_pad=False)


def run(image, valid, patch, stride, *nets, tta=False, batch=3, **how):
    def read(row, rows):
        part = np.s_[row : row + rows]
        return image[:, part] * valid[part], valid[part]

    tiling = Tiling(*valid.shape, patch, stride)
    ensemble = Ensemble(nets, CPU, torch.float32, tta=tta, workers=2)
    blocks = list(predict(read, tiling, ensemble, batch_size=batch, **how))
    first, end = how.get("first", 0), how.get("end", len(valid))
    assert [b.row for b in blocks] == list(first + np.cumsum([0, *(len(b.seen) for b in blocks[:-1])]))
    assert np.array_equal(np.concatenate([b.seen for b in blocks]), valid[first:end])
    return np.concatenate([b.values for b in blocks], axis=1)


@given(st.integers(1, 500), st.integers(1, 64), st.data())
def test_offsets_cover_every_pixel_and_stay_inside(size, patch, data):
    stride = data.draw(st.integers(1, patch))
    starts = offsets(size, patch, stride)
    covered = np.zeros(max(size, patch), bool)
    for s in starts:
        assert 0 <= s <= max(0, size - patch)
        covered[s : s + patch] = True
    assert covered.all()
    assert starts == sorted(set(starts))
    assert all(b - a <= stride for a, b in pairwise(starts))


@pytest.mark.parametrize(("size", "stride"), [(0, 1), (5, 0), (5, 9)])
def test_offsets_refuse_gaps(size, stride):
    with pytest.raises(ValueError, match="stride"):
        offsets(size, 8, stride)


def test_weights_are_positive_everywhere_and_highest_in_the_middle():
    w = blend_weights(128)
    assert w.min() > 0
    assert w.argmax() in {63 * 128 + 63, 63 * 128 + 64, 64 * 128 + 63, 64 * 128 + 64}


@given(sizes, sizes)
def test_padding_reflects_from_one_pixel_up(h, w):
    x = np.arange(h * w, dtype=np.float32).reshape(1, h, w)
    padded = pad(x, 32)
    assert padded.shape == (1, max(h, 32), max(w, 32))
    assert np.array_equal(padded[:, :h, :w], x)
    assert set(np.unique(padded)) == set(np.unique(x))


@settings(max_examples=60)
@given(sizes, sizes, st.sampled_from([8, 16, 32]), st.data())
def test_constant_in_constant_out_for_every_size_stride_and_nodata(h, w, patch, data):
    stride = data.draw(st.integers(max(1, patch // 4), patch))
    valid = np.random.default_rng(data.draw(st.integers(0, 99))).random((h, w)) < data.draw(
        st.sampled_from([1, 0.5, 0.02])
    )

    class Constant(nn.Module):
        def forward(self, x):
            return torch.full_like(x[:, :1], 0.37)

    out = run(np.ones((2, h, w), np.float32), valid, patch, stride, Constant())
    expected = torch.tensor(0.37).sigmoid().item()
    assert out.shape == (1, h, w)
    assert np.array_equal(~np.isnan(out[0]), valid)
    assert set(out[~np.isnan(out)]) <= {np.float32(expected)}


@settings(max_examples=60)
@given(sizes, sizes, st.sampled_from([8, 16, 32]), st.booleans(), st.data())
def test_a_pointwise_model_is_stitched_exactly(h, w, patch, tta, data):
    stride = data.draw(st.integers(max(1, patch // 4), patch))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = rng.normal(size=(2, h, w)).astype(np.float32)
    valid = rng.random((h, w)) < 0.7
    out = run(image, valid, patch, stride, Pointwise(1.0), Pointwise(-2.0), tta=tta)
    x = torch.from_numpy(image * valid)[None]
    for member, gain in enumerate((1.0, -2.0)):
        expected = Pointwise(gain)(x).sigmoid()[0, 0].numpy()
        # Vectorized and scalar sigmoid, and the mean over eight views, differ in the last bits.
        np.testing.assert_allclose(out[member][valid], expected[valid], rtol=0, atol=5e-7)


@settings(max_examples=60)
@given(sizes, sizes, st.sampled_from([8, 16, 32]), st.data())
def test_patches_that_agree_are_blended_exactly(h, w, patch, data):
    stride = data.draw(st.integers(max(1, patch // 4), patch))
    field = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(2, h, w)).astype(np.float32)
    tiling = Tiling(h, w, patch, stride)
    padded = pad(field, patch)
    columns = tiling.columns()
    rows = [
        PatchRow(r, columns, torch.from_numpy(np.stack([padded[:, r : r + patch, c : c + patch] for c in columns])))
        for r in tiling.rows()
    ]
    out = np.concatenate([b.numpy() for _, b in stitch(rows, tiling, 2, CPU)], axis=1)
    assert np.array_equal(out, field)


@settings(max_examples=25)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_a_shifted_nodata_hole_changes_nothing_outside_a_patchs_reach(r0, c0, r1, c1):
    size, patch, stride, hole = 70, 16, 8, 9
    image = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    outs = []
    near = np.zeros((size, size), bool)
    for r, c in ((r0, c0), (r1, c1)):
        valid = np.ones((size, size), bool)
        valid[r : r + hole, c : c + hole] = False
        near[max(0, r - patch) : r + hole + patch, max(0, c - patch) : c + hole + patch] = True
        outs.append(run(image, valid, patch, stride, Blur())[0])
    assert np.array_equal(outs[0][~near], outs[1][~near])


def test_patches_without_valid_pixels_are_skipped_and_stay_unseen():
    valid = np.zeros((100, 40), bool)
    valid[90:, :5] = True
    image = np.ones((2, 100, 40), np.float32)
    tiling = Tiling(100, 40, 16, 8)

    def read(row, rows):
        return image[:, row : row + rows], valid[row : row + rows]

    found = [b for strip in cut_strips(read, tiling) for b in batches(strip, tiling, 3)]
    assert {b.columns for b in found} == {(0,)}
    assert min(b.row for b in found) > 74
    out = run(image, valid, 16, 8, Pointwise())[0]
    assert np.isnan(out[:74]).all()
    assert np.isnan(out[:, 16:]).all()
    assert not np.isnan(out[valid]).any()


def test_every_row_is_read_once():
    reads = []

    def read(row, rows):
        reads.append((row, rows))
        return np.ones((2, rows, 20), np.float32), np.ones((rows, 20), bool)

    list(cut_strips(read, Tiling(100, 20, 16, 6)))
    assert reads[0] == (0, 16)
    assert [r for r, _ in reads] == list(np.cumsum([0, *(n for _, n in reads[:-1])]))
    assert sum(n for _, n in reads) == 100


@settings(max_examples=40)
@given(sizes, sizes, st.sampled_from([8, 16, 32]), st.data())
def test_a_run_that_begins_or_ends_anywhere_gives_the_same_bytes(h, w, patch, data):
    stride = data.draw(st.integers(max(1, patch // 4), patch))
    first = data.draw(st.integers(0, h - 1))
    end = data.draw(st.integers(first + 1, h))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image, valid = rng.normal(size=(2, h, w)).astype(np.float32), rng.random((h, w)) < 0.6
    whole = run(image, valid, patch, stride, Blur(), Pointwise())
    part = run(image, valid, patch, stride, Blur(), Pointwise(), first=first, end=end)
    assert np.array_equal(part, whole[:, first:end], equal_nan=True)


@pytest.mark.parametrize("where", ["reading", "network"])
def test_an_error_in_any_thread_ends_the_run(where):
    class Broken(Blur):
        def forward(self, x):
            if where == "network" and x.amax() > 0:
                raise ArithmeticError("network")
            return super().forward(x)

    def read(row, rows):
        if where == "reading" and row + rows > 300:
            raise ArithmeticError("reading")
        image = np.zeros((2, rows, 64), np.float32)
        image[:, max(0, 300 - row) :] = 1
        return image, np.ones((rows, 64), bool)

    before = threading.active_count()
    rows = predict(read, Tiling(5000, 64, 32, 16), Ensemble([Broken()], CPU, torch.float32, workers=2), batch_size=2)
    done = []
    with pytest.raises(ArithmeticError, match=where):
        done.extend(found.row + len(found.seen) for found in rows)
    assert 100 < done[-1] <= 300
    assert threading.active_count() == before


def test_a_reader_that_stops_early_leaves_no_threads():
    def read(row, rows):
        return np.ones((2, rows, 64), np.float32), np.ones((rows, 64), bool)

    before = threading.active_count()
    rows = predict(read, Tiling(5000, 64, 32, 16), Ensemble([Blur()], CPU, torch.float32, workers=2))
    next(rows)
    rows.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_devices_and_workers_gives_the_same_bytes(workers):
    image = np.random.default_rng(0).normal(size=(2, 150, 90)).astype(np.float32)
    valid = np.random.default_rng(1).random((150, 90)) < 0.9

    def mapped(ensemble):
        read = lambda row, rows: (image[:, row : row + rows], valid[row : row + rows])  # noqa: E731
        return np.concatenate(
            [r.values for r in predict(read, Tiling(150, 90, 32, 16), ensemble, batch_size=3)], axis=1
        )

    nets = [nn.Conv2d(2, 1, 5, padding=2), nn.Conv2d(2, 1, 3, padding=1)]
    one = mapped(Ensemble(nets, CPU, torch.float32, workers=1))
    several = mapped(Ensemble(nets, [torch.device("cpu"), torch.device("cpu")], torch.float32, workers=workers))
    assert np.array_equal(one, several, equal_nan=True)


def test_batches_that_do_not_fit_are_halved():
    class Small(Blur):
        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError
            return super().forward(x)

    image, valid = np.random.default_rng(0).normal(size=(2, 40, 90)).astype(np.float32), np.ones((40, 90), bool)
    assert np.array_equal(run(image, valid, 16, 8, Small(), batch=7), run(image, valid, 16, 8, Blur(), batch=7))


def test_tta_averages_over_all_eight_symmetries():
    class Corner(nn.Module):
        def forward(self, x):
            y = torch.full_like(x[:, :1], -50.0)
            y[..., 0, 0] = 50.0
            return y

    out = Ensemble([Corner()], CPU, torch.float32, tta=True)(np.zeros((1, 1, 4, 4), np.float32))
    assert np.allclose(out[0, 0][[0, 0, -1, -1], [0, -1, 0, -1]], 0.25)
    assert np.isclose(out.sum(), 1.0)
