"""Searching catalogues: an API and files, on a local server, down to a map of what was found."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import shapely
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_geo.catalogue import files as catalog_files
from l4s_geo.catalogue.items import Wanted, read_item
from l4s_geo.catalogue.places import footprint, parse_bbox, share_covered
from l4s_geo.catalogue.search import Query, find_scenes, parse_dates, table
from l4s_geo.catalogue.stack import build, dem_collection
from l4s_geo.cli import main
from l4s_geo.errors import InputError
from l4s_geo.progress import Silent
from l4s_geo.scene import open_scene, web

from .conftest import DATA
from .stac_server import TIFF, Api, item, serve, two_digits, write_cog, write_json
from .test_stac import JUNK, tile

COMMAND = str(Path(sys.executable).with_name("l4s-map"))

#: West, south, east, north of the scenes below.
BOX = (141.0, 42.0, 142.0, 43.0)

AREA = "141.2,42.2,141.8,42.8"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def scene(name: str, cloud: float | None, day: str, box: Any = BOX, **more: Any) -> dict[str, Any]:
    """An item whose assets are elsewhere."""
    assets = {k: {"href": f"https://host.invalid/{name}/{k}.tif", "type": TIFF} for k in ("B04", "B03", "B02", "B8A")}
    assets["visual"] = {"href": "https://host.invalid/TCI.tif", "type": TIFF}
    found = item(assets, name, box, day=day, **more)
    if cloud is None:
        del found["properties"]["eo:cloud_cover"]
    else:
        found["properties"]["eo:cloud_cover"] = cloud
    return found


def dem(name: str, west: float, south: float, collection: str = "cop-dem-glo-30", **more: Any) -> dict[str, Any]:
    assets = {"data": {"href": f"https://host.invalid/{name}.tif", "type": TIFF, "roles": ["data"]}}
    return item(assets, name, (west, south, west + 1, south + 1), collection, day="2021-04-22", **more)


SCENES = [
    scene("half", 0, "2018-09-07", (141.5, 42.0, 142.5, 43.0)),
    scene("cloudy", 80, "2018-09-08"),
    scene("late", 4.6, "2018-10-20"),
    scene("best", 5, "2018-09-11"),
    scene("unknown", None, "2018-09-12"),
    scene("before", 0, "2018-08-01"),
    scene("elsewhere", 0, "2018-09-11", (10, 42, 11, 43)),
]


def tiles(collection: str = "cop-dem-glo-30") -> list[dict[str, Any]]:
    """Those under the scenes, around them, and an older version of one."""
    places = [(w, s) for w in (140, 141, 142) for s in (41, 42, 43)]
    found = [dem(f"DEM_N{s}_E{w}", w, s, collection) for w, s in places]
    old = dem("DEM_old", 141, 42, collection)
    old["properties"]["datetime"] = "2019-01-01T00:00:00Z"
    return [*found, old, dem("DEM_far", 10, 42, collection)]


def api(**changes: Any) -> Api:
    items = {"sentinel-2-l1c": [], "sentinel-2-l2a": SCENES, "cop-dem-glo-30": tiles(), "landsat-c2-l2": []}
    return Api(**({"items": items} | changes))


def write_files(root: Path, items: dict[str, list[dict[str, Any]]]) -> Path:
    """A catalogue of files: catalogues of years within collections, everything relative, with a circle."""
    links = []
    for name, found in items.items():
        place = root / name
        for entry in found:
            write_json(place / "2018" / f"{entry['id']}.json", entry)
        years = [{"rel": "item", "href": f"./{entry['id']}.json"} for entry in found]
        years += [{"rel": "item", "href": "missing.json"}, {"rel": "child", "href": "../../catalog.json"}]
        inner = {"type": "Catalog", "id": "2018", "stac_version": "1.0.0", "description": "A year.", "links": years}
        write_json(place / "2018" / "catalog.json", inner)
        boxes = [entry["bbox"] for entry in found] or [[-180, -90, 180, 90]]
        outer = {
            "type": "Collection", "id": name, "stac_version": "1.0.0", "description": name, "license": "other",
            "extent": {
                "spatial": {"bbox": [[*map(float, (*np.min(boxes, 0)[:2], *np.max(boxes, 0)[2:]))]]},
                "temporal": {"interval": [["2015-01-01T00:00:00Z", None]]},
            },
            "links": [{"rel": "child", "href": "2018/catalog.json"}],
        }  # fmt: skip
        write_json(place / "collection.json", outer)
        links.append({"rel": "child", "href": f"./{name}/collection.json"})
    start = {"type": "Catalog", "id": "files", "stac_version": "1.0.0", "description": "Files.", "links": links}
    return write_json(root / "catalog.json", start)


@pytest.fixture
def url() -> Iterator[str]:
    with api().serve() as found:
        yield found


def search(*args: Any) -> Result:
    return CliRunner().invoke(main, ["search", *map(str, args)])


def found(*args: Any) -> dict[str, Any]:
    done = search(*args, "--json", "-q")
    assert done.exit_code == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in answer["scenes"]]


def refused(*args: Any) -> str:
    done = search(*args)
    assert done.exit_code == 2, done.output
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.output
    return " ".join(done.stderr.split())


# --- an API -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [("GET", "POST"), ("POST",), ("GET",)])
@pytest.mark.parametrize("query", [True, False])
def test_an_api_is_searched(methods: tuple[str, ...], query: bool) -> None:
    server = api(methods=methods, query=query)
    with server.serve() as url:
        answer = found("--catalog", url, "--bbox", AREA, "--dates", "2018-09-01/2018-10-20", "--max-cloud", 20)
        late = found("--catalog", url, "--bbox", AREA, "--dates", "2018-10-20", "--max-cloud", 20)
    # best and late are both seen by 95 %, so the earlier is first; half is half seen, and so are unknown clouds
    assert ids(answer) == ["best", "late", "half", "unknown"]
    assert ids(late) == ["late"]
    best = answer["scenes"][0]
    assert best["covered"] == 1
    assert (best["cloud_cover"], best["date"], best["level"]) == (5, "2018-09-11", "L2A")
    assert best["href"] == f"{url}/collections/sentinel-2-l2a/items/best"
    assert answer["scenes"][2]["covered"] == pytest.approx(0.5)
    asked = [(how, what) for how, path, what in server.requests if path == "/search"]
    assert {how for how, _ in asked} == {"POST" if "POST" in methods else "GET"}
    assert len(asked) > 2  # pages
    assert any("query" in what for _, what in asked) == query
    assert any("there is also sentinel-2-l1c" in note for note in answer["notes"])


def test_the_table_is_for_people(url: str) -> None:
    done = search("--catalog", url, "--bbox", AREA, "--limit", 2, "-q")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["date", "clouds", "covered", "level", "id", "address"]
    assert lines[1].split()[:8] == [
        "1",
        "2018-08-01",
        "0",
        "%",
        "100%",
        "L2A",
        "before",
        f"{url}/collections/sentinel-2-l2a/items/before",
    ]
    assert "note: 4 more scenes: --limit" in done.stdout
    assert "--out stack.json" in lines[-1]


def test_the_address_of_a_collection_does(url: str) -> None:
    answer = found("--catalog", f"{url}/collections/sentinel-2-l2a", "--bbox", AREA)
    assert len(ids(answer)) == 6
    assert answer["collections"] == ["sentinel-2-l2a"]
    assert answer["catalog"] == url


def test_collections(url: str) -> None:
    assert ids(found("--catalog", url, "--bbox", AREA, "--collection", "sentinel-2-l1c")) == []
    message = refused("--catalog", url, "--bbox", AREA, "--collection", "sentinel-2-12a")
    assert "no collection 'sentinel-2-12a' (did you mean 'sentinel-2-l" in message
    with api(items={"landsat-c2-l2": []}).serve() as other:
        assert "no collection that looks like Sentinel-2" in refused("--catalog", other, "--bbox", AREA)


def test_nothing_found_is_said_with_what_would_help(url: str) -> None:
    done = search("--catalog", url, "--bbox", AREA, "--dates", "2018-09-08", "--max-cloud", 30)
    assert done.exit_code == 0
    assert "No scene found" in done.stdout
    assert "1 scenes have more clouds, the clearest of them 80 %" in done.stdout
    assert "try more days" in search("--catalog", url, "--bbox", AREA, "--dates", "2011").stdout
    assert "order of --bbox" in search("--catalog", url, "--bbox", "1,1,2,2").stdout


def test_zarr_is_left_out_and_said() -> None:
    zarr = scene("zarr", 0, "2018-09-11", constellation="sentinel-2")
    zarr["assets"] = {"B04": {"href": "https://host.invalid/x.zarr", "type": "application/vnd+zarr"}}
    with api(items={"sentinel-2-l2a": [zarr, SCENES[3]]}).serve() as url:
        answer = found("--catalog", url, "--bbox", AREA)
    assert ids(answer) == ["best"]
    assert any("1 items are left out" in note for note in answer["notes"])


def test_aoi_is_measured_by_its_shape(url: str, tmp_path: Path) -> None:
    triangle = shapely.Polygon([(141.2, 42.2), (141.2, 42.8), (141.8, 42.2)])
    gpd.GeoSeries([triangle], crs=4326).to_crs(32654).to_file(tmp_path / "area.gpkg")
    answer = found("--catalog", url, "--aoi", tmp_path / "area.gpkg", "--dates", "2018-09-07")
    assert answer["scenes"][0]["covered"] == pytest.approx(0.25, abs=0.02)


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["server", "file", "folder"])
def test_files_are_walked(where: str, tmp_path: Path) -> None:
    root = write_files(tmp_path, {"scenes": SCENES, "cop-dem-glo-30": tiles()})
    with serve(tmp_path) as (url, _):
        address = {"server": f"{url}/catalog.json", "file": root, "folder": tmp_path}[where]
        args = ["--catalog", address, "--bbox", AREA, "--dates", "2018-09-01/2018-10-20", "--max-cloud", 20]
        answer = found(*args)
        stack = tmp_path / "stack.json"
        found(*args, "--out", stack)
        single = found("--catalog", address, "--bbox", AREA, "--collection", "scenes", "--dates", "2018-08")
    assert ids(answer) == ["best", "late", "half", "unknown"]
    assert str(answer["scenes"][0]["href"]).endswith("scenes/2018/best.json")
    assert ids(single) == ["before"]
    made = json.loads(stack.read_text())
    assert sorted(made["assets"]) == ["B02", "B03", "B04", "B8A", *(f"dem-{i}" for i in range(1, 10))]


def test_a_walk_is_bounded_and_leaves_out_what_cannot_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = [scene("x", 0, "2018-09-11", (10, 42, 11, 43))]
    write_files(tmp_path, {"here": SCENES[:4], "far": far})
    with serve(tmp_path) as (url, asked):
        found("--catalog", f"{url}/catalog.json", "--bbox", AREA)
        assert not any("/far/2018" in path for path in asked())
        monkeypatch.setattr(catalog_files, "FILES", 6)
        answer = found("--catalog", f"{url}/catalog.json", "--bbox", AREA)
    assert len(ids(answer)) < 4
    assert any("more than the 6 files" in note for note in answer["notes"])


def test_a_catalogue_from_the_web_does_not_lead_to_local_files(tmp_path: Path) -> None:
    secret = write_json(tmp_path / "secret" / "item.json", SCENES[3])
    links = [{"rel": "item", "href": href} for href in (secret.as_uri(), "/etc/passwd", "ftp://host/x.json", 5, None)]
    start = {"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "x", "links": links}
    write_json(tmp_path / "web" / "catalog.json", start)
    with serve(tmp_path / "web") as (url, _):
        assert ids(found("--catalog", f"{url}/catalog.json", "--bbox", AREA)) == []


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--bbox", "1,2,3"], "four numbers"),
        (["--bbox", "42,141,43,142"], "no degrees of longitude and latitude"),
        (["--bbox", AREA, "--dates", "soon"], "'soon' is no date"),
        (["--bbox", AREA, "--dates", "2018-02-30"], "is no date"),
        (["--bbox", AREA, "--dates", "2019/2018"], "end lies before the start"),
        (["--bbox", AREA, "--max-cloud", "200"], "200"),
        (["--bbox", AREA, "--aoi", "x.gpkg"], "either --bbox"),
        ([], "either --bbox"),
        (["--aoi", "nothing.gpkg"], "no file 'nothing.gpkg'"),
        (["--bbox", AREA, "--pick", "1"], "Give --out too"),
        (["--bbox", AREA, "--out", "x.gpkg"], "several into a folder"),
        (["--bbox", AREA, "--out", "nowhere/x.json"], "no folder"),
    ],
)
def test_options_are_checked_before_anything_is_asked(args: list[str], message: str) -> None:
    assert message in refused("--catalog", "http://127.0.0.1:9", *args)


def test_what_is_no_catalogue(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html></html>")
    write_json(tmp_path / "item.json", SCENES[0])
    write_json(tmp_path / "other.json", [1])
    with serve(tmp_path) as (url, _):
        for path, message in {
            f"{url}/page.html": "a page for people", f"{url}/item.json": "is a STAC Feature",
            f"{url}/other.json": "no STAC catalogue", f"{url}/none": "404", "http://127.0.0.1:9": "refuses connections",
            "http://no.such.host.invalid": "cannot be reached", str(tmp_path / "gone"): "no catalogue",
            "s3://bucket/catalog.json": "no catalogue",
        }.items():  # fmt: skip
            assert message in refused("--catalog", path, "--bbox", AREA), path


def test_an_api_that_breaks_off() -> None:
    server = api()
    real = server.search
    with server.serve() as url:
        server.search = lambda how, asked: {"features": "none"} if "token" in asked else real(how, asked)  # type: ignore[method-assign]
        answer = found("--catalog", url, "--bbox", AREA)
        assert len(ids(answer)) == 2
        assert any("no STAC items" in note for note in answer["notes"])
        server.search = lambda how, asked: [1]  # type: ignore[method-assign, assignment, return-value]
        assert "does not answer as a STAC catalogue" in refused("--catalog", url, "--bbox", AREA)
        server.search = lambda how, asked: {"type": "FeatureCollection", "features": [5, None, {"id": "x"}]}  # type: ignore[method-assign]
        assert ids(found("--catalog", url, "--bbox", AREA)) == []


def test_a_silent_server_is_left_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PIECE", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        began = time.monotonic()
        message = refused("--catalog", f"http://127.0.0.1:{listener.getsockname()[1]}", "--bbox", AREA)
        assert time.monotonic() - began < 20
    assert "no answer in time" in message


def test_a_server_that_never_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "WHOLE", 0.5)

    def drip(listener: socket.socket) -> None:
        with listener.accept()[0] as client:
            try:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n{")
                while True:
                    client.sendall(b" " * (1 << 16))
                    time.sleep(0.05)
            except OSError:
                return

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=drip, args=[listener])
        thread.start()
        message = refused("--catalog", f"http://127.0.0.1:{listener.getsockname()[1]}", "--bbox", AREA)
        thread.join()
    assert "takes more than" in message or "too much" in message


# --- parts --------------------------------------------------------------------------------------------------


def test_dates() -> None:
    day = datetime(2018, 9, 6, tzinfo=UTC)
    assert parse_dates("2018-09-06") == (day, day.replace(hour=23, minute=59, second=59))
    assert parse_dates("2018-09-06/..") == (day, None)
    assert parse_dates("/2018-02") == (None, datetime(2018, 2, 28, 23, 59, 59, tzinfo=UTC))
    assert parse_dates("2017/2018") == (
        datetime(2017, 1, 1, tzinfo=UTC),
        datetime(2018, 12, 31, 23, 59, 59, tzinfo=UTC),
    )
    assert parse_dates("2018-09-06T03:08:00+09:00/..")[0] == datetime(2018, 9, 5, 18, 8, tzinfo=UTC)


def test_areas_across_the_date_line() -> None:
    area = parse_bbox("179,-18,-179,-17")
    across = [[179.5, -19], [-179.5, -19], [-179.5, -16], [179.5, -16], [179.5, -19]]
    made = {"type": "Feature", "id": "x", "stac_version": "1.0.0", "properties": {"datetime": "2018-01-01T00:00:00Z"}}
    for geometry, bbox in (
        ({"type": "Polygon", "coordinates": [across]}, [179.5, -19, -179.5, -16]),
        (None, [179.5, -19, -179.5, -16]),
        (None, [179.5, -19, 0, -179.5, -16, 100]),
    ):
        whole = made | {"geometry": geometry, "bbox": bbox, "links": [], "assets": {}}
        assert share_covered(footprint(pystac.Item.from_dict(whole)), area) == pytest.approx(0.5)


@settings(max_examples=100)
@given(data=st.data(), junk=JUNK)
def test_odd_items_are_left_out_and_do_not_break_a_search(data: st.DataObject, junk: Any) -> None:
    odd: Any = copy.deepcopy(SCENES[3]) | {"links": [{"rel": "self", "href": "https://host.invalid/x"}]}
    node = odd
    while True:
        key = data.draw(st.sampled_from([*node] if isinstance(node, dict) else [*range(len(node))]))
        if not (isinstance(node[key], (dict, list)) and node[key]) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = junk

    class One:
        address, given, cut = "here", None, None

        def collections(self) -> list[str]:
            return []

        def items(self, wanted: Wanted, progress: Any) -> Iterator[pystac.Item]:
            made = read_item(json.loads(json.dumps(odd)))
            if made and wanted.fits(made):
                yield made

    result = find_scenes(One(), Query(parse_bbox(AREA), max_cloud=50), Silent())
    assert len(result.scenes) <= 1
    assert len([*table(result.scenes)]) == 1 + len(result.scenes)
    for entry in result.scenes:
        with suppress(InputError):
            build(entry, One(), None, Silent())


def test_shares_are_those_on_the_ground() -> None:
    # north of 60 degrees lies 13 % of a hemisphere
    half, cap = shapely.box(-10, 0, 10, 90), shapely.box(-10, 60, 10, 90)
    assert share_covered(cap, half) == pytest.approx(1 - np.sin(np.radians(60)))


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (["alos-dem", "cop-dem-glo-90", "cop-dem-glo-30"], "cop-dem-glo-30"),
        (["cop-dem-glo-90-dged-cog", "cop-dem-glo-30-dged-cog"], "cop-dem-glo-30-dged-cog"),
        (["nasadem", "alos-dem"], "alos-dem"),
        (["nasadem", "cop-dem-glo-90"], None),
        ([], None),
    ],
)
def test_the_best_elevation_is_found(known: list[str], wanted: str | None) -> None:
    class Known:
        address = "here"

        def collections(self) -> list[str]:
            return known

    if wanted:
        assert dem_collection(Known(), None) == wanted  # type: ignore[arg-type]
    else:
        with pytest.raises(InputError, match="--dem-collection none"):
            dem_collection(Known(), None)  # type: ignore[arg-type]


# --- stacks -------------------------------------------------------------------------------------------------


def test_a_stack_is_an_item_that_stands_alone(url: str, tmp_path: Path) -> None:
    out = tmp_path / "stack.json"
    args = ["--catalog", url, "--bbox", AREA, "--dates", "2018-09", "--out", out]
    answer = found(*args)
    assert answer["out"] == [str(out)]
    made = pystac.Item.from_file(str(out))
    assert made.id == "best"
    assert all(a.href.startswith("https://host.invalid/") for a in made.assets.values())
    # nine tiles touch the scene, which lies on degrees, the newer of two for the same place
    titles = {a.title for key, a in made.assets.items() if key.startswith("dem")}
    assert len(titles) == 9
    assert "Elevation: DEM_old" not in titles
    assert {link.rel for link in made.links} >= {"derived_from"}
    assert any("9 tiles of cop-dem-glo-30" in note for note in answer["notes"])
    assert "exists" in refused(*args)
    assert found(*args, "--pick", "late", "--dates", "2018", "--overwrite", "--dem-collection", "none")
    made = pystac.Item.from_file(str(out))
    assert (made.id, sorted(made.assets)) == ("late", ["B02", "B03", "B04", "B8A"])


def test_several_scenes_go_into_a_folder(url: str, tmp_path: Path) -> None:
    args = ["--catalog", url, "--bbox", AREA, "--dates", "2018-09", "--dem-collection", "none"]
    answer = found(*args, "--out", tmp_path / "stacks", "--pick", 2, "--pick", "best", "--pick", 1)
    assert [Path(p).name for p in answer["out"]] == ["half.json", "best.json"]
    assert "no such scene" in refused(*args, "--out", tmp_path / "x.json", "--pick", 9)
    assert "several into a folder" in refused(*args, "--out", tmp_path / "x.json", "--pick", 1, "--pick", 2)
    assert not (tmp_path / "x.json").exists()


def test_elevation_that_is_not_there(tmp_path: Path) -> None:
    args = ["--bbox", AREA, "--out", tmp_path / "stack.json"]
    with api(items={"sentinel-2-l2a": SCENES, "nasadem": []}).serve() as url:
        assert "There is nasadem. Name another" in refused("--catalog", url, *args)
        assert "has no tile under before" in refused("--catalog", url, *args, "--dem-collection", "nasadem")
    half = {"sentinel-2-l2a": SCENES, "alos-dem": [dem("a", 140.5, 42, "alos-dem")]}
    with api(items=half).serve() as url:
        notes = found("--catalog", url, *args)["notes"]
    assert any("they cover 50 % of before" in note.replace("%", " %").replace("  ", " ") for note in notes)


def test_nothing_is_written_where_nothing_is_found(url: str, tmp_path: Path) -> None:
    done = search("--catalog", url, "--bbox", "1,1,2,2", "--out", tmp_path / "stack.json")
    assert done.exit_code == 0
    assert "Nothing was written" in done.stdout
    assert not list(tmp_path.iterdir())


# --- from the catalogue to the map --------------------------------------------------------------------------


def rgb(folder: Path) -> dict[str, Any]:
    """Assets of a small scene: a real one where there is, else grass with a bare slope."""
    real = sorted((DATA / "bigearthnet").glob("*/S2A_MSIL2A_20170617*_4_55")) if DATA.is_dir() else []
    rng = np.random.default_rng(0)
    assets = {}
    for band, level in (("B4", 450), ("B3", 650), ("B2", 800)):
        name = f"{two_digits(band)}.tif"
        if real:
            (folder / name).write_bytes(next(real[0].glob(f"*_{name}")).read_bytes())
        else:
            values = rng.normal(level, 40, (120, 120))
            values[40:80, 40:80] += 900
            write_cog(folder / name, values.astype(np.uint16))
        assets[two_digits(band)] = {"href": name, "type": TIFF, "raster:bands": [{"scale": 0.0001, "offset": 0}]}
    return assets


@pytest.mark.parametrize("kind", ["api", "files"])
def test_search_stack_map(kind: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assets = rgb(data)
    with open_scene(",".join(str(data / a["href"]) for a in assets.values()), bands=["B4", "B3", "B2"]) as opened:
        box = gpd.GeoSeries([shapely.box(*opened.grid.bounds)], crs=opened.grid.crs.to_wkt()).to_crs(4326).total_bounds
    south = float(np.floor(box[1]))
    middle = round(float(box[0] + box[2]) / 2, 2)
    tile(data / "left.tif", middle - 1, south, 100)
    tile(data / "right.tif", middle, south, 200)
    with serve(data) as (files, _):
        for a in assets.values():
            a["href"] = f"{files}/{a['href']}"
        scenes = [item(assets, "scene", box, **{"s2:processing_baseline": "02.05"})]
        dems = []
        for name, left in (("left", middle - 1), ("right", middle)):
            entry = dem(name, left, south)
            entry["assets"]["data"]["href"] = f"{files}/{name}.tif"
            dems.append(entry)
        items = {"sentinel-2-l2a": scenes, "cop-dem-glo-30": dems}
        out, maps = tmp_path / "stack.json", tmp_path / "landslides.gpkg"
        asked = ",".join(f"{v:.6f}" for v in box)
        if kind == "api":
            with Api(items).serve() as url:
                found("--catalog", url, f"--bbox={asked}", "--max-cloud", 20, "--out", out)
        else:
            write_files(data, items)
            found("--catalog", f"{files}/catalog.json", f"--bbox={asked}", "--max-cloud", 20, "--out", out)
        args = [str(out), "--out", str(maps), "--min-slope", "0", "--threshold", "0.05", "--json", "-q"]
        if kind == "api":
            done = subprocess.run([COMMAND, *args], capture_output=True, text=True, check=False)
            code, printed = done.returncode, done.stdout
        else:
            answer = CliRunner().invoke(main, args)
            code, printed = answer.exit_code, answer.stdout
    assert code == 0, printed
    result = json.loads(printed)
    assert any("dem from the item: 2 tiles of elevation" in note for note in result["notes"])
    assert result["seen_share"] == 1
    table = gpd.read_file(maps, layer="landslides")
    assert len(table) == result["landslides"] > 0
    assert table.elev_min.between(100, 300).all()
    assert set(table.date) == {"2018-09-11"}
    assert set(table.scene) == {"scene"}
