"""Scenes as STAC items: from files and from a server, with the assets and numbers of the public catalogues."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from l4s_geo.batch import find_jobs
from l4s_geo.cli import main
from l4s_geo.errors import InputError
from l4s_geo.pipeline import map_scene
from l4s_geo.progress import Silent
from l4s_geo.scene import Scene, open_scene, web
from l4s_geo.scene.assets import find_elevation, find_images
from l4s_geo.scene.stac import find_item, from_json, item_level
from l4s_geo.train.targets import find_targets

from .stac_server import (
    EARTH_SEARCH,
    LEVELS,
    METRES,
    SIZE,
    TIFF,
    UTM,
    bounds,
    earth_search_assets,
    flat,
    item,
    serve,
    two_digits,
    write_cog,
    write_json,
)
from .test_pipeline import model, options  # noqa: F401 (a fixture)
from .test_safe import write_jp2

#: As catalogues of scenes with the offset have it.
WITH_OFFSET = {"scale": 0.0001, "offset": -0.1}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COGs of a scene and its item; nobody writes to them."""
    root = tmp_path_factory.mktemp("stac")
    write_json(root / "item.json", item(earth_search_assets(root)))
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    with serve(folder) as found:
        yield found


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the item of the folder with changes, its assets' addresses absolute."""

    def write(change: Callable[[dict[str, Any]], Any] = lambda i: None, **properties: Any) -> Path:
        found = json.loads((folder / "item.json").read_text())
        for asset in found["assets"].values():
            if "://" not in asset["href"]:
                asset["href"] = str(folder / asset["href"])
        found["properties"] |= properties
        change(found)
        return write_json(tmp_path / "changed.json", found)

    return write


def whole(scene: Scene, *bands: str) -> tuple[np.ndarray, np.ndarray]:
    return scene.read(scene.grid.window(), bands or None)


def spectral(scene: Scene) -> dict[str, float]:
    """Level of every band, which has to be the same all over."""
    image, valid = whole(scene)
    assert valid.all()
    for values in image:
        assert_allclose(values, values[0, 0], atol=0.5)
    return {name: round(float(v[0, 0])) for name, v in zip(scene.bands, image, strict=True)}


