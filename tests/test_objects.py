"""Landslides as objects and their edges: strips give what the whole would, and what counts for nothing."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from l4s_geo.evaluation.boundary import edge_score, edge_sums, halo
from l4s_geo.evaluation.objects import ObjectPairs, Objects, object_numbers, object_score
from l4s_geo.metrics import harmonic_mean

Bools = NDArray[np.bool_]


def pairs_of(
    mapped: Bools, landslide: Bools, known: Bools | None = None, height: int = 1000, block: int = 8
) -> tuple[Objects, Objects]:
    """Both sides' objects from strips of so many rows; the layer ``column`` holds each pixel's column."""
    known = np.ones_like(mapped) if known is None else known
    column = np.tile(np.arange(mapped.shape[1], dtype=np.float32), (len(mapped), 1))
    pairs = ObjectPairs(block, ["column"])
    for row in range(0, len(mapped), height):
        part = slice(row, row + height)
        pairs.add(mapped[part], landslide[part], known[part], 100.0, {"column": column[part]})
    return pairs.end()


def brute(mapped: Bools, landslide: Bools, known: Bools) -> list[list[tuple[float, bool, bool, float, int]]]:
    """The same from whole arrays: area, overlap, IoU, mean and lowest column of every object that counts."""
    sides = [ndimage.label(side, np.ones((3, 3))) for side in (mapped, landslide)]
    found = []
    for (mine, n), (other, m), others in ((*sides, landslide), (*sides[::-1], mapped)):
        objects = []
        for k in range(1, n + 1):
            me = mine == k
            if 2 * (me & known).sum() <= me.sum():
                continue
            ious = [(me & known & (other == o)).sum() / ((me | (other == o)) & known).sum() for o in range(1, m + 1)
                    if ((me | (other == o)) & known).any()]  # fmt: skip
            overlap = bool((me & others & known).any())
            same = bool(max(ious, default=0) > 0.5)
            columns = np.nonzero(me)[1]
            objects.append((100.0 * me.sum(), overlap, same, float(columns.mean()), int(columns.min())))
        found.append(sorted(objects))
    return found


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0.1, 0.7), st.floats(0, 0.5))
def test_strips_give_the_objects_of_the_whole(seed: int, height: int, share: float, unknown: float) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 14, 2))
    landslide = ndimage.uniform_filter(rng.random(shape), 2) < share
    mapped = landslide ^ (rng.random(shape) < 0.15)
    known = rng.random(shape) >= unknown
    found = pairs_of(mapped, landslide, known, height)
    for side, expected in zip(found, brute(mapped, landslide, known), strict=True):
        columns = side.means.get("column", np.full(len(side.area_m2), np.nan))
        rows = sorted(zip(side.area_m2, side.overlap, side.iou, columns, strict=True))
        assert [tuple(r[:3]) for r in rows] == [e[:3] for e in expected]
        if side.means:
            assert sorted(columns) == pytest.approx(sorted(e[3] for e in expected))
            assert sorted(side.lows["column"]) == sorted(e[4] for e in expected)


def canvas(*boxes: tuple[slice, slice]) -> Bools:
    mask = np.zeros((40, 60), bool)
    for box in boxes:
        mask[box] = True
    return mask


def test_pieces_of_a_landslide_are_right_by_overlap_and_wrong_by_iou() -> None:
    """One landslide of 10 x 20 mapped in two halves with a gap, one found well, one missed, one false alarm."""
    truth = canvas(np.s_[2:12, 2:22], np.s_[20:30, 2:12], np.s_[20:30, 40:50])
    mapped = canvas(np.s_[2:12, 2:10], np.s_[2:12, 14:22], np.s_[20:30, 3:13], np.s_[2:6, 50:54])
    found = object_score(*pairs_of(mapped, truth, height=7), np.arange(6 * 8))
    figures = found.score()
    assert figures["overlap/all/precision"] == 3 / 4
    assert figures["overlap/all/recall"] == 2 / 3
    assert figures["overlap/all/f1"] == pytest.approx(harmonic_mean(3 / 4, 2 / 3))
    assert figures["iou/all/precision"] == 1 / 4
    assert figures["iou/all/recall"] == 1 / 3


def test_sizes_are_the_objects_own() -> None:
    """Areas of 400, 10,000 and 120,000 m² with pixels of 10 m; only the middle one is found, by a mere pixel."""
    truth = canvas(np.s_[0:2, 0:2], np.s_[0:10, 10:20], np.s_[12:40, 0:43])
    mapped = canvas(np.s_[5:6, 15:16], np.s_[0:1, 30:50])
    found = object_score(*pairs_of(mapped, truth), np.arange(8))
    figures = found.score()
    numbers = object_numbers(found.table.sum(axis=0).astype(float))
    assert numbers[:, :, 0].tolist() == [[2, 1, 1, 0, 0], [3, 1, 0, 1, 1]]
    assert [figures[f"overlap/{k}/precision"] for k in (0, 1)] == [1, 0]
    assert [figures[f"overlap/{k}/recall"] for k in (0, 2, 3)] == [0, 1, 0]
    assert isnan(figures["overlap/1/recall"])
    assert isnan(figures["iou/3/precision"])


def test_what_is_mostly_unlabelled_counts_for_nothing_but_answers_others() -> None:
    truth, known = canvas(np.s_[10:20, 30:40]), ~canvas(np.s_[:, 0:20])
    hidden = canvas(np.s_[0:5, 10:24])
    mapped, reference = pairs_of(truth | hidden, truth, known)
    assert (len(mapped.area_m2), len(reference.area_m2)) == (1, 1)
    visible = canvas(np.s_[0:5, 10:31])
    mapped, _ = pairs_of(truth | visible, truth, known)
    assert sorted(mapped.overlap) == [False, True]
    wide = canvas(np.s_[0:40, 0:22], np.s_[10:20, 22:32])
    mapped, reference = pairs_of(wide, truth, known)
    assert len(mapped.area_m2) == 0
    assert reference.overlap.tolist() == [True]


def test_nothing_mapped_and_nothing_to_map() -> None:
    empty, truth = canvas(), canvas(np.s_[0:5, 0:5])
    missed = object_score(*pairs_of(empty, truth), np.arange(8)).score()
    assert isnan(missed["overlap/all/precision"])
    assert (missed["overlap/all/recall"], missed["overlap/all/f1"]) == (0, 0)
    assert isnan(object_score(*pairs_of(empty, empty), np.arange(8)).score()["iou/all/f1"])


# --- edges --------------------------------------------------------------------------------------------------


def edges_of(mapped: Bools, truth: Bools, known: Bools | None = None, height: int = 1000, tolerance: int = 2) -> Bools:
    known = np.ones_like(mapped) if known is None else known
    found, around = [], halo(tolerance)
    for row in range(0, len(mapped), height):
        top, end = max(row - around, 0), min(row + height, len(mapped))
        part = slice(top, end + around)
        core = slice(row - top, end - top)
        found.append(edge_sums(mapped[part], truth[part], known[part], core, 16, tolerance))
    return sum(found[1:], found[0])


def test_edges_that_are_off_by_the_tolerance_are_right_and_no_more() -> None:
    truth = canvas(np.s_[10:30, 10:30])
    for shift, expected in ((0, 1), (2, 1), (25, 0)):
        moved = canvas(np.s_[10:30, 10 + shift : 30 + shift])
        figures = edge_score(edges_of(moved, truth)).score()
        assert figures == {"precision": expected, "recall": expected, "f1": expected}
    larger = edge_score(edges_of(canvas(np.s_[7:33, 7:33]), truth)).score()
    assert larger["f1"] == 0
    assert edge_score(edges_of(canvas(np.s_[7:33, 7:33]), truth, tolerance=3)).score()["recall"] == 1


def test_edges_at_what_is_not_known_are_left_out() -> None:
    truth, known = canvas(np.s_[10:30, 10:30]), ~canvas(np.s_[:, 0:10])
    figures = edge_score(edges_of(canvas(np.s_[10:30, 4:30]), truth, known)).score()
    assert figures == {"precision": 1, "recall": 1, "f1": 1}
    assert isnan(edge_score(edges_of(truth, truth, np.zeros_like(truth))).score()["f1"])


def test_the_frame_is_no_edge() -> None:
    whole = np.ones((20, 20), bool)
    assert edges_of(whole, whole).sum() == 0


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 4))
def test_strips_give_the_edges_of_the_whole_and_of_distances(seed: int, height: int, tolerance: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 25, 2))
    truth = ndimage.uniform_filter(rng.random(shape), 3) < 0.5
    mapped = ndimage.uniform_filter(rng.random(shape), 3) < 0.45
    known = rng.random(shape) > 0.01
    found = edges_of(mapped, truth, known, height, tolerance)
    np.testing.assert_array_equal(found, edges_of(mapped, truth, known, 1000, tolerance))

    cross = ndimage.generate_binary_structure(2, 1)
    ours, theirs = (m & ~ndimage.binary_erosion(m, cross, border_value=1) for m in (mapped, truth))
    sure = ndimage.distance_transform_edt(known) > max(tolerance, 1) if not known.all() else known
    for k, (edges, others) in enumerate(((ours, theirs), (theirs, ours))):
        near = ndimage.distance_transform_edt(~others) <= tolerance if others.any() else np.zeros_like(others)
        assert found[:, 2 * k].sum() == (edges & sure).sum()
        assert found[:, 2 * k + 1].sum() == (edges & sure & near).sum()
