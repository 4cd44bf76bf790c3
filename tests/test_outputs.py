from __future__ import annotations

import json
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from geopandas.testing import assert_geodataframe_equal
from numpy.typing import NDArray
from rasterio.crs import CRS

from l4s_geo.errors import OutputError
from l4s_geo.outputs import (
    VECTOR_DRIVERS,
    atomic,
    check_output,
    write_cog,
    write_provenance,
    write_vector,
)
from l4s_geo.polygons import Block, scene_polygons

LOCAL = CRS.from_wkt('LOCAL_CS["nominal",UNIT["metre",1]]')
UTM = CRS.from_epsg(32654)
TEN = Affine(10, 0, 500_000, 0, -10, 4_700_000)
PROB = np.array([[0.9, 0.1, np.nan], [0.1, 0.1, 0.1], [0.7, 0.7, 0.1]], np.float32)


def layers(prob: NDArray[np.float32] = PROB, crs: CRS = UTM) -> tuple[list[gpd.GeoDataFrame], list[gpd.GeoDataFrame]]:
    """Landslides and what was not seen, in parts."""
    origin = {"model": "a, b", "scene": "Ätna", "date": None}
    found = scene_polygons([Block(0, prob)], transform=TEN, crs=crs, threshold=0.5)
    return [part.assign(**origin) for part in found.landslides], [*found.not_seen]


def read(path: Path, **options: str) -> gpd.GeoDataFrame:
    return gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path, **options)


def save(path: Path, values: NDArray[np.float32], bands: tuple[str, ...], crs: CRS = UTM) -> None:
    count, height, width = values.shape
    profile = {"count": count, "height": height, "width": width, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=TEN, **profile) as raster:
        raster.write(values)
        raster.descriptions = bands


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("extension", VECTOR_DRIVERS)
def test_polygons_come_back_as_they_were(tmp_path: Path, extension: str) -> None:
    (found,), not_seen = layers()
    path = tmp_path / f"out{extension}"
    write_vector(path, [found], not_seen)
    back = read(path, **({"layer": "landslides"} if extension == ".gpkg" else {}))
    assert back.crs == ("EPSG:4326" if extension == ".geojson" else "EPSG:32654")
    short = 10 if extension == ".shp" else None
    assert list(back.columns.drop("geometry")) == [c[:short] for c in found.columns.drop("geometry")]
    back, found = (frame.sort_values("id", ignore_index=True) for frame in (back, found))
    np.testing.assert_allclose(back["area_m2"], found["area_m2"])
    assert back["edge"].astype(bool).tolist() == [True, True]
    assert back["scene"].tolist() == ["Ätna", "Ätna"]
    assert back["aspect_deg"].isna().all()
    assert back["date"].isna().all()
    same = shapely.equals_exact(back.to_crs(32654).normalize(), found.normalize(), tolerance=0.02)
    assert same.all() or extension == ".shp"
    np.testing.assert_allclose(back.to_crs(32654).area, found.area, rtol=1e-3)


@pytest.mark.parametrize("extension", VECTOR_DRIVERS)
def test_nothing_found_gives_a_layer_with_all_its_fields(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"out{extension}"
    (found,), not_seen = layers(np.full((3, 3), 0.1, np.float32))
    write_vector(path, [found], not_seen)
    back = read(path, **({"layer": "landslides"} if extension == ".gpkg" else {}))
    assert len(back) == 0
    if extension != ".geojson":  # the fields of GeoJSON are those of its features
        assert {c[:10] for c in back.columns} == {c[:10] for c in found.columns}


@pytest.mark.parametrize("extension", VECTOR_DRIVERS)
def test_a_table_in_parts_is_written_as_the_whole(tmp_path: Path, extension: str) -> None:
    (found,), not_seen = layers(np.tile(PROB, (3, 4)))
    whole, parts = tmp_path / f"whole{extension}", tmp_path / f"parts{extension}"
    write_vector(whole, [found], not_seen)
    write_vector(parts, [found[:0], found[:1], found[1:5], found[5:]], not_seen)
    layer = {"layer": "landslides"} if extension == ".gpkg" else {}
    assert_geodataframe_equal(read(parts, **layer), read(whole, **layer))
    if extension == ".gpkg":  # its index also finds what came later
        last = tuple(found.geometry.iloc[-1].bounds)
        assert found["id"].iloc[-1] in gpd.read_file(parts, bbox=last, **layer)["id"].tolist()


def test_geopackage_opens_styled(tmp_path: Path) -> None:
    path = tmp_path / "out.gpkg"
    write_vector(path, *layers())
    kinds = dict(pyogrio.list_layers(path))
    assert kinds == {"landslides": "MultiPolygon", "not_seen": "MultiPolygon", "layer_styles": None}
    assert len(gpd.read_file(path, layer="not_seen")) == 1
    with closing(sqlite3.connect(path)) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(layer_styles)")]
        contents = dict(db.execute("SELECT table_name, data_type FROM gpkg_contents"))
        styles = db.execute(
            "SELECT f_table_catalog, f_table_schema, f_table_name, useAsDefault, update_time, styleQML "
            "FROM layer_styles s JOIN gpkg_geometry_columns g "
            "ON g.table_name = s.f_table_name AND g.column_name = s.f_geometry_column"
        ).fetchall()
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    assert " ".join(columns) == (
        "id f_table_catalog f_table_schema f_table_name f_geometry_column styleName styleQML styleSLD "
        "useAsDefault description owner ui update_time"
    )
    assert contents == {"landslides": "features", "not_seen": "features", "layer_styles": "attributes"}
    assert [row[:4] for row in styles] == [("", "", "landslides", 1), ("", "", "not_seen", 1)]
    assert all(row[4] for row in styles)
    renderer = ElementTree.fromstring(styles[0][5]).find("renderer-v2")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("attr")) == ("graduatedSymbol", "prob_mean")


