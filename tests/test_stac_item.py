"""STAC items beside outputs: by the command, checked against the JSON schemas that come with pystac."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from pyproj import Geod
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import AssetGeneralMLMExtension, MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.local_validator import get_local_schema_cache
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from referencing import Registry, Resource

from l4s_geo.cli import main
from l4s_geo.models.card import Card
from l4s_geo.provenance.stac_fields import footprint
from l4s_geo.provenance.stac_model import mlm_name
from l4s_geo.scene import Grid
from tests.test_pipeline import model, scene, write  # noqa: F401 (fixtures)

Json = dict[str, Any]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, args), "-q"])


@pytest.fixture
def mapped(tmp_path: Path, scene: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder with a map of every kind of output."""
    monkeypatch.chdir(tmp_path)
    done = run(
        scene.name, "--model", "bright", "--out", "out.gpkg", "--prob", "prob.tif", "--density", "density.tif",
        "--stac", "item.json", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return tmp_path


def load(path: Path) -> Json:
    content: Json = json.loads(path.read_text())
    return content


def faults(item: Json) -> list[str]:
    """What STAC's own schema of an item, with all that it refers to, finds wrong."""
    schemas = get_local_schema_cache()
    registry: Any = Registry().with_resources([(k, Resource.from_contents(v)) for k, v in schemas.items()])
    schema = next(v for k, v in schemas.items() if k.endswith("item-spec/json-schema/item.json"))
    return [e.message for e in Draft7Validator(schema, registry=registry).iter_errors(item)]


def test_both_items_are_valid_stac(mapped: Path) -> None:
    for name in ("item.json", "item-model.json"):
        content = load(mapped / name)
        assert content["stac_version"] == "1.1.0"
        assert not faults(content)
        assert pystac.Item.from_file(mapped / name).to_dict(include_self_link=False)["assets"].keys()
    broken = load(mapped / "item.json") | {"properties": {}}
    assert faults(broken)  # so that the check can fail


def test_every_output_is_an_asset_with_its_checksum(mapped: Path) -> None:
    item = pystac.Item.from_file(mapped / "item.json")
    files = {(mapped / a.href).resolve().name for a in item.assets.values()}
    others = {"item.json", "item-model.json", "scene_20180911.tif", "prob.qml", "density.qml"}
    written = {p.name for p in mapped.iterdir() if p.is_file()} - others
    assert files == written == {f"{n}{e}" for n in ("out.gpkg", "prob.tif", "density.tif") for e in ("", ".json")}
    for asset in item.assets.values():
        assert not Path(asset.href).is_absolute()
        data = (mapped / asset.href).read_bytes()
        file = FileExtension.ext(asset)
        assert (file.size, file.checksum) == (len(data), "1220" + hashlib.sha256(data).hexdigest())
        assert asset.roles
    types = {key: asset.media_type for key, asset in item.assets.items()}
    assert types["landslides"] == pystac.MediaType.GEOPACKAGE
    assert (types["probability"], types["density"]) == (pystac.MediaType.COG, pystac.MediaType.GEOTIFF)


@pytest.mark.parametrize("extension", [".fgb", ".geojson", ".parquet", ".shp"])
def test_every_format_has_its_media_type(mapped: Path, extension: str) -> None:
    done = run("--from", "out.gpkg.json", "--out", f"o{extension}", "--stac", "o-item.json")
    assert done.exit_code == 0, done.stderr
    item = pystac.Item.from_file(mapped / "o-item.json")
    assert not faults(load(mapped / "o-item.json"))
    expected = {
        ".fgb": pystac.MediaType.FLATGEOBUF,
        ".geojson": pystac.MediaType.GEOJSON,
        ".parquet": pystac.MediaType.VND_APACHE_PARQUET,
        ".shp": "application/vnd.shp",
    }
    assert item.assets["landslides"].media_type == expected[extension]
    files = {(mapped / a.href).name for a in item.assets.values()}
    assert files == {p.name for p in mapped.glob("o.*")} - {"o.qml"}
    assert ("landslides.dbf" in item.assets) == (extension == ".shp")
    code = item.assets["landslides"].extra_fields["proj:code"]
    assert code == ("EPSG:4326" if extension == ".geojson" else "EPSG:32651")


def test_place_and_time_are_those_of_the_scene(mapped: Path) -> None:
    content = load(mapped / "item.json")
    properties = content["properties"]
    assert properties["datetime"] == properties["start_datetime"] == "2018-09-11T00:00:00Z"
    assert properties["end_datetime"] == "2018-09-11T23:59:59Z"
    projection = ProjectionExtension.ext(pystac.Item.from_file(mapped / "item.json"))
    with rasterio.open(mapped / "prob.tif") as raster:
        assert projection.code == raster.crs.to_string() == "EPSG:32651"
        assert projection.shape == list(raster.shape)
        assert projection.transform == list(raster.transform)[:6]
    shape = shapely.geometry.shape(content["geometry"])
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(shape)  # positive: against the clock, as RFC 7946 wants
    assert area == pytest.approx(200 * 300 * 100, rel=0.002)
    assert content["bbox"] == pytest.approx(shape.bounds)


def test_a_scene_without_a_date_is_of_some_time_since_sentinel_2(mapped: Path) -> None:
    (mapped / "scene_20180911.tif").rename(mapped / "scene.tif")
    done = run("scene.tif", "--from", "out.gpkg.json", "--out", "a.gpkg", "--stac", "a.json")
    assert done.exit_code == 0, done.stderr
    content = load(mapped / "a.json")
    assert not faults(content)
    assert content["properties"]["datetime"] is None
    assert content["properties"]["start_datetime"] == "2015-06-23T00:00:00Z"
    assert re.fullmatch(r"20\d\d-.*Z", content["properties"]["end_datetime"])


def test_rasters_say_what_their_bands_hold(mapped: Path) -> None:
    assets = load(mapped / "item.json")["assets"]
    for key in ("probability", "density"):
        with rasterio.open(mapped / assets[key]["href"]) as raster:
            values = raster.read(masked=True)
            names = raster.descriptions
            assert assets[key]["proj:shape"] == list(raster.shape)
        for band, name, found in zip(values, names, assets[key]["bands"], strict=True):
            seen = np.ma.masked_invalid(band).compressed().astype(float)
            assert (found["name"], found["data_type"], found["nodata"]) == (name, "float32", "nan")
            statistics = found["statistics"]
            assert (statistics["minimum"], statistics["maximum"]) == (seen.min(), seen.max())
            assert statistics["mean"] == pytest.approx(seen.mean())
            assert statistics["stddev"] == pytest.approx(seen.std(), abs=1e-6)
            assert statistics["valid_percent"] == pytest.approx(100 * seen.size / band.size, abs=1e-3)
    assert assets["density"]["bands"][0]["unit"] == "m2/km2"


def test_where_it_comes_from_is_said(mapped: Path) -> None:
    content = load(mapped / "item.json")
    links = {link["title"]: link for link in content["links"]}
    assert {link["rel"] for link in links.values()} == {"derived_from"}
    data = (mapped / links["scene"]["href"]).read_bytes()
    assert links["scene"]["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    assert links["Model"]["href"] == "./item-model.json"
    properties = content["properties"]
    assert properties["processing:level"] == "L4"
    assert properties["processing:software"] == load(mapped / "out.gpkg.json")["versions"]
    assert "pixels from 0.5 on outlined" in properties["processing:lineage"]
    asset = content["assets"]["landslides"]
    assert asset["processing:expression"] == {"format": "stac-mlm", "expression": "./item-model.json"}
    assert asset["mlm:name"] == load(mapped / "item-model.json")["properties"]["mlm:name"]
    assert properties["l4s:landslides"] == 2


def test_the_model_is_described_in_an_item_of_its_own(mapped: Path) -> None:
    item = pystac.Item.from_file(mapped / "item-model.json")
    found, record = MLMExtension.ext(item), load(mapped / "out.gpkg.json")
    assert (found.mlm_name, found.architecture, found.framework) == ("bright", "Brightness", "PyTorch")
    assert found.tasks == ["semantic-segmentation"]
    (image,) = found.input
    assert image.bands == ["B4", "B3", "B2"]
    assert image.input.shape == [-1, 3, 128, 128]
    scalings = image.properties["value_scaling"]  # a list, by the schema of MLM, but for pystac a single one
    assert [s["mean"] for s in scalings] == record["normalization"]["center"]
    assert [s["stddev"] for s in scalings] == record["normalization"]["scale"]
    assert image.pre_processing_function is not None
    assert image.pre_processing_function.expression == "numpy.arcsinh"
    (output,) = found.output
    assert [c.name for c in output.classes or []] == ["background", "landslide"]
    assert found.hyperparameters is not None
    assert found.hyperparameters.to_dict()["threshold"] == 0.5
    assert "mlm:pretrained_source" not in item.properties
    weights = {n.name: n for n in Card.load(mapped / "bright").networks}
    assert {*item.assets} == {*weights}
    for name, asset in item.assets.items():
        assert "mlm:model" in (asset.roles or [])
        assert AssetGeneralMLMExtension.ext(asset).artifact_type
        assert FileExtension.ext(asset).checksum == "1220" + weights[name].sha256
        assert (mapped / asset.href).is_file()
    assert item.properties["bands"] == [{"name": name} for name in image.bands]  # which the schema of MLM wants
    assert item.geometry is None
    assert item.bbox is None


def test_a_run_is_repeated_from_its_item(mapped: Path) -> None:
    done = run("--from", "item.json", "--out", "again.gpkg")
    assert done.exit_code == 0, done.stderr
    assert load(mapped / "again.gpkg.json")["record"]["repeats"] == str(mapped / "out.gpkg.json")


def test_items_may_not_take_the_place_of_other_files(mapped: Path) -> None:
    before = {p: p.read_bytes() for p in mapped.iterdir() if p.is_file()}
    for stac, hint in (
        ("item.json", "exists. Give --overwrite"),
        ("new.gpkg.json", "where the provenance of --out goes"),
        ("item.tif", "no format for .tif"),
        ("no/item.json", "there is no folder"),
    ):
        done = run("--from", "out.gpkg.json", "--out", "new.gpkg", "--stac", stac, "--device", "cpu")
        assert done.exit_code == 2
        assert hint in done.stderr
    (mapped / "item.json").rename(mapped / "kept.json")
    done = run("--from", "out.gpkg.json", "--out", "new.gpkg", "--stac", "item.json")
    assert "item-model.json exists" in done.stderr
    assert {p for p in mapped.iterdir() if p.is_file()} ^ {*before} == {mapped / "kept.json", mapped / "item.json"}
    (mapped / "kept.json").rename(mapped / "item.json")
    assert {p: p.read_bytes() for p in mapped.iterdir() if p.is_file()} == before


def test_without_the_option_there_is_no_item_and_no_pystac(mapped: Path) -> None:
    code = "import sys, l4s_geo.results; print('pystac' in sys.modules, 'antimeridian' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert run("--from", "out.gpkg.json", "--out", "b.gpkg").exit_code == 0
    assert {p.name for p in mapped.glob("b*") if p.is_file()} == {"b.gpkg", "b.gpkg.json"}


def grid(crs: str, transform: Affine, width: int = 100, height: int = 80) -> Grid:
    return Grid(CRS.from_string(crs), transform, width, height)


def test_a_footprint_across_the_antimeridian_is_cut_there() -> None:
    for crossing in (
        grid("EPSG:32660", from_origin(800_000, 100_000, 1000, 1000)),
        grid("EPSG:4326", from_origin(179.5, 1, 0.01, 0.01)),
        grid("EPSG:4326", from_origin(-180.5, 1, 0.01, 0.01)),
    ):
        geometry, bbox = footprint(crossing)
        assert geometry is not None
        assert bbox is not None
        assert geometry["type"] == "MultiPolygon"
        shape = shapely.geometry.shape(geometry)
        assert shape.is_valid
        assert -180 <= shape.bounds[0] <= shape.bounds[2] <= 180
        assert bbox[0] > 179 > -179 > bbox[2]  # west is more than east
        assert Geod(ellps="WGS84").geometry_area_perimeter(shape)[0] == pytest.approx(
            crossing.width * crossing.height * np.prod(crossing.pixel_size_m()), rel=0.02
        )


def test_a_footprint_around_a_pole_reaches_it() -> None:
    for crs, pole in (("EPSG:3413", 90), ("EPSG:3031", -90)):
        geometry, bbox = footprint(grid(crs, from_origin(-500_000, 500_000, 10_000, 10_000), 100, 100))
        assert geometry is not None
        assert bbox is not None
        shape = shapely.geometry.shape(geometry)
        assert shape.is_valid
        assert (bbox[0], bbox[2]) == (-180, 180)
        assert pole in (bbox[1], bbox[3])
        assert 80 < min(abs(bbox[1]), abs(bbox[3])) < 90


def test_turned_and_flipped_grids_have_the_same_kind_of_footprint() -> None:
    at = Affine.translation(500_000, 4_700_000)
    for turned in (
        at * Affine.rotation(30) * Affine.scale(10, -10),
        at * Affine.scale(10, 10),
        at * Affine.scale(-10, -10),
        at * Affine.scale(-10, 10),
    ):
        geometry, _ = footprint(grid("EPSG:32654", turned))
        assert geometry is not None
        shape = shapely.geometry.shape(geometry)
        assert Geod(ellps="WGS84").geometry_area_perimeter(shape)[0] == pytest.approx(100 * 80 * 100, rel=0.002)


def test_a_scene_without_a_place_has_none_in_its_item(mapped: Path) -> None:
    nowhere = CRS.from_wkt('LOCAL_CS["unknown position",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')
    assert footprint(Grid(nowhere, from_origin(0, 0, 10, 10), 9, 9)) == (None, None)
    with rasterio.open(mapped / "scene_20180911.tif") as source:
        write(mapped / "local.tif", source.read(), crs=nowhere, transform=from_origin(0, 3000, 10, 10))
    done = run("local.tif", "--from", "out.gpkg.json", "--out", "l.gpkg", "--stac", "l.json")
    assert done.exit_code == 0, done.stderr
    content = load(mapped / "l.json")
    assert not faults(content)
    assert content["geometry"] is None
    assert "bbox" not in content
    assert "wkt2" not in content["properties"] or content["properties"]["proj:wkt2"]


@settings(max_examples=200)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=2))
def test_names_of_models_are_such_as_mlm_allows(names: list[str]) -> None:
    name = mlm_name({"models": [{"name": n} for n in names]})
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", name)
