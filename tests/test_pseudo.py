"""Pseudo-labels: the right share of each class, the surest pixels of it, and the same by windows as at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from l4s_geo.data.patches import STEPS, UNKNOWN
from l4s_geo.errors import InputError
from l4s_geo.train.pseudo import (
    Certain,
    Confident,
    Doubts,
    Soft,
    TopShare,
    certain,
    classes,
    confident,
    probabilities,
    top_share,
)

SHARES = st.floats(0.05, 1.0)


# numbers below 1e-38 share the bin of 0: no network is as sure as that
ELEMENTS = st.floats(0, 1, width=32, allow_subnormal=False)
PROBABILITIES = st.integers(1, 200).flatmap(lambda n: arrays(np.float32, n, elements=ELEMENTS))


@given(PROBABILITIES, st.floats(0.51, 1.0))
def test_confident_pixels_are_those_at_the_level_of_either_class(prob, level):
    labels = confident(prob, level)
    assert np.array_equal(labels == 1, prob >= level)
    assert np.array_equal(labels == 0, prob <= 1 - level)
    assert set(np.unique(labels)) <= {0, 1, UNKNOWN}


def check_share(labels, landslide, doubt, cls, share):
    """Of a class: at least its share is kept, none that is surer was left out, and no more than one bin too many."""
    of_class = landslide == bool(cls)
    kept = of_class & (labels == cls)
    wanted = share * of_class.sum()
    assert kept.sum() >= wanted - 1e-6
    assert not ((labels == cls) & ~of_class).any()
    if kept.any():
        worst = doubt[kept].max()
        assert (doubt[of_class & ~kept] >= worst).all()
        surely = of_class & (doubt < worst / (1 + 1 / 64))
        assert surely.sum() <= wanted + 1


@given(PROBABILITIES, st.floats(0.1, 0.9), SHARES)
def test_the_top_share_keeps_the_surest_of_each_class(prob, threshold, share):
    labels = top_share(prob, threshold, share)
    landslide = prob >= threshold
    for cls in (0, 1):
        check_share(labels, landslide, np.where(landslide, 1 - prob, prob), cls, share)
    if share == 1:
        assert np.array_equal(labels, landslide.astype(np.uint8))


@given(PROBABILITIES, st.integers(0, 2**32 - 1), SHARES, SHARES)
def test_certain_pixels_are_balanced_by_class(prob, seed, background, landslide):
    uncertainty = np.random.default_rng(seed).lognormal(0, 6, len(prob)).astype(np.float32)
    labels = certain(prob, uncertainty, 0.5, background, landslide)
    for cls, share in ((0, background), (1, landslide)):
        check_share(labels, prob >= 0.5, uncertainty, cls, share)


def test_shares_are_close_on_a_scene_of_confident_networks():
    rng = np.random.default_rng(0)
    prob = (1 / (1 + np.exp(rng.normal(8, 3, 200_000)))).astype(np.float32)  # most below 0.001
    for share in (0.5, 0.7, 0.9):
        labels = top_share(prob, 0.5, share)
        assert (labels == 0).sum() / (prob < 0.5).sum() == pytest.approx(share, abs=0.002)


@given(PROBABILITIES, st.integers(1, 40), st.sampled_from([Confident(), TopShare(share=0.7), Certain(), "noise"]))
def test_labels_by_windows_are_those_of_the_whole(prob, rows, how):
    if how == "noise":
        how, prob = Certain(background=0.5, landslide=0.2), np.where(prob < 0.1, np.float32(np.nan), prob)
    uncertainty = np.where(np.isnan(prob), prob, (prob * 37) % 1).astype(np.float32)
    parts = [np.s_[i : i + rows] for i in range(0, len(prob), rows)]
    whole, streamed = Doubts(), Doubts()
    how.count(whole, prob, uncertainty, 0.4)
    for part in parts:
        how.count(streamed, prob[part], uncertainty[part], 0.4)
    expected = how.labels(whole, prob, uncertainty, 0.4)
    found = np.concatenate([how.labels(streamed, prob[p], uncertainty[p], 0.4) for p in parts])
    assert np.array_equal(found, expected)
    assert (expected[np.isnan(prob)] == UNKNOWN).all()


def test_a_class_that_is_not_there_gets_no_label():
    prob = np.full(10, 0.1, np.float32)
    assert (certain(prob, prob, 0.5) == 0).all()
    assert (top_share(1 - prob, 0.5, 0.5) == 1).all()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Confident, {"level": 0.5}),
        (Confident, {"level": 1.2}),
        (TopShare, {"share": 0.0}),
        (TopShare, {"share": 90.0}),
        (Certain, {"background": 1.5}),
        (Certain, {"passes": 1}),
        (Certain, {"dropout": 1.0}),
    ],
)
def test_numbers_that_make_no_sense_are_refused(kind, values):
    with pytest.raises(InputError):
        kind(**values)


@given(PROBABILITIES)
def test_soft_labels_keep_the_probability_to_a_step_and_no_data(prob):
    prob = np.append(prob, np.float32(np.nan))
    labels = Soft().labels(Doubts(), prob, prob, 0.3)
    back = probabilities(torch.from_numpy(labels.astype(np.int64)))
    assert back[-1] == UNKNOWN
    assert np.abs(back[:-1].numpy() - prob[:-1]).max() <= 0.5 / STEPS + 1e-6
    clear = np.abs(prob[:-1] - 0.3) > 1 / STEPS
    assert np.array_equal(classes(labels, 0.3)[:-1][clear] == 1, (prob[:-1] >= 0.3)[clear])
    assert classes(labels)[-1] == UNKNOWN


def test_hard_labels_are_left_as_they_are():
    labels = torch.tensor([0, 1, UNKNOWN])
    assert probabilities(labels) is labels
    assert np.array_equal(classes(labels.numpy().astype(np.uint8)), [0, 1, UNKNOWN])


def test_without_balance_the_surest_share_of_all_pixels_is_kept():
    """Landslides, of which networks are less sure, go first."""
    prob = np.concatenate([np.linspace(0.0, 0.2, 90), np.linspace(0.6, 0.7, 10)]).astype(np.float32)
    kept = {b: _whole(TopShare(share=0.8, balanced=b), prob) for b in (True, False)}
    assert ((kept[True] == 1).sum(), (kept[True] == 0).sum()) == (8, 72)
    assert ((kept[False] == 1).sum(), (kept[False] == 0).sum()) == (0, 80)


def _whole(how, prob):
    doubts = Doubts()
    how.count(doubts, prob, prob, 0.5)
    return how.labels(doubts, prob, prob, 0.5)
