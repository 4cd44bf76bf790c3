"""What probabilities promise: as a count of all thresholds would say it, and told to the user where it can be known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_geo.cli import main
from l4s_geo.expectation import BINS, count, doubts, expected_f1
from l4s_geo.models.card import Card
from tests.test_pipeline import model, scene  # noqa: F401 (fixtures)

probabilities = st.lists(st.integers(1, BINS - 1), min_size=1, max_size=60)


@settings(max_examples=50)
@given(probabilities)
def test_it_is_the_best_f1_of_all_thresholds(steps: list[int]) -> None:
    prob = np.array(steps, np.float64) / BINS + 0.5 / BINS
    right = [prob[prob >= t].sum() for t in prob]
    best = max(2 * r / ((prob >= t).sum() + prob.sum()) for t, r in zip(prob, right, strict=True))
    assert expected_f1(count(prob.astype(np.float32))) == pytest.approx(best, abs=1e-3)


@given(probabilities, st.integers(0, 60))
def test_parts_add_up_and_what_was_not_seen_does_not_count(steps: list[int], cut: int) -> None:
    prob = np.array([*steps, 0, BINS], np.float32) / BINS
    holes = np.insert(prob, cut % len(prob), np.nan)
    np.testing.assert_array_equal(count(prob[:cut]) + count(prob[cut:]), count(holes))
    assert count(holes).sum() == len(prob)


def test_draws_keep_what_is_promised() -> None:
    """Where each pixel is landslide with its probability, the true F1 is the expected one."""
    rng = np.random.default_rng(1)
    prob = (rng.random((400, 400)) ** 6).astype(np.float32)
    truth = rng.random(prob.shape) < prob
    true = max(2 * (truth & (prob >= t)).sum() / ((prob >= t).sum() + truth.sum()) for t in np.arange(0.05, 1, 0.05))
    assert expected_f1(count(prob)) == pytest.approx(true, abs=0.02)


def test_sure_and_unsure_maps() -> None:
    assert expected_f1(count(np.array([0.999, 0, 0, np.nan], np.float32))) > 0.99
    assert expected_f1(count(np.zeros(9, np.float32))) == 0
    assert doubts(None) == doubts(0.5) == []
    assert "expected F1 0.31" in doubts(0.31)[0]


def mapped(scene: Path, model: str, folder: Path, verb: str = "map") -> dict[str, object]:  # noqa: F811
    out = ["--out", str(folder / f"{verb}.gpkg"), "--json", "-q"]
    others = ["--prob", str(folder / "p.tif"), "--stac", str(folder / "item.json")]
    more = ["--model", model, *others] if verb == "map" else []
    done = CliRunner().invoke(main, [verb, str(scene), *out, *more])
    assert done.exit_code == 0, done.output
    summary: dict[str, object] = json.loads(done.stdout)
    return summary


def calibrated(model: str, slope: float, intercept: float) -> None:  # noqa: F811
    line = {"method": "platt", "slope": slope, "intercept": intercept}
    replace(Card.load(Path(model)), calibration=line).save(Path(model))


def test_it_is_told_of_calibrated_models_only(scene: Path, model: str, tmp_path: Path) -> None:  # noqa: F811
    summary = mapped(scene, model, tmp_path)
    assert summary["expected_f1"] is None
    assert summary["notes"] == []


@pytest.mark.parametrize(("line", "sure"), [((1.0, 0.0), True), ((0.02, -3.0), False)])
def test_who_maps_hears_it(line: tuple[float, float], sure: bool, scene: Path, model: str, tmp_path: Path) -> None:  # noqa: F811
    calibrated(model, *line)
    summary = mapped(scene, model, tmp_path)
    with rasterio.open(tmp_path / "p.tif") as file:
        expected = expected_f1(count(file.read(1)))
    assert summary["expected_f1"] == pytest.approx(expected, abs=1e-3)
    assert (expected >= 0.5) == sure
    assert any("doubts that it knows this scene" in note for note in summary["notes"]) != sure  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "map.gpkg.json").read_text())["expected_f1"] == summary["expected_f1"]
    properties = json.loads((tmp_path / "item.json").read_text())["properties"]
    assert properties["l4s:expected_f1"] == summary["expected_f1"]
    again = mapped(tmp_path / "p.tif", model, tmp_path, "polygonize")
    assert again["expected_f1"] == summary["expected_f1"]
    assert again["notes"] == summary["notes"]
