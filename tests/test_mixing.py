"""Cutout, CutMix and mix-up: what they do to patches and their truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_geo.errors import InputError
from l4s_geo.scene.bands import L4S_BANDS
from l4s_geo.train.colour import spectral_channels
from l4s_geo.train.losses import (
    UNKNOWN,
    compose,
    cross_entropy,
    image_level,
    soft_cross_entropy,
)
from l4s_geo.train.mixing import Mixed, Mixing, cutmix, cutout, mix, mix_up, rectangles

seeds = st.integers(0, 9999)
few = settings(max_examples=25)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def batch(seed, n=5, h=12, w=9, unknown=0.1):
    """Patches whose first channel numbers the pixels of the whole batch, and their truth."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, 2, h, w))).float()
    x[:, 0] = torch.arange(1, n * h * w + 1).reshape(n, h, w)
    known = 1 - unknown
    return x, torch.from_numpy(rng.choice([0, 1, UNKNOWN], (n, h, w), p=[known * 0.7, known * 0.3, unknown]))


def logits_for(x):
    return x[:, 1:] * 2 - 1


@few
@given(seeds, st.integers(1, 6), st.floats(0, 1))
def test_cutmix_swaps_pixels_with_their_truth_and_loses_none(seed, n, share):
    x, y = batch(seed, n)
    mixed, truth = cutmix(x, y, share, generator(seed))
    source = mixed[:, 0].long().flatten() - 1  # where each pixel comes from
    assert torch.equal(source.sort().values, torch.arange(y.numel()))
    assert torch.equal(mixed[:, 1].flatten(), x[:, 1].flatten()[source])
    assert torch.equal(truth.flatten(), y.flatten()[source])
    place = y[0].numel()
    assert torch.equal(source % place, torch.arange(y.numel()) % place)


@few
@given(seeds)
def test_cutmix_takes_one_rectangle_from_one_other_patch(seed):
    x, y = batch(seed, 4)
    mixed, _ = cutmix(x, y, 1.0, generator(seed))
    source = (mixed[:, 0].long() - 1) // y[0].numel()
    for i in range(4):
        foreign = source[i] != i
        assert len(source[i][foreign].unique()) <= 1
        rows, columns = foreign.any(1), foreign.any(0)
        assert foreign.sum() == rows.sum() * columns.sum()


def test_cutmix_and_cutout_change_the_share_they_are_told():
    x, y = torch.arange(1.0, 401).reshape(400, 1, 1, 1).expand(400, 1, 8, 8), torch.zeros(400, 8, 8)
    changed = (cutmix(x, y, 0.5, generator(0))[0] != x).flatten(1).any(1).float().mean()
    assert 0.3 < changed < 0.55  # some rectangles are too small to hold a pixel
    hidden = (cutout(x, y, 0.5, 0.5, generator(0))[1] == UNKNOWN).flatten(1).any(1).float().mean()
    assert 0.4 < hidden < 0.6


@few
@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_cutout_hides_pixels_and_does_not_score_them(seed, share, side):
    x, y = batch(seed)
    cut, truth = cutout(x, y, share, side, generator(seed))
    hidden = (cut == 0).all(1)
    assert torch.equal(cut, torch.where(hidden[:, None], 0, x))
    assert torch.equal(truth, torch.where(hidden, UNKNOWN, y))
    rows, columns = hidden.any(2), hidden.any(1)
    assert torch.equal(hidden.flatten(1).sum(1), rows.sum(1) * columns.sum(1))
    assert rows.sum(1).max() <= side * 12 + 1
    assert columns.sum(1).max() <= side * 9 + 1


def test_rectangles_have_their_area_unless_cut_off_and_lie_everywhere():
    boxes = rectangles(torch.full((2000,), 0.25), 32, 32, generator(1))
    assert boxes.flatten(1).sum(1).max() == 16 * 16
    covered = boxes.float().mean(0)
    assert covered[16, 16] == pytest.approx(0.25, abs=0.04)
    assert covered[0, 0] == pytest.approx(0.25**2, abs=0.03)  # a corner is covered by half a side each way


