"""Confusion counts, threshold curves, bootstrap intervals, calibration, and risk over coverage."""

from __future__ import annotations

from math import isnan, log, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_geo.errors import InputError
from l4s_geo.evaluation.reliability import (
    BINS,
    calibration_score,
    calibration_sums,
    reliability_curve,
    risk_curve,
    risk_score,
    risk_sums,
)
from l4s_geo.metrics import (
    Blocked,
    Counts,
    ThresholdCurve,
    block_counts,
    bootstrap,
    confusion,
    harmonic_mean,
    of_counts,
    resample,
)


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


def test_f_measures_weigh_recall() -> None:
    counts = Counts(tp=6, fp=2, fn=4, tn=88)
    assert counts.f_beta(1) == pytest.approx(counts.f1)
    assert counts.f_beta(2) == pytest.approx(5 * 0.75 * 0.6 / (4 * 0.75 + 0.6))
    assert counts.f_beta(0.5) == pytest.approx(1.25 * 0.75 * 0.6 / (0.25 * 0.75 + 0.6))


def test_harmonic_mean_is_0_where_one_side_is_and_not_defined_where_nothing_is() -> None:
    assert harmonic_mean(0.5, 1) == pytest.approx(2 / 3)
    assert harmonic_mean(nan, 0) == harmonic_mean(0, 0.5) == 0
    assert isnan(harmonic_mean(nan, nan))
    assert isnan(harmonic_mean(nan, 0.5))


def test_measures_of_the_same_blocks_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    blocks = [Counts(*(int(v) for v in rng.poisson((60, 20, 20, 900)))) for _ in range(30)]
    pixels = of_counts(blocks)
    tenth = Blocked(pixels.table / 10, lambda sums: {"recall": sums[0] / (sums[0] + sums[2])})
    alone, (first, second) = bootstrap(blocks), resample([pixels, tenth])
    assert first == alone
    assert second["recall"] == pytest.approx(first["recall"])


# --- calibration --------------------------------------------------------------------------------------------


def calibration_of(prob: np.ndarray, truth: np.ndarray, threshold: float = 0.5) -> Blocked:
    """In two blocks."""
    columns = np.arange(len(prob)) % 2
    return calibration_score(calibration_sums(prob, truth, prob >= threshold, columns, 2))


def test_probabilities_that_are_right_have_no_calibration_error_and_sure_ones_that_are_wrong_have_all() -> None:
    prob = np.repeat(np.array([0.2, 0.8], np.float32), 10)
    truth = np.arange(20) % 10 < np.repeat([2, 8], 10)
    right = calibration_of(prob, truth).score()
    assert right["ece"] == pytest.approx(0, abs=1e-6)
    assert right["brier"] == pytest.approx(0.16)
    wrong = calibration_of(np.array([1, 0], np.float32), np.array([False, True])).score()
    assert wrong == {"ece": 1, "ece_mapped": 1, "brier": 1}


def test_background_hides_what_mapped_pixels_are_off() -> None:
    prob = np.repeat(np.array([0.0, 0.9], np.float32), [990, 10])
    truth = np.arange(1000) >= 995
    found = calibration_of(prob, truth).score()
    assert found["ece"] == pytest.approx(0.004)
    assert found["ece_mapped"] == pytest.approx(0.4)
    assert isnan(calibration_of(prob[:9], truth[:9]).score()["ece_mapped"])


@given(st.integers(0, 2**32 - 1))
def test_calibration_error_as_defined(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prob = rng.random(300, dtype=np.float32)
    prob[:2] = 0, 1
    truth = rng.random(300) < prob**2
    found = calibration_of(prob, truth)
    bins = np.clip(np.digitize(prob, np.linspace(0, 1, BINS + 1).astype(np.float32)) - 1, 0, BINS - 1)
    expected = sum((bins == b).mean() * abs(prob[bins == b].mean() - truth[bins == b].mean()) for b in np.unique(bins))
    assert found.score()["ece"] == pytest.approx(expected, abs=1e-4)
    pixels, mean, share = reliability_curve(found.table.sum(axis=0))
    assert pixels.sum() == 300
    assert mean[3] == pytest.approx(prob[bins == 3].mean(), abs=1e-3)
    assert share[14] == pytest.approx(truth[bins == 14].mean(), abs=1e-3)


# --- risk and coverage --------------------------------------------------------------------------------------


def risk_of(doubt: np.ndarray, wrong: np.ndarray) -> Blocked:
    """In three blocks."""
    return risk_score(risk_sums(doubt.astype(np.float32), wrong, np.arange(len(doubt)) % 3, 3))


def test_a_perfect_ranking_saves_all_one_by_chance_nothing_and_a_wrong_one_costs() -> None:
    wrong = np.arange(1000) >= 900
    perfect = risk_of(np.where(wrong, 0.4, 0.01), wrong).score()
    assert perfect["aurc"] == pytest.approx(0.1 + 0.9 * log(0.9))
    assert perfect["excess_aurc"] == pytest.approx(0)
    chance = risk_of(np.full(1000, 0.2), wrong).score()
    assert chance["aurc"] == pytest.approx(chance["error_rate"]) == pytest.approx(0.1)
    assert risk_of(np.where(wrong, 0.01, 0.4), wrong).score()["aurc"] > 0.3


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_area_is_the_mean_risk_over_all_coverages(seed: int) -> None:
    rng = np.random.default_rng(seed)
    doubt = 10 ** rng.uniform(-5, -0.3, 5000)
    wrong = rng.random(5000) < doubt**0.3
    found = risk_of(doubt, wrong)
    risks = np.cumsum(wrong[np.argsort(doubt)]) / np.arange(1, 5001)
    assert found.score()["aurc"] == pytest.approx(risks.mean(), rel=0.02)
    coverage, risk = risk_curve(found.table.sum(axis=0))
    assert (coverage[-1], risk[-1]) == (1, pytest.approx(wrong.mean()))
    assert np.all(np.diff(coverage) > 0)


def test_doubt_that_is_not_known_takes_no_part_and_none_has_no_area() -> None:
    doubt, wrong = np.array([0.1, nan, 0.3]), np.array([False, True, True])
    assert risk_of(doubt, wrong).score()["error_rate"] == 0.5
    assert isnan(risk_of(doubt[:0], wrong[:0]).score()["aurc"])
    assert risk_of(doubt[:1], ~wrong[:1]).score()["aurc"] == 1
