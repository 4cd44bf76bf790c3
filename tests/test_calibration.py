"""Probabilities that mean what they say: fitted, kept on the card, applied to maps that stay the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from l4s_geo import crf, pipeline
from l4s_geo.calibration import Calibration, Calibrations, Outcomes, fit
from l4s_geo.cli import main
from l4s_geo.errors import InputError, ModelError
from l4s_geo.models import registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.normalize import Normalizer
from l4s_geo.pipeline import MapOptions, map_scene
from l4s_geo.plan import summarize
from l4s_geo.polygonize import PolygonizeOptions, polygonize
from l4s_geo.progress import Silent
from tests.conftest import write_raster
from tests.test_pipeline import BANDS, Brightness

LINE = {"method": "platt", "slope": 0.5, "intercept": -1.0}
HALF = Calibration(0.5, -1.0)
lines = st.builds(Calibration, st.floats(0.05, 5), st.floats(-4, 4))
probabilities = st.floats(1e-4, 1 - 1e-4)


def outcomes(z: np.ndarray, landslide: np.ndarray) -> Outcomes:
    found = Outcomes()
    found.update(expit(z).astype(np.float32), landslide.astype(np.uint8))
    return found


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.5), st.floats(-2, 1))
def test_the_line_that_made_the_labels_is_found(seed: int, slope: float, intercept: float) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 4, 100_000)
    found = fit(outcomes(z, rng.random(z.size) < expit(slope * z + intercept)))
    assert found is not None
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=0.06)


def test_an_overconfident_network_says_the_truth_afterwards() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(-2, 5, 50_000)
    seen = outcomes(z, rng.random(z.size) < expit(z / 3 - 1))
    found = fit(seen)
    assert found is not None
    assert seen.ece(found) < 0.01 < 0.1 < seen.ece(Calibration())


@pytest.mark.parametrize(
    ("z", "landslide"),
    [([0, 1, 2], [0, 0, 0]), ([0, 1, 2], [1, 1, 1]), ([-3, -2, 2, 3], [1, 1, 0, 0]), ([], [])],
    ids=["background", "landslide", "reversed", "nothing"],
)
def test_labels_that_say_nothing_about_the_networks(z: list[float], landslide: list[int]) -> None:
    assert fit(outcomes(np.array(z, float), np.array(landslide))) is None


def test_a_few_pixels_without_an_error_make_no_step() -> None:
    found = fit(outcomes(np.array([-2.0, -1, 1, 2]), np.array([0, 0, 1, 1])))
    assert found is not None
    assert 0.05 < found.apply(expit(-1)) < 0.5 < found.apply(expit(1)) < 0.95


def test_what_is_not_seen_or_not_labelled_does_not_count() -> None:
    found = Outcomes()
    found.update(np.array([0, 0.2, np.nan, 0.9, 1], np.float32), np.array([0, 255, 1, 1, 1], np.uint8))
    assert found.counts.sum(axis=1).tolist() == [1, 2]
    assert found.counts[:, [0, -1]].tolist() == [[1, 0], [0, 1]]


@given(lines, st.lists(probabilities, min_size=2, max_size=2, unique=True))
def test_the_order_stays_and_there_is_a_way_back(line: Calibration, pair: list[float]) -> None:
    low, high = sorted(pair)
    assert line.apply(low) <= line.apply(high)
    assert line.inverse(line.apply(low)) == pytest.approx(low, rel=1e-6)
    said = torch.tensor([low, high, float("nan")], dtype=torch.float64)
    assert line(said)[:2].tolist() == pytest.approx(line.apply(np.array([low, high])).tolist())
    assert line(said)[2].isnan()


@given(st.lists(st.tuples(st.integers(1, 3), lines), min_size=1, max_size=3), probabilities)
def test_the_way_back_from_several_models(parts: list[tuple[int, Calibration]], prob: float) -> None:
    several = Calibrations(tuple(parts))
    assert several.inverse(several.apply(prob)) == pytest.approx(prob, abs=1e-3)


def test_each_model_is_averaged_and_then_calibrated_by_its_own_line() -> None:
    members = torch.tensor([[0.9], [0.7], [0.4]])
    several = Calibrations(((2, HALF), (1, Calibration())))
    assert several.mean(members).item() == pytest.approx((2 * HALF.apply(0.8) + 0.4) / 3)
    assert several.members(members)[:, 0].tolist() == pytest.approx([HALF.apply(0.9), HALF.apply(0.7), 0.4])
    prob, agreement, spread = summarize(members, 0.5, several)
    own = [HALF.apply(0.9), HALF.apply(0.7), 0.4]
    assert (prob.item(), agreement.item()) == (several.mean(members).item(), pytest.approx(1 / 3))
    assert spread.item() == pytest.approx(np.std(own))


# --- cards -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model of two networks, and a labelled scene in which it is too sure of itself."""
    real = zoo.build
    monkeypatch.setattr(
        zoo, "build", lambda name, args, n: Brightness() if name == "Brightness" else real(name, args, n)
    )
    save_model(tmp_path / "bright")
    rng = np.random.default_rng(1)
    image = rng.normal(500, 50, (3, 300, 200)).clip(300, 640)
    truth = np.zeros((300, 200), np.uint8)
    for row, column in np.ndindex(6, 4):
        at = np.s_[20 + 45 * row : 32 + 45 * row, 10 + 48 * column : 22 + 48 * column]
        image[0][at] = 600 + 25 * (4 * row + column)
        truth[at] = rng.random((12, 12)) < 0.5 + 0.015 * (4 * row + column)
    (tmp_path / "valley").mkdir()
    write_raster(tmp_path / "valley" / "rgb.tif", image.astype(np.uint16), nodata=0, names=BANDS)
    write_raster(tmp_path / "valley" / "labels.tif", truth, nodata=255)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_model(folder: Path, **changes: object) -> Card:
    folder.mkdir()
    networks = tuple(
        registry.save_network(Brightness(s), folder, f"bright{i}", "Brightness", {}) for i, s in enumerate((0.0, 1.5))
    )
    statistics = Normalizer(BANDS, (500.0,) * 3, (50.0,) * 3, "asinh").to_dict()
    thresholds = {"balanced": 0.5, "recall": 0.2, "precision": 0.8}
    card = Card("bright", "1", "MIT", networks, BANDS, "dn", "asinh", statistics, 10.0, thresholds, "none")
    card = replace(card, **changes)  # type: ignore[arg-type]
    card.save(folder)
    return card


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def calibrated(out: str = "fitted", *more: object) -> Card:
    done = run("models", "calibrate", "bright", "--data", "valley", "--out", out, *more)
    assert done.exit_code == 0, done.output
    return registry.load_card(out)


