"""Scenes to polygons, end to end, with a network whose answer is known: brightness."""

from __future__ import annotations

import json
import sqlite3

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from l4s_geo.calibration import Calibration, Calibrations
from l4s_geo.errors import InputError, ModelError, OutputError
from l4s_geo.models import registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.normalize import Normalizer
from l4s_geo.pipeline import MapOptions, map_scene
from l4s_geo.plan import summarize
from l4s_geo.polygonize import PolygonizeOptions, polygonize
from l4s_geo.progress import Silent

BANDS = ("B4", "B3", "B2")


class Brightness(torch.nn.Module):
    """Calls what is brighter than three scales landslide: a pointwise model with a known answer."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([4.0]))
        self.shift = torch.nn.Parameter(torch.tensor([shift]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x[:, :1] - np.arcsinh(3.0)) + self.shift


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model directory with two members that differ a little."""
    real = zoo.build
    monkeypatch.setattr(
        zoo, "build", lambda name, args, n: Brightness() if name == "Brightness" else real(name, args, n)
    )
    folder = tmp_path / "bright"
    folder.mkdir()
    networks = tuple(
        registry.save_network(Brightness(s), folder, f"bright{i}", "Brightness", {}) for i, s in enumerate((0.0, 0.5))
    )
    statistics = Normalizer(BANDS, (500.0,) * 3, (50.0,) * 3, "asinh")
    thresholds = {"balanced": 0.5, "recall": 0.2, "precision": 0.8}
    Card(
        "bright",
        "1",
        "Apache-2.0",
        networks,
        BANDS,
        "dn",
        "asinh",
        statistics.to_dict(),
        10.0,
        thresholds,
        "none",
    ).save(folder)
    return str(folder)


def write(path, image, crs="EPSG:32651", transform=None, nodata=0, names=BANDS, dtype="uint16"):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(image),
        dtype=dtype,
        height=image.shape[1],
        width=image.shape[2],
        crs=crs,
        transform=transform or from_origin(3e5, 2.6e6, 10, 10),
        nodata=nodata,
    ) as f:
        f.write(image.astype(dtype))
        f.descriptions = names
    return path


@pytest.fixture
def scene(tmp_path):
    """300 x 200 pixels with three landslides: one across patch borders, one at the edge of the hole, one tiny."""
    rng = np.random.default_rng(1)
    image = rng.normal(500, 50, (3, 300, 200)).clip(300, 640)
    image[:, 100:160, 40:90] = 1200
    image[:, 250:260, 150:170] = 1200
    image[:, 10:11, 10:12] = 1200
    image[:, 240:300, 170:] = 0
    return write(tmp_path / "scene_20180911.tif", image)


def options(scene, model, tmp_path, **changes):
    return MapOptions(
        scene=str(scene), out=tmp_path / "out.gpkg", models=(model,), dtype="fp32", device="cpu", **changes
    )