@few
@given(seeds, st.floats(0.1, 4))
def test_mix_up_blends_with_one_other_patch_and_keeps_both_truths(seed, alpha):
    x, y = batch(seed)
    mixed = mix_up(x, y, alpha, generator(seed))
    (share, first), (rest, second) = mixed.truths
    assert share + rest == pytest.approx(1)
    assert 0 <= share <= 1
    assert torch.equal(first == UNKNOWN, second == UNKNOWN)
    assert torch.equal(first[first != UNKNOWN], y[first != UNKNOWN])
    for i in range(len(x)):
        fits = [
            j
            for j in range(len(x))
            if torch.allclose(mixed.image[i], share * x[i] + rest * x[j], atol=1e-3)
            and torch.equal(torch.where(y[i] == UNKNOWN, UNKNOWN, y[j]) == UNKNOWN, second[i] == UNKNOWN)
            and torch.equal(y[j][second[i] != UNKNOWN], second[i][second[i] != UNKNOWN])
        ]
        assert fits


@few
@given(seeds)
def test_the_mixed_entropy_is_that_of_the_soft_truth(seed):
    x, y = batch(seed)
    mixed = mix_up(x, y, 1.0, generator(seed))
    (share, first), (rest, second) = mixed.truths
    soft = torch.where(first == UNKNOWN, float(UNKNOWN), share * first + rest * second)
    z = logits_for(mixed.image).requires_grad_()
    loss = mixed.loss(cross_entropy, z)
    assert loss.item() == pytest.approx(soft_cross_entropy(z, soft, smoothing=0).item(), rel=1e-4)
    loss.backward()
    assert not z.grad[:, 0][first == UNKNOWN].any()


def test_a_mixed_loss_weighs_the_losses_of_both_truths_and_passes_the_image_logits_on():
    x, y = batch(3)
    first, second = y, y.flip(0)
    head = torch.randn(5, 1)
    loss = compose({"lovasz": 1.0, "image-level": 1.0})
    expected = sum(s * loss(logits_for(x), t, head) for s, t in ((0.3, first), (0.7, second)))
    mixed = Mixed(x, ((0.3, first), (0.7, second)))
    assert mixed.loss(loss, logits_for(x), head).item() == pytest.approx(expected.item(), rel=1e-6)
    assert mixed.loss(image_level, head).isfinite()


def test_mix_up_takes_the_probabilities_of_a_teacher():
    x, y = batch(4)
    taught = torch.where(y == UNKNOWN, float(UNKNOWN), torch.rand(y.shape, generator=generator(0)))
    mixed = mix_up(x, taught, 1.0, generator(0))
    assert mixed.loss(cross_entropy, logits_for(mixed.image)).isfinite()
    (_, first), _ = mixed.truths
    assert torch.equal(first[first != UNKNOWN], taught[first != UNKNOWN])


@few
@given(seeds, st.integers(1, 4))
def test_nothing_changes_when_all_is_off(seed, n):
    x, y = batch(seed, n)
    for how in (Mixing(), Mixing(cutout=1.0, cutout_side=0.0)):
        mixed = mix(x, y, how, generator(seed))
        ((share, truth),) = mixed.truths
        assert share == 1
        assert torch.equal(mixed.image, x)
        assert torch.equal(truth, y)
        loss = compose({"lovasz": 1})
        assert mixed.loss(loss, logits_for(x)) == loss(logits_for(x), y)


def test_equal_seeds_give_equal_batches_and_the_inputs_are_kept():
    how = Mixing(cutmix=0.7, cutout=0.7, mix_up=0.4)
    x, y = batch(0)
    before = x.clone(), y.clone()
    first, again, other = (mix(x, y, how, generator(s)) for s in (1, 1, 2))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)
    for (a, s), (b, t) in zip(first.truths, again.truths, strict=True):
        assert a == b
        assert torch.equal(s, t)
    assert first.truths[0][1].dtype == y.dtype


@pytest.mark.parametrize("values", [{"cutmix": 1.5}, {"cutout": -0.1}, {"cutout_side": 2}, {"mix_up": float("nan")}])
def test_strengths_out_of_range_are_refused_by_name(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Mixing(**values)


def test_spectral_channels_leave_out_slope_and_elevation():
    assert spectral_channels(L4S_BANDS).tolist() == [True] * 12 + [False] * 2
    assert spectral_channels(("dem", "B4", "slope", "B8A")).tolist() == [False, True, False, True]