def mapped(model: str, name: str, **more: object) -> gpd.GeoDataFrame:
    options = MapOptions("valley/rgb.tif", Path(f"{name}.gpkg"), prob=Path(f"{name}.tif"), device="cpu", dtype="fp32")
    map_scene(replace(options, models=(model,), min_area=0.0, **more), Silent())  # type: ignore[arg-type]
    return gpd.read_file(f"{name}.gpkg", layer="landslides")


def layers(name: str) -> tuple[np.ndarray, dict[str, str]]:
    with rasterio.open(f"{name}.tif") as file:
        return file.read(), file.tags()


def test_a_card_of_before_is_taken_at_its_word(place: Path) -> None:
    path = place / "bright" / "card.json"
    values = json.loads(path.read_text())
    del values["calibration"]
    path.write_text(json.dumps(values))
    card = registry.load_card("bright")
    assert card.calibration == {}
    assert card.uncalibrated() == card


@pytest.mark.parametrize(
    "wrong",
    [{"slope": 0}, {"slope": -1}, {"slope": None}, {"slope": "x"}, {"intercept": float("nan")}, {"method": "magic"}],
)
def test_a_damaged_calibration_is_refused(place: Path, wrong: dict[str, object]) -> None:
    save_model(place / "broken", calibration=LINE | wrong)
    with pytest.raises(ModelError, match=r"card\.json is"):
        registry.load_card("broken")