def stating(raster: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Changes what an item states about the numbers of its assets."""

    def change(found: dict[str, Any]) -> None:
        for key in EARTH_SEARCH.values():
            found["assets"][key]["raster:bands"] = [raster]

    return change


# --- right bands and numbers, from wherever -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "address", "no ending", "gdal", "one in a list"])
def test_an_item_is_a_scene(
    how: str, folder: Path, server: tuple[str, Callable[[], list[str]]], tmp_path: Path
) -> None:
    url, _ = server
    text = (folder / "item.json").read_text()
    (folder / "S2A_54TWN").write_text("\n  " + text)
    write_json(folder / "list.geojson", {"type": "FeatureCollection", "features": [json.loads(text)]})
    path = {
        "file": str(folder / "item.json"),
        "address": f"{url}/item.json?f=json",
        "no ending": f"{url}/S2A_54TWN",
        "gdal": f"/vsicurl/{url}/item.json",
        "one in a list": str(folder / "list.geojson"),
    }[how]
    with open_scene(path) as scene:
        assert spectral(scene) == {band: LEVELS[band] for band in METRES}
        assert scene.grid.shape == (SIZE, SIZE)
        assert scene.native_crs == UTM
        assert (scene.name, scene.date, scene.level) == ("S2A_54TWN_20180911_0_L2A", "2018-09-11", "L2A")
        assert any("STAC item, Sentinel-2 L2A" in note for note in scene.notes)


def test_only_what_is_needed_is_fetched(folder: Path) -> None:
    with serve(folder) as (url, asked), open_scene(f"{url}/item.json", wanted=("B4", "B3", "B2")) as scene:
        assert spectral(scene) == {b: LEVELS[b] for b in ("B2", "B3", "B4")}
        fetched = {path.rpartition("/")[2] for path in asked()}
    assert fetched == {"item.json", "B02.tif", "B03.tif", "B04.tif", "SCL.tif"}


def test_a_raster_at_an_address_is_still_a_raster(folder: Path, server: tuple[str, Callable[[], list[str]]]) -> None:
    url, _ = server
    (folder / "raster").write_bytes((folder / "B04.tif").read_bytes())
    for path in (f"{url}/B04.tif", f"/vsicurl/{url}/B04.tif", f"/vsicurl/{url}/raster"):
        with open_scene(path, bands=["B4"]) as scene:
            assert spectral(scene) == {"B4": LEVELS["B4"]}


def asset(name: str, **more: Any) -> dict[str, Any]:
    return {"href": f"{name}.tif", "type": TIFF, **more}


@pytest.mark.parametrize(
    ("assets", "wanted"),
    [
        # Planetary Computer: numbers as keys; the same common name for four bands
        (
            {k: asset(k, **{"eo:bands": [{"name": k, "common_name": "rededge"}]}) for k in ("B05", "B07", "B8A")},
            {"B5": "B05", "B7": "B07", "B8A": "B8A"},
        ),
        # Copernicus Data Space: a key for every resolution, STAC 1.1
        (
            {
                f"{b}_{m}m": asset(b, gsd=m, bands=[{"name": b, "eo:common_name": "blue"}])
                for b, m in (("B02", 60), ("B02", 10), ("B02", 20), ("B8A", 60), ("B8A", 20))
            },
            {"B2": "B02_10m", "B8A": "B8A_20m"},
        ),
        # B8A and B9 under common names, with no band in their places
        ({k: asset(k) for k in ("nir08", "nir09")}, {"B8A": "nir08", "B9": "nir09"}),
        ({k: asset(k) for k in ("nir", "nir08")}, {"B8": "nir", "B8A": "nir08"}),
        ({"near": asset("a", **{"eo:bands": [{"name": "B8A", "common_name": "nir"}]})}, {"B8A": "near"}),
        ({"x": asset("a", bands=[{"eo:common_name": "rededge071"}])}, {"B5": "x"}),
        # a converted file rather than the original one of the same resolution
        ({"red-jp2": asset("a", type="image/jp2"), "red": asset("b")}, {"B4": "red"}),
        ({"red-jp2": asset("a", gsd=10, type="image/jp2"), "red": asset("b", gsd=20)}, {"B4": "red-jp2"}),
        # names that contradict each other, that name several bands, or none
        ({"B08": asset("a", **{"eo:bands": [{"name": "B8A"}]})}, {}),
        ({"rededge": asset("a"), "B13": asset("b"), "B04x": asset("c"), "infrared": asset("d")}, {}),
        # pictures and what is no raster
        ({k: asset(k, **{"eo:bands": [{"name": "red"}]}) for k in ("visual", "preview", "TCI_10m", "thumbnail")}, {}),
        ({"B04": asset("a", roles=["overview"]), "B03": asset("b", type="application/vnd+zarr")}, {}),
        ({"B04": {"href": "a.tif"}, "B03": {"href": "b.nc"}, "B02": {"href": "c.jp2?x=1"}}, {"B2": "B02", "B4": "B04"}),
        # classification, at its finest
        ({"SCL_60m": asset("a"), "SCL_20m": asset("b"), "scl-jp2": asset("c", type="image/jp2")}, {"SCL": "SCL_20m"}),
    ],
)  # fmt: skip
def test_assets_of_the_catalogues_are_known(assets: dict[str, Any], wanted: dict[str, str]) -> None:
    assert {band: image.key for band, image in find_images(assets)[0].items()} == wanted


def test_several_bands_in_one_asset(tmp_path: Path) -> None:
    profile = {"crs": UTM, "transform": Affine(10, 0, 570000, 0, -10, 4730000), "dtype": "uint16"}
    with rasterio.open(tmp_path / "all.tif", "w", driver="GTiff", count=3, width=SIZE, height=SIZE, **profile) as f:
        f.write(np.stack([flat(b) for b in ("B4", "B8", "B2")]))
    bands = [{"name": "B04"}, {"name": "other"}, {"name": "B02"}]
    path = write_json(tmp_path / "item.json", item({"data": asset("all", bands=bands)}))
    with open_scene(path) as scene:
        assert spectral(scene) == {"B2": LEVELS["B2"], "B4": LEVELS["B4"]}
    write_json(path, item({"data": asset("all", bands=[*bands, {"name": "B03"}])}))
    with pytest.raises(InputError, match="has 3 bands, but B3 is to be band 4"):
        open_scene(path)


def test_jpeg_2000_and_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    write_jp2(tmp_path / "B04.jp2", flat("B4"), 10)
    path = write_json(tmp_path / "item.json", item({"B04": {"href": "B04.jp2", "type": "image/jp2"}}))
    with open_scene(path) as scene:
        assert spectral(scene) == {"B4": LEVELS["B4"]}
    (tmp_path / "B04.jp2").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    with pytest.raises(InputError, match=r"Asset 'B04'.*cannot be opened"):
        open_scene(path)


# --- radiometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raster", "properties", "offset", "said"),
    [
        ({}, {}, 0, "baseline unknown"),
        ({"scale": 0.0001, "offset": 0}, {"s2:processing_baseline": "02.06"}, 0, "baseline 02.06"),
        # stated and true: Earth Search's collection 1, Copernicus Data Space
        (WITH_OFFSET, {"s2:processing_baseline": "05.09"}, -1000, "-1000 added"),
        (WITH_OFFSET, {}, -1000, "-1000 added"),
        (WITH_OFFSET, {"earthsearch:boa_offset_applied": False}, -1000, "-1000 added"),
        # stated, but taken off already: never twice
        (WITH_OFFSET, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, 0, "taken off"),
        ({}, {"s2:processing_baseline": "05.09", "sentinel:boa_offset_applied": True}, 0, "taken off already"),
        ({}, {"s2:processing_baseline": "04.00", "sentinel:boa_offset_applied": False}, -1000, "not taken off"),
        ({"scale": 0.0001, "offset": 0.0}, {"s2:processing_baseline": "05.09"}, 0, "states no offset, though"),
        # what programs write into everything says nothing
        ({"scale": 1.0, "offset": 0.0}, {"s2:processing_baseline": "03.01"}, 0, "03.01"),
        ({"scale": 1, "offset": -1000}, {}, -1000, "-1000 added"),
    ],
)  # fmt: skip
def test_scale_and_offset_become_digital_numbers(
    raster: dict[str, Any], properties: dict[str, Any], offset: float, said: str, changed: Callable[..., Path]
) -> None:
    with open_scene(changed(stating(raster), **properties)) as scene:
        assert spectral(scene) == {band: LEVELS[band] + offset for band in METRES}
        assert any(said in note for note in scene.notes), scene.notes


def test_scale_of_stac_1_1_and_another_than_usual(changed: Callable[..., Path]) -> None:
    def change(found: dict[str, Any]) -> None:
        found["stac_version"] = "1.1.0"
        for key in EARTH_SEARCH.values():
            del found["assets"][key]["raster:bands"], found["assets"][key]["eo:bands"]
            found["assets"][key] |= {"raster:scale": 0.0002, "bands": [{"name": key, "raster:offset": -0.1}]}

    with open_scene(changed(change)) as scene:
        assert spectral(scene) == {band: (LEVELS[band] - 500) * 2 for band in METRES}


@pytest.mark.parametrize(
    ("change", "properties", "message"),
    [
        (stating({}), {"s2:processing_baseline": "05.09"}, "does not say whether its images still have it"),
        (stating({"scale": 1, "offset": 0}), {"processing:version": "05.11"}, "does not say whether"),
        (stating(WITH_OFFSET), {"s2:processing_baseline": "02.09"}, "states an offset, but .* 02.09 has none"),
        (lambda i: i["assets"]["red"].update({"raster:bands": [WITH_OFFSET]}) or [
            i["assets"][k].pop("raster:bands") for k in ("blue", "nir")], {}, "not for B2, B8"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_is_refused_and_can_be_said(
    change: Callable[[dict[str, Any]], Any], properties: dict[str, Any], message: str, changed: Callable[..., Path]
) -> None:
    path = changed(change, **properties)
    with pytest.raises(InputError, match=f"{message}.*--s2-offset -1000 .*--s2-offset 0"):
        open_scene(path)
    for asked in ("0", "-1000"):
        with open_scene(path, s2_offset=asked) as scene:
            assert spectral(scene) == {band: LEVELS[band] + int(asked) for band in METRES}


def test_an_offset_that_the_pixels_contradict_is_refused(tmp_path: Path) -> None:
    # Earth Search has such scenes: boa_offset_applied is false, but it was taken off
    assets = earth_search_assets(tmp_path, shift=-1200, raster=WITH_OFFSET)
    said = {"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": False}
    path = write_json(tmp_path / "item.json", item(assets, **said))
    with pytest.raises(InputError, match=r"too many pixels would be below 0.*--s2-offset 0"):
        open_scene(path)
    with pytest.raises(InputError, match="would be below 0"):
        open_scene(path, s2_offset="-1000")
    with open_scene(path, s2_offset="0") as scene:
        assert spectral(scene) == {band: LEVELS[band] - 1200 for band in METRES}


def test_files_as_esa_gives_them_out_have_the_offset_of_their_baseline(tmp_path: Path) -> None:
    # Planetary Computer states nothing, but keeps the folders of the product
    inside = "S2A_MSIL2A_20230115T012659_N0509_R074_T54TWN_20230115T030000.SAFE/GRANULE/L2A_T54TWN_A039/IMG_DATA/R10m"
    for band in ("B04", "B02"):
        write_cog(tmp_path / inside / f"T54TWN_20230115T012659_{band}_10m.tif", flat(f"B{band[2]}"))
    assets = {b: asset(f"{inside}/T54TWN_20230115T012659_{b}_10m", gsd=10) for b in ("B02", "B04")}
    path = write_json(tmp_path / "item.json", item(assets, **{"s2:processing_baseline": "05.09"}))
    with open_scene(path) as scene:
        assert spectral(scene) == {b: LEVELS[b] - 1000 for b in ("B2", "B4")}
        assert any("as ESA gives them out" in note for note in scene.notes)


@pytest.mark.parametrize(
    "raster",
    [{"scale": "much"}, {"scale": 0}, {"scale": 5}, {"scale": float("nan")}, {"offset": -0.1}, {"offset": 1e400},
     {"scale": 0.0001, "offset": -1000}, {"scale": True}, {"scale": -0.0001}],
)  # fmt: skip
def test_impossible_radiometry_is_refused(raster: dict[str, Any], changed: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="which cannot be those of Sentinel-2"):
        open_scene(changed(stating(raster)))


def test_what_the_files_declare_is_not_added_to_what_the_item_states(tmp_path: Path) -> None:
    write_cog(tmp_path / "plain.tif", flat("B4"))
    with rasterio.open(tmp_path / "plain.tif") as plain:
        profile = plain.profile | {"driver": "GTiff"}
        with rasterio.open(tmp_path / "B04.tif", "w", **profile) as tagged:
            tagged.write(plain.read())
            tagged.scales, tagged.offsets = (0.0001,), (-0.1,)
    path = write_json(tmp_path / "item.json", item({"B04": asset("B04", **{"raster:bands": [WITH_OFFSET]})}))
    with open_scene(path) as scene:
        assert spectral(scene) == {"B4": LEVELS["B4"] - 1000}


def test_reflectance_as_floats(tmp_path: Path) -> None:
    write_cog(tmp_path / "B04.tif", flat("B4").astype(np.float32) / 10000)
    path = write_json(tmp_path / "item.json", item({"B04": asset("B04")}))
    with pytest.raises(InputError, match="--units reflectance"):
        open_scene(path)
    with open_scene(path, units="reflectance") as scene:
        assert spectral(scene) == {"B4": LEVELS["B4"]}


# --- what is not seen, level, date, terrain -----------------------------------------------------------------


def test_the_scene_classification_masks(tmp_path: Path) -> None:
    scl = np.full((SIZE // 2, SIZE // 2), 5, np.uint8)
    scl[:10], scl[10:20] = 9, 3
    path = write_json(tmp_path / "item.json", item(earth_search_assets(tmp_path, scl=scl)))
    with open_scene(path) as scene:
        valid = whole(scene)[1]
        assert not valid[:40].any()
        assert valid[40:].all()
    with open_scene(path, scl=False) as scene:
        assert whole(scene)[1].all()


def test_nodata_of_one_band_is_not_seen(folder: Path, tmp_path: Path) -> None:
    values = flat("B4")
    values[:30] = 0
    write_cog(tmp_path / "B04.tif", values, nodata=None)
    path = write_json(tmp_path / "item.json", item({"B04": asset("B04"), "B03": asset(str(folder / "B03"))}))
    with open_scene(path) as scene:
        assert whole(scene)[1].sum() == (SIZE - 30) * SIZE


@pytest.mark.parametrize(
    ("found", "level"),
    [
        ({"properties": {"processing:level": "L1C"}, "collection": "sentinel-2-l2a"}, "L1C"),
        ({"properties": {"s2:product_type": "S2MSI1C"}}, "L1C"),
        ({"properties": {"product:type": "S2MSI2A", "processing:level": "L2"}}, "L2A"),
        ({"id": "S2A_MSIL1C_20180911T012701"}, "L1C"),
        ({"id": "x", "collection": "sentinel-2-l2a"}, "L2A"),
        ({"id": "x", "properties": {"processing:level": ["L2A"]}}, "L2A"),
        ({"id": "HLS.S30"}, None),
    ],
)
def test_level(found: dict[str, Any], level: str | None) -> None:
    assert item_level(found) == level


def test_the_start_is_the_date_where_there_is_a_span(changed: Callable[..., Path]) -> None:
    path = changed(datetime=None, start_datetime="2019-03-04T23:00:00Z", end_datetime="2019-03-05T01:00:00Z")
    with open_scene(path) as scene:
        assert scene.date == "2019-03-04"


def tile(path: Path, west: float, south: float, value: float, step: float = 0.01, **profile: Any) -> Path:
    """Elevation of a degree, in a plane that rises to the east by a metre per 0.01 degrees, plus a value."""
    n = round(1 / step)
    plane = np.broadcast_to(value + np.arange(n) * step * 100, (round(1 / 0.01), n)).astype(np.float32)
    where = Affine(step, 0, west, 0, -0.01, south + 1)
    return write_cog(path, plane, crs="EPSG:4326", transform=where, **({"nodata": -9999} | profile))


def test_tiles_of_elevation_open_as_one(folder: Path, tmp_path: Path, changed: Callable[..., Path]) -> None:
    west = np.floor(bounds()[0])
    # the scene lies in the left of two tiles; the right one is coarser, as beyond the next zone of latitude
    tile(tmp_path / "left.tif", west, 42, 100, 0.01)
    tile(tmp_path / "right.tif", west + 1, 42, 200, 0.02)
    dems = {f"dem-{i}": {"href": str(tmp_path / n), "type": TIFF} for i, n in ((1, "left.tif"), (2, "right.tif"))}
    path = changed(lambda i: i["assets"].update(dems))
    with open_scene(path) as scene:
        assert scene.bands[-2:] == ("slope", "dem")
        (slope, dem), valid = whole(scene, "slope", "dem")
        assert valid.all()
        expected = 100 + (np.array(bounds())[[0, 2]] - west) * 100
        assert expected[0] - 1.5 < dem.min() < dem.max() < expected[1] + 1.5
        assert 0.05 < slope.mean() < 0.09  # a metre in 816
        assert any("dem from the item: 2 tiles of elevation" in note for note in scene.notes)
    other = tile(tmp_path / "given.tif", west, 42, 900)
    with open_scene(path, dem=other) as scene:
        assert whole(scene, "dem")[0].min() > 900


def test_tiles_on_both_sides_of_the_date_line(tmp_path: Path) -> None:
    where = {"crs": "EPSG:32701", "transform": Affine(10, 0, 176000, 0, -10, 8000000)}
    values = np.full((SIZE, 10 * SIZE), 1500, np.uint16)
    write_cog(tmp_path / "B04.tif", values, **where)
    tile(tmp_path / "east.tif", -180, -19, 300)
    tile(tmp_path / "west.tif", 179, -19, 100)
    dems = {"dem-1": asset("east"), "dem-2": asset("west")}
    path = write_json(tmp_path / "item.json", item({"B04": asset("B04"), **dems}))
    with open_scene(path) as scene:
        dem, valid = whole(scene, "dem")
        assert valid.all()
        assert dem[0, 0, 0] < 200 < 300 <= dem[0, 0, -1]


# --- items are not trusted ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "href",
    ["file:///etc/passwd", "/etc/passwd", "FILE:///B04.tif", "C:\\data\\B04.tif", "C:/data/B04.tif",
     "\\\\host\\share\\B04.tif"],
)  # fmt: skip
def test_an_item_from_the_web_must_not_lead_to_local_files(
    href: str, folder: Path, server: tuple[str, Callable[[], list[str]]]
) -> None:
    found = item({"B04": {"href": href, "type": TIFF}})
    write_json(folder / "local.json", found)
    with pytest.raises(InputError, match=r"must not lead to files of this computer|not followed"):
        open_scene(f"{server[0]}/local.json")


@pytest.mark.parametrize(
    "href",
    ["http://[/x.tif", "//[/x.tif", "file://[/x.tif",
     "/vsizip//tmp/x.zip/a.tif", "/vsimem/x.tif", "vrt://x.tif", "ftp://host/x.tif", "gs://bucket/x.tif", "s3://bucket",
     "GTIFF_DIR:1:x.tif", "WMTS:http://host/x.tif", "<VRTDataset></VRTDataset>", "zip+file://x.zip!a.tif", "", None, 5,
     {"a": 1}, "x" * 10_000, "a\0b.tif", "nowhere.tif", "data:image/tiff;base64,AAAA", "https:///x.tif", "."],
)  # fmt: skip
def test_addresses_lead_to_intended_places_only(
    href: Any, folder: Path, server: tuple[str, Callable[[], list[str]]]
) -> None:
    found = write_json(folder / "odd.json", item({"B04": {"href": href, "type": TIFF}}))
    for path in (str(found), f"{server[0]}/odd.json"):
        with pytest.raises(InputError):
            open_scene(path)


@pytest.mark.parametrize(
    ("href", "base", "gdal"),
    [
        ("B04.tif", "https://host/a/item.json", "/vsicurl/https://host/a/B04.tif"),
        ("../b/B04.tif", "https://host/a/item.json", "/vsicurl/https://host/b/B04.tif"),
        ("//other/B04.tif", "https://host/a/item.json", "/vsicurl/https://other/B04.tif"),
        ("s3://bucket/a/B04.jp2", "https://host/item.json", "/vsis3/bucket/a/B04.jp2"),
        ("https://h/B04.tif?se=1&sig=a%2Fb%3D", "item.json", "/vsicurl/https://h/B04.tif?se=1&sig=a%2Fb%3D"),
    ],
)
def test_addresses_as_gdal_takes_them(href: str, base: str, gdal: str) -> None:
    assert web.resolve(href, base, "asset").gdal == gdal


def test_local_addresses(folder: Path, tmp_path: Path) -> None:
    place = folder / "B04.tif"
    for href in (str(place), place.as_uri(), os.path.relpath(place, tmp_path)):
        found = write_json(tmp_path / "item.json", item({"B04": {"href": href, "type": TIFF}}))
        with open_scene(found) as scene:
            assert spectral(scene) == {"B4": LEVELS["B4"]}


def test_public_buckets_are_read_without_credentials(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "bucket" / "a b"
    bucket.mkdir(parents=True)
    (bucket / "B04.tif").write_bytes((folder / "B04.tif").read_bytes())
    path = write_json(tmp_path / "item.json", item({"B04": {"href": "s3://bucket/a b/B04.tif", "type": TIFF}}))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [k for k in os.environ if k.startswith("AWS_")] + ["AWS_NO_SIGN_REQUEST"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with serve(tmp_path) as (url, _):
        for name, value in (
            ("S3_ENDPOINT", url.removeprefix("http://")),
            ("HTTPS", "NO"),
            ("VIRTUAL_HOSTING", "FALSE"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        with open_scene(path) as scene:
            assert spectral(scene) == {"B4": LEVELS["B4"]}
            assert any("without credentials" in note for note in scene.notes)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.delenv("AWS_NO_SIGN_REQUEST")
    assert not web.allow_public_buckets()


def test_a_vrt_behind_an_address_is_not_opened(folder: Path, server: tuple[str, Callable[[], list[str]]]) -> None:
    vrt = f"""<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>{UTM}</SRS>
        <GeoTransform>570000, 10, 0, 4730000, 0, -10</GeoTransform><VRTRasterBand dataType="UInt16" band="1">
        <SimpleSource><SourceFilename>{folder}/B04.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>
        </VRTRasterBand></VRTDataset>"""
    (folder / "trap.tif").write_text(vrt)
    write_json(folder / "trap.json", item({"B04": asset("trap")}))
    for path in (str(folder / "trap.json"), f"{server[0]}/trap.json"):
        with pytest.raises(InputError, match="cannot be opened as a raster"):
            open_scene(path)


def test_signed_addresses_work_and_are_told_nobody(folder: Path, server: tuple[str, Callable[[], list[str]]]) -> None:
    url, _ = server
    (folder / "signed").mkdir(exist_ok=True)
    for name in ("B04.tif", "B03.tif"):
        (folder / "signed" / name).write_bytes((folder / name).read_bytes())
    right, wrong = f"{url}/signed/B04.tif?sig=secret%2Ftoken", f"{url}/signed/B03.tif?sig=worse"
    path = write_json(folder / "signed.json", item({"B04": {"href": right, "type": TIFF}}))
    with open_scene(path) as scene:
        assert spectral(scene) == {"B4": LEVELS["B4"]}
        assert "secret" not in str([scene.paths, scene.notes, scene.source])
    write_json(path, item({"B03": {"href": wrong, "type": TIFF}}))
    with pytest.raises(InputError, match="Asset 'B03'") as e:
        open_scene(path)
    assert "worse" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "Collection", "id": "x"}', "STAC collection, not a scene.*l4s-map search"),
        ('{"type": "Catalog"}', "STAC catalog, not a scene"),
        ('{"type": "FeatureCollection", "features": [{"id": "a"}, {"id": "b"}]}', r"2 items \(a, b\)"),
        ('{"type": "FeatureCollection", "features": []}', "0 items"),
        ('{"type": "Feature", "geometry": null, "properties": {}}', "no STAC item.*--aoi"),
        ('{"type": "Feature"', "no JSON.*downloaded completely"),
        ("{" + '"a":[' * 100_000, "no JSON|nested too deeply"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "no JSON"),
        ('{"id": "x", "assets": {"B04": {"href": "a", "type": "application/vnd+zarr"}}}', "Zarr, which is not read"),
        ('{"id": "x", "assets": {"vv": {"href": "a.tif"}}}', "no asset that is known to be a band.*vv"),
        ('{"id": "x", "assets": {}}', "Its assets are none"),
        ('{"assets": {"red": {"href": "a.tif"}}, "properties": {"platform": "landsat-8"}}', "Sentinel-2 only"),
    ],
    ids=range(13),
)  # fmt: skip
def test_json_that_is_no_scene(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "what.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        open_scene(path)


def test_json_is_bounded(
    folder: Path, server: tuple[str, Callable[[], list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "JSON_MAX", 100)
    for path in (str(folder / "item.json"), f"{server[0]}/item.json"):
        with pytest.raises(InputError, match="too much for metadata"):
            open_scene(path)


def test_servers_that_do_not_answer(server: tuple[str, Callable[[], list[str]]]) -> None:
    with pytest.raises(InputError, match="HTTP status 404"):
        open_scene(f"{server[0]}/nothing.json")
    with pytest.raises(InputError, match=r"cannot be reached.*refuses connections"):
        open_scene("http://127.0.0.1:9/item.json")
    with pytest.raises(InputError, match="cannot be reached"):
        open_scene("http://no.such.host.invalid/item.json")
    with pytest.raises(InputError, match="Download it first"):
        open_scene("s3://bucket/item.json")


def test_an_asset_that_is_gone(folder: Path, server: tuple[str, Callable[[], list[str]]]) -> None:
    write_json(folder / "gone.json", item({"B04": asset("gone")}))
    with pytest.raises(InputError, match=r"Asset 'B04'.*gone.tif cannot be opened"):
        open_scene(f"{server[0]}/gone.json")


def test_names_of_items_are_fit_for_files() -> None:
    found = item({"B04": {"href": "https://host/B04.tif", "type": TIFF}}, item_id="../../etc/x y\n\u00e4")
    assert from_json(found, "https://host/item.json", "x").name == "etc_x_y_\u00e4"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), junk=JUNK)
def test_odd_items_give_a_message_and_never_another_error(folder: Path, data: st.DataObject, junk: Any) -> None:
    found = json.loads((folder / "item.json").read_text())
    found["assets"] = {k: found["assets"][k] for k in ("red", "visual", "scl")}
    node: Any = found
    while True:
        keys = [*node] if isinstance(node, dict) else [*range(len(node))]
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(node[key], (dict, list)) and node[key]) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = junk
    with suppress(InputError):
        from_json(copy.deepcopy(found), str(folder / "item.json"), "x")
        find_elevation(found["assets"])


def test_bands_of_an_item_are_not_renamed(folder: Path) -> None:
    with pytest.raises(InputError, match="says itself what its bands are"):
        open_scene(folder / "item.json", bands=["B4"])


def test_a_raster_is_not_taken_for_an_item(folder: Path) -> None:
    assert find_item(str(folder / "B04.tif")) is None
    assert find_item("s3://bucket/B04.tif") is None


# --- by the verbs -------------------------------------------------------------------------------------------


def test_check_says_what_an_item_is(server: tuple[str, Callable[[], list[str]]]) -> None:
    done = CliRunner().invoke(main, ["check", f"{server[0]}/item.json", "--json"])
    found = json.loads(done.stdout)
    assert found["level"] == "L2A"
    assert found["date"] == "2018-09-11"
    assert found["bands"] == [*sorted(METRES, key=[*LEVELS].index)]
    done = CliRunner().invoke(main, ["check", f"{server[0]}/nothing.json"])
    assert done.exit_code == 2
    assert "404" in done.stdout


def test_mapping_an_item_is_mapping_its_files(model: str, tmp_path: Path) -> None:  # noqa: F811
    rng = np.random.default_rng(1)
    assets = {}
    for i, band in enumerate(("B4", "B3", "B2")):
        values = rng.normal(500 + i, 50, (200, 200)).clip(300, 640).astype(np.uint16)
        values[60:120, 40:90] = 1200
        write_cog(tmp_path / f"S2_{two_digits(band)}.tif", values)
        assets[two_digits(band)] = asset(f"S2_{two_digits(band)}", **{"raster:bands": [{"scale": 0.0001}]})
    path = write_json(tmp_path / "item.json", item(assets))
    with serve(tmp_path) as (url, _):
        results = []
        for scene in (f"{tmp_path}/S2_B*.tif", path, f"{url}/item.json"):
            map_scene(options(scene, model, tmp_path, overwrite=True), Silent())
            results.append(gpd.read_file(tmp_path / "out.gpkg", layer="landslides"))
    assert len(results[0]) == 1
    for found in results[1:]:
        assert found.geometry.geom_equals(results[0].geometry).all()
        assert set(found.date) == {"2018-09-11"}
        assert set(found.scene) == {"S2A_54TWN_20180911_0_L2A"}
    record = json.loads((tmp_path / "out.gpkg.json").read_text())
    assert record["inputs"]["scene"]["path"] == f"{url}/item.json"


def test_adapt_takes_items(folder: Path) -> None:
    (target,) = find_targets([str(folder / "item.json")], ("B4", "B3", "B2"), 10.0)
    assert target.name == "S2A_54TWN_20180911_0_L2A"


def test_batch_takes_addresses_with_questions() -> None:
    (job,) = find_jobs(["https://host.invalid/items/S2A_1.json?f=json"])
    assert (job.scene, job.name) == ("https://host.invalid/items/S2A_1.json?f=json", "S2A_1")