def test_the_whole_flow(scene, model, tmp_path):
    result = map_scene(options(scene, model, tmp_path, prob=tmp_path / "prob.tif"), Silent())
    found = gpd.read_file(tmp_path / "out.gpkg", layer="landslides")
    assert sorted(found.area_m2) == pytest.approx([20_000, 300_000], rel=1e-3)
    assert found.crs == "EPSG:32651"
    big = found.loc[found.area_m2.idxmax()]
    assert big.geometry.bounds == (300400, 2598400, 300900, 2599000)
    assert (big.length_m, big.width_m) == pytest.approx((600, 500), rel=1e-3)
    assert found.sort_values("area_m2").edge.tolist() == [True, False]
    assert set(found.model) == {"bright"}
    assert set(found.date) == {"2018-09-11"}
    assert found.slope_mean.isna().all()
    assert (found.agreement > 0.99).all()
    assert result.summary["landslides"] == 2
    with rasterio.open(tmp_path / "prob.tif") as f:
        prob = f.read(1)
        assert f.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert np.isnan(prob[240:, 170:]).all()
        assert np.isnan(f.read(2)[240:, 170:]).all()
        assert (prob[100:160, 40:90] > 0.9).all()
        assert json.loads(f.tags()["PROVENANCE"])["models"][0]["name"] == "bright"
    record = json.loads((tmp_path / "out.gpkg.json").read_text())
    assert record["inputs"]["scene"]["bytes"] == scene.stat().st_size
    # the ground's 500 and, on a twentieth of the scene, landslides that count no more than the 98 % quantile
    assert 500 < record["normalization"]["center"][0] < 540
    assert record["seen_share"] == pytest.approx(1 - 60 * 30 / 60000)
    with sqlite3.connect(tmp_path / "out.gpkg") as db:
        assert {n for (n,) in db.execute("select table_name from gpkg_contents")} >= {
            "landslides",
            "not_seen",
        }
        assert db.execute("select count(*) from layer_styles where useAsDefault").fetchone()[0] >= 1
    unseen = gpd.read_file(tmp_path / "out.gpkg", layer="not_seen")
    assert unseen.area_m2.sum() == pytest.approx(60 * 30 * 100, rel=1e-3)
    assert not list(tmp_path.glob(".l4s*"))