def test_calibrating_keeps_networks_and_thresholds_draw_the_same(place: Path) -> None:
    card, before = calibrated(), registry.load_card("bright")
    line = Calibration.from_dict(card.calibration)
    assert card.networks == before.networks
    assert {p.name for p in (place / "fitted").iterdir()} == {"card.json", "bright0.safetensors", "bright1.safetensors"}
    for name, threshold in before.thresholds.items():
        assert card.thresholds[name] == pytest.approx(line.apply(threshold))
        assert card.uncalibrated().thresholds[name] == pytest.approx(threshold)
    assert card.calibration["split"] == "valley"
    assert sum(card.calibration["pixels"].values()) == 300 * 200
    assert card.calibration["ece"]["after"] < card.calibration["ece"]["before"]
    assert '"slope"' in run("models", "show", "fitted").output
    again = run("models", "calibrate", "fitted", "--data", "valley", "--out", "again", "--json")
    assert json.loads(again.output)["calibration"] == card.calibration


def test_only_the_rows_that_are_named_count(place: Path) -> None:
    card = calibrated("rows", "--validate", "valley:0-128")
    assert card.calibration["split"] == "valley:0-128"
    assert sum(card.calibration["pixels"].values()) == 128 * 200


def test_what_cannot_be_calibrated_leaves_nothing(place: Path) -> None:
    (place / "flat").mkdir()
    (place / "flat" / "rgb.tif").write_bytes((place / "valley" / "rgb.tif").read_bytes())
    write_raster(place / "flat" / "labels.tif", np.zeros((300, 200), np.uint8))
    for args, said in (
        (("--data", "flat", "--out", "new"), "Labels of landslides"),
        (("--data", "valley", "--validate", "hill:0-9", "--out", "new"), "hill:0-9"),
        (("--data", "valley", "--validate", "middle", "--out", "new"), "middle"),
        (("--data", "nowhere", "--out", "new"), "nowhere"),
        (("--data", "valley", "--out", "bright"), "not empty"),
    ):
        done = run("models", "calibrate", "bright", *args)
        assert done.exit_code == 2, done.output
        assert said in done.output
        assert "Traceback" not in done.output
    assert not (place / "new").exists()


# --- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"preset": "recall"}, {"preset": "precision"}], ids=str)
def test_the_map_stays_and_its_probabilities_are_calibrated(place: Path, more: dict[str, object]) -> None:
    line = Calibration.from_dict(calibrated().calibration)
    before, after = mapped("bright", "before", **more), mapped("fitted", "after", **more)
    assert len(before)
    same = ["id", "area_m2", "perimeter_m", "agreement", "edge", "geometry"]
    assert after[same].equals(before[same])
    (old, _), (new, tags) = layers("before"), layers("after")
    assert np.allclose(new[0], line.apply(old[0]), atol=1e-5)
    assert np.array_equal(new[1], old[1])
    threshold = registry.load_card("fitted").thresholds[str(more.get("preset", "balanced"))]
    assert float(tags["THRESHOLD"]) == threshold
    polygonize(PolygonizeOptions(Path("after.tif"), Path("again.gpkg"), min_area=0.0), Silent())
    again = gpd.read_file("again.gpkg", layer="landslides")
    assert again.drop(columns="scene").equals(after.drop(columns="scene"))


def test_probabilities_mean_what_they_say(place: Path) -> None:
    calibrated()
    truth = rasterio.open("valley/labels.tif").read(1)
    off = {}
    for model in ("bright", "fitted"):
        mapped(model, model)
        prob = layers(model)[0][0]
        high = prob > np.quantile(prob, 0.8)
        off[model] = abs(prob[high].mean() - truth[high].mean())
    assert off["fitted"] < off["bright"] / 2


