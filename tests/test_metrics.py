"""Confusion counts, threshold curves and bootstrap intervals."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4s_geo.errors import InputError
from l4s_geo.metrics import Counts, ThresholdCurve, block_counts, bootstrap, confusion


def test_figures_of_known_counts() -> None:
    counts = Counts(tp=6, fp=2, fn=4, tn=88)
    assert counts.precision == pytest.approx(0.75)
    assert counts.recall == pytest.approx(0.6)
    assert counts.f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert counts.iou == pytest.approx(0.5)
    assert counts.total == 100


def test_undefined_figures_are_nan_and_nothing_else_is() -> None:
    assert all(isnan(v) for v in Counts(tn=5).figures().values())
    missed = Counts(fn=3, tn=5)
    assert isnan(missed.precision)
    assert (missed.recall, missed.f1, missed.iou) == (0, 0, 0)


def test_confusion_leaves_out_unknown_and_invalid_pixels() -> None:
    truth = np.array([1, 1, 0, 0, 255, 255, 1, 0], np.uint8)
    pred = np.array([1, 0, 1, 0, 1, 0, 1, 1], bool)
    assert confusion(pred, truth) == Counts(tp=2, fp=2, fn=1, tn=1)
    valid = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
    assert confusion(pred, truth, valid=valid) == Counts(1, 1, 1, 1)
    assert confusion(pred, truth, ignore=9).total == 8


def test_block_counts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    truth = rng.choice(np.array([0, 1, 255], np.uint8), (10, 25))
    pred = rng.random((10, 25)) > 0.5
    parts = block_counts(pred, truth, 10)
    assert len(parts) == 3
    assert sum(parts, Counts()) == confusion(pred, truth)
    assert parts[2] == confusion(pred[:, 20:], truth[:, 20:])


@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(1, 4))
def test_curve_equals_confusion_at_every_threshold(seed: int, step: int, pieces: int) -> None:
    rng = np.random.default_rng(seed)
    prob = rng.random(200, dtype=np.float32)
    prob[::3] = (rng.integers(0, 1001, prob[::3].size) / 1000).astype(np.float32)
    prob[:4] = (np.nan, 0, 1, step / 1000)
    truth = rng.choice(np.array([0, 1, 255], np.uint8), 200)
    valid = rng.random(200) > 0.2
    curve = ThresholdCurve()
    for part in np.array_split(np.arange(200), pieces):
        curve.update(prob[part], truth[part], valid=valid[part])
    expected = confusion(prob >= np.float32(step / 1000), truth, valid=valid)
    assert curve.counts_at(step / 1000) == expected


def test_best_threshold_lies_in_the_middle_of_the_gap() -> None:
    curve = ThresholdCurve()
    curve.update(np.array([0.1, 0.2, 0.7, 0.9], np.float32), np.array([0, 0, 1, 1], np.uint8))
    threshold, counts = curve.best_f()
    assert threshold == pytest.approx(0.45, abs=0.002)
    assert counts == Counts(tp=2, tn=2)


@given(st.integers(0, 2**32 - 1))
def test_no_threshold_beats_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random(300) > 0.8).astype(np.uint8)
    truth[0] = 1
    prob = np.clip(rng.normal(0.3 + 0.2 * truth, 0.2), 0, 1).astype(np.float32)
    curve = ThresholdCurve()
    curve.update(prob, truth)
    threshold, counts = curve.best_f()
    assert counts == curve.counts_at(threshold)
    assert counts.f1 == max(curve.counts_at(k / 1000).f1 for k in range(1001))


def test_slack_takes_the_lowest_threshold_that_is_about_as_good() -> None:
    curve = ThresholdCurve()
    curve.update(np.array([0.1, 0.5, 0.6, 0.9], np.float32), np.array([0, 1, 0, 1], np.uint8))
    assert curve.best_f()[0] == pytest.approx(0.3, abs=0.002)
    assert curve.best_f(slack=0.05)[0] == pytest.approx(0.101)
    assert curve.best_f(slack=0.2)[0] == 0.0  # all of it: P 0.5, R 1


def test_curve_refuses_what_has_no_answer() -> None:
    curve = ThresholdCurve()
    curve.update(np.array([0.4], np.float32), np.array([0], np.uint8))
    with pytest.raises(InputError, match="landslide pixel"):
        curve.best_f()
    with pytest.raises(ValueError, match="between 0 and 1"):
        curve.counts_at(1.5)


def test_bootstrap_covers_the_estimate_and_narrows_with_more_blocks() -> None:
    rng = np.random.default_rng(3)

    def blocks(n: int) -> list[Counts]:
        return [Counts(*(int(v) for v in rng.poisson((60, 20, 20, 900)))) for _ in range(n)]

    few, many = blocks(8), blocks(400)
    whole = sum(many, Counts())
    narrow, wide = bootstrap(many), bootstrap(few)
    for name, value in whole.figures().items():
        low, high = narrow[name]
        assert low < value < high
        assert high - low < wide[name][1] - wide[name][0]
    assert bootstrap(many) == narrow
    assert bootstrap(many, seed=1) != narrow
    assert bootstrap([*many, *[Counts()] * 50]) == narrow


def test_bootstrap_of_identical_blocks_is_a_point_and_of_nothing_is_nan() -> None:
    low, high = bootstrap([Counts(3, 1, 1, 5)] * 10)["f1"]
    assert low == high == pytest.approx(0.75)
    assert all(isnan(v) for pair in bootstrap([]).values() for v in pair)
    assert isnan(bootstrap([Counts(tn=4)] * 3)["precision"][0])