@pytest.mark.parametrize(
    "changes", [{"overlap": 0.0}, {"overlap": 0.75}, {"batch_size": 1}, {"tta": True}, {"preset": "fast"}]
)
def test_a_pointwise_model_gives_the_same_map_however_it_is_cut(scene, model, tmp_path, changes):
    expected = map_scene(options(scene, model, tmp_path), Silent()).summary
    found = map_scene(options(scene, model, tmp_path, overwrite=True, **changes), Silent()).summary
    assert (found["landslides"], found["area_m2"]) == (expected["landslides"], expected["area_m2"])


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 300), (300, 1), (127, 129), (128, 128)])
def test_any_size_from_one_pixel_up(model, tmp_path, h, w):
    image = np.full((3, h, w), 500.0)
    image[:, : (h + 1) // 2] = 900
    write(tmp_path / "s.tif", image)
    statistics = tmp_path / "stats.json"
    Normalizer(BANDS, (500.0,) * 3, (50.0,) * 3, "asinh").save(statistics)
    chosen = options(tmp_path / "s.tif", model, tmp_path, normalize=str(statistics), min_area=0.0)
    summary = map_scene(chosen, Silent()).summary
    assert summary["area_m2"] == pytest.approx((h + 1) // 2 * w * 100, rel=1e-3)


def test_nothing_found_is_a_result(model, tmp_path):
    write(tmp_path / "s.tif", np.random.default_rng(0).normal(500, 10, (3, 40, 40)).clip(490, 505))
    result = map_scene(options(tmp_path / "s.tif", model, tmp_path), Silent())
    assert "No landslides" in result.message
    found = gpd.read_file(tmp_path / "out.gpkg", layer="landslides")
    assert len(found) == 0
    assert {"area_m2", "prob_mean", "slope_mean", "edge", "model", "date"} <= set(found.columns)


def test_a_geographic_scene_is_mapped_in_metres_and_written_in_its_own_crs(model, tmp_path):
    image = np.random.default_rng(1).normal(500, 30, (3, 200, 200)).clip(400, 600)
    image[:, 50:100, 50:100] = 1500
    degree = 8.983152841195215e-05
    write(tmp_path / "s.tif", image, crs="EPSG:4326", transform=from_origin(141.9, 42.7, degree, degree))
    dem = np.tile(np.linspace(300, 0, 80), (80, 1))[None]
    at = from_origin(141.89, 42.71, 5e-4, 5e-4)
    write(tmp_path / "dem.tif", dem, crs="EPSG:4326", transform=at, nodata=-32768, names=("dem",), dtype="int16")
    result = map_scene(options(tmp_path / "s.tif", model, tmp_path, dem=str(tmp_path / "dem.tif")), Silent())
    (found,) = gpd.read_file(tmp_path / "out.gpkg", layer="landslides").itertuples()
    side = 50 * degree
    assert found.geometry.centroid.coords[0] == pytest.approx((141.9 + 75 * degree, 42.7 - 75 * degree), abs=degree)
    metres = side * 111_320 * np.cos(np.radians(42.7)) * side * 111_100
    assert found.area_m2 == pytest.approx(metres, rel=0.05)
    assert found.aspect_deg == pytest.approx(90, abs=5)
    assert found.slope_mean == pytest.approx(np.degrees(np.arctan(300 / 79 / (5e-4 * 81_800))), rel=0.1)
    assert found.relief_m == pytest.approx(found.elev_max - found.elev_min, abs=0.1)
    assert any("warped" in n for n in result.summary["notes"])


def test_polygonize_gives_the_same_polygons_without_a_network(scene, model, tmp_path):
    map_scene(options(scene, model, tmp_path, prob=tmp_path / "prob.tif"), Silent())
    again = PolygonizeOptions(tmp_path / "prob.tif", tmp_path / "again.gpkg")
    polygonize(again, Silent())
    first, second = (gpd.read_file(tmp_path / n, layer="landslides") for n in ("out.gpkg", "again.gpkg"))
    assert first.drop(columns="geometry").equals(second.drop(columns="geometry"))
    assert first.geometry.geom_equals(second.geometry).all()
    everything = polygonize(
        PolygonizeOptions(tmp_path / "prob.tif", tmp_path / "all.fgb", threshold=0.5, min_area=0), Silent()
    )
    assert everything.summary["landslides"] == 3


def test_polygonize_refuses_other_rasters(scene, tmp_path):
    with pytest.raises(InputError, match="probability"):
        polygonize(PolygonizeOptions(scene, tmp_path / "o.gpkg", threshold=0.5), Silent())
    write(tmp_path / "p.tif", np.full((1, 9, 9), 7.0), names=(None,), nodata=None, dtype="float32")
    with pytest.raises(InputError, match=r"0\.\.1"):
        polygonize(PolygonizeOptions(tmp_path / "p.tif", tmp_path / "o.gpkg", threshold=0.5), Silent())
    with pytest.raises(InputError, match="threshold"):
        polygonize(PolygonizeOptions(tmp_path / "p.tif", tmp_path / "o.gpkg"), Silent())
    assert not list(tmp_path.glob("o.*"))


def test_existing_outputs_survive_every_failure(scene, model, tmp_path):
    out = tmp_path / "out.gpkg"
    out.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        map_scene(options(scene, model, tmp_path), Silent())
    with pytest.raises(InputError):
        map_scene(options(tmp_path / "missing.tif", model, tmp_path, overwrite=True), Silent())
    with pytest.raises(ModelError, match="Unknown model"):
        map_scene(options(scene, "nonsense", tmp_path, overwrite=True), Silent())
    broken = tmp_path / "broken.tif"
    broken.write_bytes(scene.read_bytes()[:-150_000])
    with pytest.raises(InputError, match=r"broken\.tif"):
        map_scene(options(broken, model, tmp_path, overwrite=True), Silent())
    assert out.read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"bright", "broken.tif", "out.gpkg", "scene_20180911.tif"}


def test_a_scene_without_the_models_bands_is_refused(model, tmp_path):
    write(tmp_path / "s.tif", np.full((2, 9, 9), 500), names=("B4", "B8"))
    with pytest.raises(InputError, match="B3, B2"):
        map_scene(options(tmp_path / "s.tif", model, tmp_path), Silent())


def test_agreement_and_uncertainty():
    members = np.array([[[0.9, 0.2]], [[0.1, 0.2]]], np.float32)
    plain = Calibrations(((2, Calibration()),))
    mean, agreement, spread = summarize(torch.from_numpy(members), 0.5, plain).numpy()
    assert np.allclose(mean, [[0.5, 0.2]])
    assert np.allclose(agreement, [[0.5, 0.0]])
    assert np.allclose(spread, [[0.4, 0.0]], atol=1e-4)