def test_the_record_says_how_it_was_calibrated(place: Path) -> None:
    card = calibrated()
    mapped("fitted", "after")
    mapped("bright", "before")
    after, before = (json.loads(Path(f"{n}.gpkg.json").read_text())["models"] for n in ("after", "before"))
    assert after[0]["calibration"] == card.calibration
    assert before[0]["calibration"] is None
    assert json.loads(layers("after")[1]["PROVENANCE"])["models"] == after


@pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is not installed")
def test_the_crf_weighs_what_the_networks_say(place: Path) -> None:
    line = Calibration.from_dict(calibrated().calibration)
    before, after = mapped("bright", "before", crf=True), mapped("fitted", "after", crf=True)
    assert after.area_m2.sum() == pytest.approx(before.area_m2.sum(), rel=1e-3)
    old, new = layers("before")[0][0], layers("after")[0][0]
    assert np.allclose(new, line.apply(old), atol=2e-3)
    assert not np.allclose(old, mapped_without(), atol=1e-2)  # it did something
    record = json.loads(Path("after.gpkg.json").read_text())["settings"]
    assert record["crf"]["threshold"] == pytest.approx(0.5)


def mapped_without() -> np.ndarray:
    mapped("bright", "plain", crf=False)
    return layers("plain")[0][0]


def test_two_models_are_averaged_each_by_its_own_calibration(place: Path) -> None:
    line = Calibration.from_dict(calibrated().calibration)
    mapped("bright", "before")
    options = MapOptions("valley/rgb.tif", Path("both.gpkg"), prob=Path("both.tif"), device="cpu", dtype="fp32")
    result = map_scene(replace(options, models=("bright", "fitted")), Silent())
    old, both = layers("before")[0][0], layers("both")[0][0]
    assert np.allclose(both, (old + line.apply(old)) / 2, atol=1e-5)
    cards = [registry.load_card(name) for name in ("bright", "fitted")]
    assert result.summary["threshold"] == pytest.approx(np.mean([c.thresholds["balanced"] for c in cards]))


def test_a_run_is_not_resumed_with_another_calibration(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated()

    def breaks(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = MapOptions("valley/rgb.tif", Path("out.gpkg"), models=("fitted",), device="cpu", dtype="fp32")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "vectorize", breaks)
        with pytest.raises(KeyboardInterrupt):
            map_scene(options, Silent())
    path = place / "fitted" / "card.json"
    values = json.loads(path.read_text())
    values["calibration"]["intercept"] += 0.1
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="calibration"):
        map_scene(replace(options, resume=True), Silent())


def test_uncertainty_of_a_landslide_is_that_of_its_surest_pixel(place: Path) -> None:
    found = mapped("bright", "before")
    layer = layers("before")[0]
    for row in found.itertuples():
        inside = rasterio.features.geometry_mask(
            [row.geometry], layer.shape[1:], rasterio.open("before.tif").transform, invert=True
        )
        sure = (layer[0] - layer[2])[inside].max()
        assert row.uncertainty == pytest.approx(1 - sure, abs=1e-6)
    assert found.uncertainty.between(0, 1).all()
    assert np.ptp(found.uncertainty) > 0.01


@given(st.integers(1, 400), st.integers(1, 97))
def test_a_value_does_not_depend_on_where_rows_are_cut(size, first):
    """Resumed runs and clusters cut rows elsewhere, and give the same bytes."""
    prob = torch.from_numpy(np.random.default_rng(size).random(size + first, np.float32))
    calibration = Calibration(0.6, -0.9)
    whole = calibration(prob)
    assert torch.equal(whole[first:], calibration(prob[first:].clone()))
    assert np.allclose(whole, calibration.apply(prob.numpy().astype(np.float64)), atol=1e-6)
