"""The bundled model on real scenes and on the demo, through the installed command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import pytest

from l4s_geo.models import registry

from .conftest import DATA

COMMAND = str(Path(sys.executable).with_name("l4s-map"))
HOKKAIDO = DATA / "hokkaido_s2"


def run(*args, code=0):
    done = subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def summary(*args):
    return json.loads(run(*args, "--json", "-q").stdout)


def test_the_bundled_model_is_whole_and_small():
    assert registry.DEFAULT in registry.bundled_names()
    model = registry.find(registry.DEFAULT)
    assert model.card.bands == ("B4", "B3", "B2")
    assert 2 <= len(model.card.networks) <= 3
    for network in model.card.networks:
        registry.load_network(model, network)
    assert sum(p.stat().st_size for p in registry.BUNDLED.rglob("*.safetensors")) < 30e6


def test_demo_maps_its_own_scene(tmp_path):
    found = summary("demo", "--out", tmp_path / "demo", "--size", 256)
    layer = gpd.read_file(tmp_path / "demo" / "landslides.gpkg", layer="landslides")
    assert len(layer) == found["map"]["landslides"] > 0
    assert layer.slope_mean.between(0, 90).all()
    assert layer.is_valid.all()
    assert found["evaluation"]["f1"] > 0.2


@pytest.mark.skipif(not HOKKAIDO.is_dir(), reason="the Hokkaido scene is not here")
def test_hokkaido_before_and_after_the_earthquake(tmp_path):
    args = ["--dem", HOKKAIDO / "dem.tif", "--slope", HOKKAIDO / "slope.tif"]
    after = summary(f"{HOKKAIDO}/post_B*.tif", "--out", tmp_path / "post.gpkg", *args)
    before = summary(f"{HOKKAIDO}/pre_B*.tif", "--out", tmp_path / "pre.geojson", *args)
    assert 0.02 < after["landslide_share"] < 0.15
    assert before["landslide_share"] < after["landslide_share"] / 2
    assert before["seen_share"] < 0.7
    layer = gpd.read_file(tmp_path / "post.gpkg", layer="landslides")
    assert layer.crs == "EPSG:4326"
    assert layer.slope_mean.median() > 10
    assert gpd.read_file(tmp_path / "pre.geojson").crs == "EPSG:4326"


@pytest.mark.skipif(not (DATA / "l4s_h5").is_dir(), reason="the original L4S patches are not here")
def test_an_original_l4s_patch(tmp_path):
    patch = min((DATA / "l4s_h5").glob("*.h5"))
    found = summary(patch, "--out", tmp_path / "patch.gpkg")
    assert found["seen_share"] == 1
    assert any("position" in note for note in found["notes"])


@pytest.mark.skipif(not (DATA / "bigearthnet").is_dir(), reason="the BigEarthNet folders are not here")
def test_a_folder_of_bands_on_three_grids(tmp_path):
    folder = min(p for p in (DATA / "bigearthnet").glob("*/*") if p.is_dir())
    found = summary(folder, "--out", tmp_path / "ben.gpkg")
    assert found["seen_share"] == 1
    assert (tmp_path / "ben.gpkg.json").exists()
