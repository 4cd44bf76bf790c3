"""The guard of an adaptation: signs as whole arrays would give them, and when a round or a model is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_geo.adapt import guard
from l4s_geo.adapt.guard import VIEWS, Limits, Signs, faults, histogram, nothing_to_learn, signs_of
from l4s_geo.adapt.thresholds import by_preset
from l4s_geo.expectation import BINS, expected_f1, mean, threshold_of_share
from l4s_geo.models.card import Card
from l4s_geo.train.teacher import Teacher
from tests.conftest import write_raster

BANDS = ("B4", "B3", "B2")
START = Signs(
    share=0.04, pixels=4000, entropy=0.1, confidence=0.9, expected_f1=0.85, agreement=1.0, consistency=0.95
)  # fmt: skip
CARD = Card(
    name="m",
    version="1",
    licence="Apache-2.0",
    networks=(),
    bands=BANDS,
    input_units="dn",
    compression="none",
    statistics={"bands": BANDS, "center": [500.0] * 3, "scale": [100.0] * 3},
    resolution_m=10,
    thresholds={"balanced": 0.5, "recall": 0.4, "precision": 0.6},
    threshold_split="none",
    normalization="model",
)


class Answers:
    """Stands for the networks: a function of standardized patches (N, C, h, w) to probabilities (N, h, w)."""

    def __init__(self, probability):
        self.probability = probability

    def __call__(self, images):
        p = self.probability(images).astype(np.float32)
        return np.stack([p, np.zeros_like(p)], axis=1)


def teacher(probability, card=CARD):
    return Teacher(card, Answers(probability), 4)


def by_light(images):
    """The brighter, the more probable."""
    return 1 / (1 + np.exp(-3 * images[:, 0].clip(-9, 9)))


def by_place(images):
    """The same whatever the image shows."""
    rows = np.arange(images.shape[-1]) % 7 < 3
    return np.broadcast_to(np.where(rows, 0.9, 0.1), (len(images), *images.shape[-2:]))


@pytest.fixture
def image(tmp_path):
    """Writes a target with its own mask; gives path, pixels and where they are valid."""

    def write(height, width, valid=None, name="image"):
        values = np.random.default_rng(height).normal(500, 120, (3, height, width)).clip(1, None).astype(np.uint16)
        valid = np.ones((height, width), np.bool_) if valid is None else valid
        return write_raster(tmp_path / f"{name}.tif", values, names=BANDS, mask=valid), values.astype(np.float32), valid

    return write


PROBABILITIES = st.one_of(st.just(0.0), st.floats(0.02, 1.0))


@settings(max_examples=200)
@given(p=st.lists(PROBABILITIES, min_size=1, max_size=60))
def test_the_expected_f1_is_the_best_of_all_thresholds(p):
    p = np.array(p)
    counts = np.bincount((p * BINS).astype(int).clip(0, BINS - 1), minlength=BINS)
    best = max((2 * p[p >= t].sum() / (p.sum() + (p >= t).sum()) for t in p if t), default=0.0)
    # half a bin is at most a 40th of any probability here
    assert expected_f1(counts) == pytest.approx(best, rel=0.06)


def test_background_that_is_nearly_certain_is_no_landslide():
    """A scene of a million pixels at 0.0004 and one landslide: the many must not outweigh it."""
    counts = np.zeros(BINS, np.int64)
    counts[0], counts[990] = 10**6, 500
    assert expected_f1(counts) > 0.98
    assert mean(counts) == pytest.approx(0.9905 * 500 / (10**6 + 500))


@settings(max_examples=200)
@given(p=st.lists(PROBABILITIES, min_size=1, max_size=60), share=st.floats(0, 1))
def test_no_threshold_maps_nearer_to_the_share(p, share):
    p = (np.array(p) * BINS).astype(int).clip(0, BINS - 1)
    off = [abs((p >= t).mean() - share) for t in range(BINS)]
    found = round(threshold_of_share(np.bincount(p, minlength=BINS), share) * BINS)
    assert off[found] == pytest.approx(min(off))
    assert all(off[t] > off[found] - 1e-9 for t in range(found + 1, BINS))


def test_of_given_landslides_not_nearly_all_are_mapped():
    """Without labels as much as the probabilities promise; with them at most what holds four fifths of their pixels."""
    p = np.linspace(0, 1, 10001)[:-1]
    counts = np.bincount((p * BINS).astype(int), minlength=BINS)
    half = by_preset(counts)
    assert half == pytest.approx({"balanced": 0.5, "recall": 0.25, "precision": 0.7}, abs=0.002)
    assert by_preset(counts, np.zeros(BINS, np.int64)) == half
    certain, doubtful = (np.bincount(bins, minlength=BINS) for bins in (np.arange(900, 1000), np.arange(400, 500)))
    with_labels = by_preset(counts, certain)
    assert with_labels == pytest.approx({"balanced": 0.92, "recall": 0.88, "precision": 0.952}, abs=0.002)
    assert by_preset(counts, doubtful) == half


def test_given_landslides_are_counted_alone(tmp_path):
    p = np.random.default_rng(4).random((2, 600, 40)).astype(np.float32)
    p[:, :5] = np.nan
    paths = [write_raster(tmp_path / f"{i}.tif", np.stack([x, x]), nodata=np.nan) for i, x in enumerate(p)]
    labels = np.random.default_rng(5).choice([0, 1, 255], p.shape).astype(np.uint8)
    readers = [lambda window, values=values: values[window.toslices()] for values in labels]
    wanted = p[(labels == 1) & ~np.isnan(p)]
    assert np.array_equal(histogram(paths, readers), np.bincount((wanted * BINS).astype(int), minlength=BINS))


def test_signs_are_those_of_whole_arrays(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    now = [rng.random((h, 40)).astype(np.float32) ** 3 for h in (600, 90)]
    start = [rng.random(x.shape).astype(np.float32) for x in now]
    now[0][:, :5] = start[0][:, :5] = np.nan

    def written(arrays, name):
        layers = [np.stack([x, np.zeros_like(x)]) for x in arrays]
        return [write_raster(tmp_path / f"{name}{i}.tif", x, nodata=np.nan) for i, x in enumerate(layers)]

    asked = []
    monkeypatch.setattr(guard, "under_other_light", lambda *a: asked.append(a[2]) or (0.1, 0.77))
    paths = written(now, "now"), written(start, "start")
    found = signs_of(teacher(by_light), [], *paths, (0.3, 0.8))
    p, q = (np.concatenate([x[~np.isnan(x)] for x in arrays]).astype(np.float64) for arrays in (now, start))
    a, b = p >= 0.3, q >= 0.8
    counts = np.bincount((p * BINS).astype(int).clip(0, BINS - 1), minlength=BINS)
    assert np.array_equal(histogram(paths[0]), counts)
    assert found.pixels == a.sum()
    assert found.share == a.mean()
    assert found.confidence == pytest.approx(p[a].mean())
    safe = p.clip(1e-9, 1 - 1e-9)
    assert found.entropy == pytest.approx(-(safe * np.log2(safe) + (1 - safe) * np.log2(1 - safe)).mean())
    assert found.agreement == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    best = max(2 * p[p >= t].sum() / (p.sum() + (p >= t).sum()) for t in np.linspace(0, 1, 200))
    assert found.expected_f1 == pytest.approx(best, abs=0.002)
    assert (found.consistency, asked) == (0.77, [0.3])
    assert found.known is None


def test_given_landslides_that_are_mapped_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "under_other_light", lambda *a: (0.1, 0.77))
    p = np.random.default_rng(6).random((300, 40)).astype(np.float32)
    p[:, :5] = np.nan
    path = write_raster(tmp_path / "now.tif", np.stack([p, p]), nodata=np.nan)
    labels = np.random.default_rng(7).choice([0, 1, 255], p.shape).astype(np.uint8)
    found = signs_of(teacher(by_light), [], [path], [path], (0.3, 0.8), [lambda window: labels[window.toslices()]])
    assert found.known == pytest.approx((p[(labels == 1) & ~np.isnan(p)] >= 0.3).mean(), abs=1e-9)


def test_maps_that_are_both_empty_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "under_other_light", lambda *a: (0.0, 1.0))
    path = write_raster(tmp_path / "p.tif", np.zeros((2, 30, 40), np.float32), nodata=np.nan)
    found = signs_of(teacher(by_light), [], [path], [path], (0.5, 0.5))
    assert found == Signs(0.0, 0, pytest.approx(0, abs=1e-6), 0.0, 0.0, 1.0, 1.0)


def test_consistency_is_the_overlap_with_answers_under_other_light(image):
    valid = np.ones((256, 128), np.bool_)
    valid[:40, 30:] = False
    path, pixels, _ = image(256, 128, valid)
    share, consistency = guard.under_other_light(teacher(by_light), [path], 0.6)
    z = ((pixels[0] - 500) / 100)[valid].astype(np.float64)
    plain = 1 / (1 + np.exp(-3 * z))
    others = [1 / (1 + np.exp(-3 * (gain * z + shift))) for gain, shift in VIEWS]
    same = sum(2 * np.minimum(plain, o).sum() for o in others)
    assert share == pytest.approx((plain >= 0.6).mean(), abs=1e-3)
    assert consistency == pytest.approx(same / sum(plain.sum() + o.sum() for o in others), abs=1e-4)
    assert consistency < 0.99


def test_what_does_not_hang_on_light_is_consistent(image):
    path, *_ = image(200, 300)
    assert guard.under_other_light(teacher(by_place), [path], 0.5)[1] == pytest.approx(1)
    assert guard.under_other_light(teacher(lambda x: np.zeros(x[:, 0].shape)), [path], 0.5) == (0.0, 1.0)


def test_light_changes_around_the_statistics_that_the_card_names(image):
    """A model that sees the scene by its own statistics has another centre than the card's."""
    path, *_ = image(128, 128)
    far = {**CARD.statistics, "center": [5000.0] * 3}
    own = replace(CARD, normalization="scene", statistics=far)
    first = guard.under_other_light(teacher(by_light, own), [path], 0.5)
    assert first[0] == pytest.approx(0.5, abs=0.05)
    assert guard.under_other_light(teacher(by_light, replace(own, normalization="model")), [path], 0.5)[0] == 0