def test_style_classes_cover_every_probability_and_have_symbols(tmp_path: Path) -> None:
    path = tmp_path / "out.gpkg"
    write_vector(path, *layers())
    qml = pyogrio.read_dataframe(path, layer="layer_styles")["styleQML"][0]
    root = ElementTree.fromstring(qml)
    classes = [(float(r.get("lower")), float(r.get("upper")), r.get("symbol")) for r in root.iter("range")]
    bounds = [low for low, _, _ in classes] + [classes[-1][1]]
    assert (bounds[0], bounds[-1]) == (0, 1)
    assert [high for _, high, _ in classes] == bounds[1:]
    assert [s.get("name") for s in root.iter("symbol")] == [symbol for *_, symbol in classes]
    fills = [layer for layer in root.iterfind(".//symbol/layer") if _options(layer).get("color")]
    assert len(fills) == len(classes)
    colours = np.array([_options(layer)["color"].split(",") for layer in fills], float)
    assert ((colours[:, 3] > 0) & (colours[:, 3] < 255)).all()
    lightness = colours[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) < -20).all(), "classes can be told apart without colour"


def _options(layer: ElementTree.Element) -> dict[str | None, str]:
    return {o.get("name"): o.get("value", "") for o in layer.iter("Option")}


def test_geopackage_without_not_seen_has_no_such_layer(tmp_path: Path) -> None:
    write_vector(tmp_path / "out.gpkg", layers()[0])
    assert pyogrio.list_layers(tmp_path / "out.gpkg")[:, 0].tolist() == ["landslides", "layer_styles"]


def test_a_second_run_replaces_everything_of_the_first(tmp_path: Path) -> None:
    for extension in VECTOR_DRIVERS:
        path = tmp_path / f"out{extension}"
        write_vector(path, *layers())
        before = listing(tmp_path)
        path.with_name(path.name + "-wal").write_bytes(b"left by a crash")
        write_vector(path, *layers(np.full((3, 3), 0.9, np.float32)))
        assert listing(tmp_path) == before
        assert len(read(path, **({"layer": "landslides"} if extension == ".gpkg" else {}))) == 1


def test_positionless_scenes_can_be_written_where_the_format_allows(tmp_path: Path) -> None:
    write_vector(tmp_path / "out.gpkg", *layers(crs=LOCAL))
    assert len(gpd.read_file(tmp_path / "out.gpkg", layer="landslides")) == 2
    with pytest.raises(OutputError, match="place on Earth"):
        write_vector(tmp_path / "out.geojson", *layers(crs=LOCAL))
    assert listing(tmp_path) == ["out.gpkg"]