@pytest.mark.parametrize("case", ["smaller than a patch", "valid only at the edge"])
def test_every_valid_pixel_may_be_looked_at(image, monkeypatch, case):
    monkeypatch.setattr(guard, "PATCHES", 1)
    if case == "smaller than a patch":
        path, pixels, valid = image(60, 90)
    else:
        valid = np.zeros((200, 150), np.bool_)
        valid[190:, 140:] = True
        path, pixels, valid = image(200, 150, valid)
    share, consistency = guard.under_other_light(teacher(by_light), [path], 0.5)
    assert share == pytest.approx((pixels[0][valid] >= 500).mean(), abs=0.01)
    assert 0.5 < consistency < 0.99


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({}, []),
        ({"share": 0.0799, "agreement": 0.51, "consistency": 0.91}, []),
        ({"share": 0.0201}, []),
        ({"share": 0.081}, ["grew from 4.00% to 8.10%"]),
        ({"share": 0.0199}, ["shrank from 4.00% to 1.99%"]),
        ({"share": 0.0199, "known": 0.49}, ["shrank from 4.00% to 1.99%"]),
        ({"share": 0.0199, "known": 0.5}, []),
        ({"share": 0.081, "known": 1.0}, ["grew"]),
        ({"agreement": 0.49}, ["only 49% of the landslides agree"]),
        ({"consistency": 0.89}, ["89% of the landslides stay instead of 95%"]),
        ({"share": 0.0, "agreement": 0.0}, ["shrank", "only 0%"]),
        ({"share": 1.0, "agreement": 0.08, "consistency": 0.8}, ["grew", "only 8%", "80%"]),
        ({"entropy": 0.9, "confidence": 0.1, "expected_f1": 0.1}, []),
    ],
)
def test_a_round_is_refused_with_all_its_faults(now, words):
    found = [*faults(START, replace(START, **now), Limits())]
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({}, []),
        ({"pixels": 200, "expected_f1": 0.7, "consistency": 0.8}, []),
        ({"pixels": 199}, ["199 pixels of landslide, fewer than the 200"]),
        ({"expected_f1": 0.69}, ["expected F1 0.69"]),
        ({"consistency": 0.79}, ["only 79% of what it maps stays"]),
        ({"pixels": 0, "expected_f1": 0.0, "consistency": 0.1}, ["it maps 0 pixels", "expected F1 0.00", "only 10%"]),
    ],
)
def test_a_model_that_cannot_teach_is_told_why(start, words):
    found = [*nothing_to_learn(replace(START, **start), Limits())]
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))