def test_geojson_follows_rfc_7946(tmp_path: Path) -> None:
    path = tmp_path / "out.geojson"
    write_vector(path, *layers())
    data = json.loads(path.read_text(encoding="utf-8"))
    assert "crs" not in data
    ring = shapely.LinearRing(data["features"][0]["geometry"]["coordinates"][0][0])
    assert ring.is_ccw


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("out.kml", r"\.gpkg \.fgb \.geojson \.parquet \.shp"),
        ("out", "without extension"),
        ("missing/out.gpkg", "no folder"),
        ("folder.gpkg", "is a folder"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_up_front(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.gpkg").mkdir()
    with pytest.raises(OutputError, match=said):
        check_output(tmp_path / name)
    with pytest.raises(OutputError, match=said):
        write_vector(tmp_path / name, *layers())
    assert listing(tmp_path) == ["folder.gpkg"]


def test_unwritable_places_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.gpkg"
    path.touch()
    check_output(path)
    for forbidden, said in ((tmp_path, "not writable"), (path, "protected")):
        monkeypatch.setattr(os, "access", lambda p, _, forbidden=forbidden: Path(p) != forbidden)
        with pytest.raises(OutputError, match=said):
            check_output(path)


def test_a_name_without_folder_and_in_capitals_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_vector(Path("OUT.GPKG"), *layers())
    assert listing(tmp_path) == ["OUT.GPKG"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")

    def fail() -> None:
        with atomic(path) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert path.read_text() == "before"
    assert listing(tmp_path) == ["out.txt"]


def test_a_library_that_fails_midway_becomes_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.gpkg"
    write_vector(path, *layers())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("l4s_geo.outputs.write_styles", full)
    with pytest.raises(OutputError, match=r"out\.gpkg.*disk is full"):
        write_vector(path, *layers())
    assert path.read_bytes() == before
    assert listing(tmp_path) == ["out.gpkg"]


def test_atomic_in_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder exists"), atomic(tmp_path / "missing" / "out.txt"):
        pass


def test_probabilities_become_a_cog(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 700, 1100), dtype=np.float32)
    values[:, 100:300, 200:500] = np.nan
    strips, cog = tmp_path / "strips.tif", tmp_path / "prob.tif"
    save(strips, values, ("probability", "agreement"))
    write_cog(strips, cog, {"L4S_THRESHOLD": "0.5"})
    assert listing(tmp_path) == ["prob.tif", "strips.tif"]
    with rasterio.open(cog) as raster:
        np.testing.assert_array_equal(raster.read(), values)
        assert raster.dtypes == ("float32", "float32")
        assert np.isnan(raster.nodata)
        assert raster.descriptions == ("probability", "agreement")
        assert raster.tags()["L4S_THRESHOLD"] == "0.5"
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (raster.crs, raster.transform) == (UTM, TEN)
        assert raster.overviews(1)
        low = raster.read(1, out_shape=(raster.height // 4, raster.width // 4))
        assert np.nanmin(low) > 0
        np.testing.assert_array_equal(np.isnan(low[30:70, 55:120]), True)


def test_a_scene_of_one_pixel_becomes_a_cog(tmp_path: Path) -> None:
    strips, cog = tmp_path / "strips.tif", tmp_path / "prob.tif"
    save(strips, np.full((1, 1, 1), 0.25, np.float32), ("probability",), LOCAL)
    write_cog(strips, cog, {})
    with rasterio.open(cog) as raster:
        assert raster.read().tolist() == [[[0.25]]]


def test_a_failed_cog_leaves_what_was_there(tmp_path: Path) -> None:
    broken, cog = tmp_path / "strips.tif", tmp_path / "prob.tif"
    broken.write_bytes(b"II*\0")
    cog.write_bytes(b"before")
    with pytest.raises(OutputError, match=r"prob\.tif"):
        write_cog(broken, cog, {})
    assert cog.read_bytes() == b"before"
    assert listing(tmp_path) == ["prob.tif", "strips.tif"]


@contextmanager
def full_disk() -> Iterator[None]:
    """Files cannot grow over 8 KB; only around the call, for the limit also holds for pytest's own output."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("extension", VECTOR_DRIVERS)
def test_polygons_on_a_full_disk_leave_nothing(tmp_path: Path, extension: str) -> None:
    noise = np.random.default_rng(0).random((200, 200), dtype=np.float32)
    found = layers(noise)
    with pytest.raises(OutputError, match="cannot be written"), full_disk():
        write_vector(tmp_path / f"out{extension}", *found)
    assert listing(tmp_path) == []


def test_a_raster_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((1, 300, 300), dtype=np.float32)
    save(tmp_path / "strips.tif", noise, ("probability",))
    with pytest.raises(OutputError, match=r"prob\.tif"), full_disk():
        write_cog(tmp_path / "strips.tif", tmp_path / "prob.tif", {})
    assert listing(tmp_path) == ["strips.tif"]


def test_provenance_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "out.gpkg.json"
    record = {
        "scene": Path("a/ä.tif"), "threshold": np.float32(0.5), "f1": float("nan"), "size": (3, np.int64(4)),
        "mean": np.array([1.0, np.inf]), "model": {"tta": np.True_, "none": None},
    }  # fmt: skip
    write_provenance(path, record)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "scene": "a/ä.tif", "threshold": 0.5, "f1": None, "size": [3, 4],
        "mean": [1.0, None], "model": {"tta": True, "none": None},
    }  # fmt: skip


def test_written_numbers_have_their_types(tmp_path: Path) -> None:
    write_vector(tmp_path / "out.gpkg", *layers())
    types = gpd.read_file(tmp_path / "out.gpkg", layer="landslides").dtypes
    assert pd.api.types.is_bool_dtype(types["edge"])
    assert pd.api.types.is_float_dtype(types["elev_min"])
    assert pd.api.types.is_integer_dtype(types["id"])
