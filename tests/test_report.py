"""Reports and quicklooks: what they say, where they draw it, and how the page behaves in a browser."""

from __future__ import annotations

import json
import re
import shlex
import tracemalloc
from contextlib import ExitStack
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.windows import Window

from l4s_geo import results
from l4s_geo.cli import main
from l4s_geo.cli.map import command as map_command
from l4s_geo.deliverables import Outputs
from l4s_geo.errors import L4SError
from l4s_geo.pipeline import MapOptions, map_scene
from l4s_geo.polygonize import ProbabilityRaster
from l4s_geo.progress import Silent
from l4s_geo.provenance.command import command_line
from l4s_geo.report import landslides as found_module
from l4s_geo.report.figures import Bars, histogram
from l4s_geo.report.frame import Frame
from l4s_geo.report.landslides import BINS, Landslides, path_data
from l4s_geo.report.notes import warnings
from l4s_geo.report.pictures import Stretch, decimated, relief, shown_bands
from l4s_geo.report.product import Report
from l4s_geo.report.quicklook import _path
from l4s_geo.results import Clock, products_for, write_all
from l4s_geo.scene import Grid, open_scene
from l4s_geo.vectorize import LAYERS, vectorize
from tests.conftest import DATA, UTM, UTM_10M, needs_data, write_raster
from tests.test_pipeline import model, options, scene  # noqa: F401

H, W = 120, 160
NOT_OPTIONS = ("quiet", "verbose", "as_json", "record")
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;'"

#: Rows, columns and probability of the landslides of ``write_map``.
PLACES = (
    (slice(20, 50), slice(30, 60), 0.9),
    (slice(80, 90), slice(100, 130), 0.6),
    (slice(60, 66), slice(20, 26), 0.8),
)


def write_map(folder, crs=UTM, transform=UTM_10M, size=(H, W), places=PLACES):
    """Probabilities with three landslides, images before and after, and elevations that rise to the east."""
    prob = np.full((3, *size), 0.05, np.float32)
    image = np.full((3, *size), 500, np.uint16) + np.arange(size[1], dtype=np.uint16)
    for rows, columns, p in places:
        prob[0, rows, columns], prob[1, rows, columns], prob[2, rows, columns] = p, 1.0, 0.1
    before = image.copy()
    image[:, prob[0] > 0.5] = 2500
    prob[:, :8] = np.nan
    where = {"crs": crs, "transform": transform}
    dem = np.broadcast_to(np.arange(size[1], dtype=np.float32) * 5, size)
    return SimpleNamespace(
        prob=write_raster(folder / "prob.tif", prob, nodata=np.nan, names=LAYERS, **where),
        after=write_raster(folder / "after_20180911.tif", image, names=("B4", "B3", "B2"), **where),
        before=write_raster(folder / "before_20180830.tif", before, names=("B4", "B3", "B2"), **where),
        dem=write_raster(folder / "dem.tif", dem, **where),
    )


def record(name="valley", notes=()):
    return {
        "versions": {"l4s_geo": "0"},
        "command": "l4s-map map it",
        "inputs": {"scene": {"path": name, "bytes": 7}},
        "scene": {"name": name, "date": "2018-09-11"},
        "models": [{"name": "bright", "version": "1", "sha256": {"net": "abc123"}}],
        "settings": {"threshold": 0.5, "crf": None},
        "seen_share": 0.93,
        "area_m2": 1.92e6,
        "notes": [*notes],
    }


def write_report(folder, files, before=True, made=None, change=lambda part: part):
    """A page and a quicklook of ``files``, as the pipeline makes them."""
    wanted = Outputs(folder / "out.gpkg", report=folder / "out.html", quicklook=folder / "out.png")
    with ExitStack() as stack:
        raster = stack.enter_context(ProbabilityRaster(files.prob))
        after = stack.enter_context(open_scene(files.after, dem=files.dem, resolution=None))
        old = stack.enter_context(open_scene(files.before, resolution=None)) if before else None
        products = [*products_for(wanted, raster, after, old)]
        limits = {"threshold": 0.5, "min_area": 100, "min_slope": 0, "max_hole": 0, "simplify": 0}
        layers = vectorize(raster, after, raster.grid.crs, {}, **limits, products=products)
        write_all(wanted, layers, made or record(), Clock(), products=products)
    return folder / "out.html"


class Page(HTMLParser):
    """Tags with attributes, the text, and the data of the script."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.inside, self.raw = [], [], None, {}
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(self.raw["application/json"])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = (tag, dict(attrs).get("type")) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None if tag in ("script", "style") else self.inside

    def handle_data(self, data):
        if self.inside:
            self.raw[self.inside[1] or self.inside[0]] = data
        else:
            self.words.append(data)

    def all(self, tag, **attributes):
        return [a for t, a in self.tags if t == tag and attributes.items() <= a.items()]

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, write_map(folder))


@pytest.fixture(scope="module")
def page(built):
    return Page(built)


def test_the_page_needs_nothing_from_elsewhere(built, page):
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "action", "data")]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not page.all("link")
    assert not re.search("https?://", built.read_text().replace('xmlns="http://www.w3.org/2000/svg"', ""))
    assert "style" not in {k for _, attrs in page.tags for k in attrs}  # the policy would ignore it
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy["content"]


def test_the_page_says_what_the_file_holds(built, page):
    landslides = gpd.read_file(built.with_name("out.gpkg"), layer="landslides")
    summary = json.loads(built.with_name("out.html.json").read_text())["result"]
    assert "Landslides in valley" in page.text
    area = f"{landslides.area_m2.sum() / 1e4:,.1f} ha"
    largest = f"{landslides.area_m2.max() / 1e4:,.1f} ha"
    seen = f"{100 * summary['landslide_share']:.2f} %"
    assert f"landslides 3 total area {area} of the ground that was seen {seen} largest landslide {largest}" in page.text
    classes = sorted(a["class"] for a in page.all("path") if "data-i" in a)
    assert classes == ["p2", "p3", "p3"]  # probabilities of 0.6, 0.8 and 0.9
    columns = [c["key"] for c in page.data["columns"]]
    listed = {row[columns.index("id")]: dict(zip(columns, row, strict=True)) for row in page.data["rows"]}
    for _, landslide in landslides.iterrows():
        row = listed[landslide["id"]]
        assert row["area_m2"] == round(landslide.area_m2)
        assert row["prob_mean"] == pytest.approx(landslide.prob_mean, abs=0.006)
        assert row["slope_mean"] == pytest.approx(landslide.slope_mean, abs=0.06)
        assert row["edge"] == landslide.edge
    assert [row[columns.index("area_m2")] for row in page.data["rows"]] == sorted(
        landslides.area_m2.round(), reverse=True
    )
    assert "abc123" in page.text
    assert "l4s-map map it" in page.text


def outlines(page):
    """Landslides of a page in metres of its plane, by number."""
    ids = [row[[c["key"] for c in page.data["columns"]].index("id")] for row in page.data["rows"]]
    paths = [a for a in page.all("path") if "data-i" in a]
    return {ids[int(a["data-i"])]: draw(a["d"], page.data["unit"]) for a in paths}


def draw(d, unit):
    """Corners of an SVG path of relative lines."""
    points, at = [], np.zeros(2)
    for kind, x, y in re.findall(r"([Mhvl])(-?\d+)(?: ?(-?\d+))?", d):
        if kind == "M":
            at = np.array([int(x), int(y)])
        elif kind == "l":
            at = at + np.array([int(x), int(y)])
        else:
            at = at + (np.array([int(x), 0]) if kind == "h" else np.array([0, int(x)]))
        points.append(at)
    return np.array(points) * unit


GRIDS = {
    "metres": (UTM, UTM_10M),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 141.9, 0, -1e-4, 42.7)),
    "rotated": (UTM, Affine(8, 6, 570000, 6, -8, 4730000)),
    "south up": (UTM, Affine(10, 0, 570000, 0, 10, 4730000)),
    "feet": ("EPSG:2264", Affine(32.8, 0, 1.4e6, 0, -32.8, 6e5)),
    "no place": ('LOCAL_CS["patch",UNIT["metre",1]]', Affine(10, 0, 0, 0, -10, 0)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_landslides_pictures_and_coordinates_lie_over_each_other(tmp_path, name):
    crs, transform = GRIDS[name]
    page = Page(write_report(tmp_path, write_map(tmp_path, crs, transform)))
    grid = Grid(CRS.from_user_input(crs), transform, W, H)
    images = page.all("image")
    assert len(images) == 5  # before, after, probability, density, what was not seen
    largest = max(page.data["rows"], key=lambda row: row[1])
    corners = outlines(page)[largest[0]]
    for image in images[:2]:
        a, b, c, d, e, f = map(float, re.search(r"matrix\((.*)\)", image["transform"])[1].split())
        there = [(a * x + c * y + e, b * x + d * y + f) for x, y in ((30, 20), (60, 20), (60, 50), (30, 50))]
        assert np.allclose(shapely.Polygon(corners).bounds, shapely.Polygon(there).bounds, atol=page.data["unit"])
    # Metres are metres: the landslide is 30 by 30 pixels
    side = np.multiply(30, grid.pixel_size_m())
    assert shapely.Polygon(corners).area == pytest.approx(side.prod(), rel=0.02)
    assert page.data["size"] == pytest.approx(np.ptp(Frame.of(grid).outline(), axis=0).tolist())
    if name != "no place":
        n, (w, h) = page.data["lonlat"]["count"], page.data["size"]
        lon, lat = (np.reshape(page.data["lonlat"][k], (n, n)) for k in ("lon", "lat"))
        x = page.data["frame"]["left"] + w / 2 / page.data["frame"]["scale"][0]
        y = page.data["frame"]["top"] - h / 2 / page.data["frame"]["scale"][1]
        there = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
        assert (lon[n // 2, n // 2], lat[n // 2, n // 2]) == pytest.approx(there, abs=1e-6)


@given(
    st.tuples(*[st.floats(-30, 30).filter(lambda v: abs(v) > 0.5)] * 4).filter(
        lambda t: abs(t[0] * t[3] - t[1] * t[2]) > 1
    ),
    st.floats(0, W),
    st.floats(0, H),
)
def test_a_place_in_the_picture_is_the_same_place_on_the_map(turn, column, row):
    a, b, d, e = turn
    transform = Affine(a, b, 570000, d, e, 4730000)
    frame = Frame.of(Grid(CRS.from_user_input(UTM), transform, W, H))
    there = frame.place(np.array([transform * (column, row)]))[0]
    assert frame.matrix(transform) * (column, row) == pytest.approx(tuple(there), abs=1e-3)
    assert (there >= -1e-3).all()
    assert (there <= np.array(frame.size) + 1e-3).all()


def test_north_is_where_the_map_says():
    south_up = Frame.of(Grid(CRS.from_user_input(UTM), Affine(10, 0, 570000, 0, 10, 4730000), W, H))
    assert south_up.north() == pytest.approx(0, abs=1)  # the plane has north above, whatever the rows do
    polar = Frame.of(Grid(CRS.from_epsg(3413), Affine(10, 0, 1e6, 0, -10, 0), W, H))  # 90 degrees east of its meridian
    assert polar.north() == pytest.approx(-90, abs=1)
    assert Frame.of(Grid(CRS.from_wkt(GRIDS["no place"][0]), UTM_10M, W, H)).north() is None


@given(st.lists(st.tuples(st.integers(-500, 500), st.integers(-500, 500)), min_size=3, max_size=12, unique=True))
def test_a_path_goes_through_all_corners(points):
    ring = shapely.LinearRing(points)
    drawn = draw(path_data(shapely.Polygon(ring), 2.0), 2.0)
    wanted = np.rint(np.array(points) / 2.0) * 2.0
    assert {tuple(p) for p in drawn} == {tuple(p) for p in wanted}


def test_landslides_of_parts_and_with_holes_are_drawn_whole(tmp_path):
    corner = ((slice(20, 40), slice(30, 60), 0.9), (slice(40, 60), slice(60, 80), 0.9))  # touch at a corner only
    ring = ((slice(80, 110), slice(20, 60), 0.9), (slice(90, 100), slice(30, 50), 0.1))
    path = write_report(tmp_path, write_map(tmp_path, places=(*corner, *ring)))
    drawn = {a["data-i"]: a["d"] for a in Page(path).all("path") if "data-i" in a}
    pieces = [[draw(f"M{piece}", 1.0) for piece in d.split("M")[1:]] for d in drawn.values()]
    assert [len(p) for p in pieces] == [2, 2]
    areas = sorted(sorted(shapely.Polygon(corners).area for corners in parts) for parts in pieces)
    assert areas == [[200 * 100, 300 * 400], [200 * 200, 200 * 300]]


def test_the_quicklook_draws_all_parts_and_holes():
    ring = shapely.box(0, 0, 9, 9).difference(shapely.box(3, 3, 6, 6))
    drawn = _path(shapely.MultiPolygon([ring, shapely.box(9, 9, 12, 12)]))
    assert drawn.codes.tolist().count(drawn.MOVETO) == 3


def test_no_text_becomes_markup(tmp_path):
    made = record(EVIL, [EVIL])
    made["inputs"]["scene"]["path"] = made["command"] = EVIL
    made["models"][0]["name"] = EVIL
    path = write_report(tmp_path, write_map(tmp_path), made=made)
    page = Page(path)
    assert not page.all("img")
    assert len(page.all("script")) == 2
    assert path.read_text().count("<script") == 2
    assert EVIL in "".join(page.words)


def frame_of(size=(H, W)):
    return Frame.of(Grid(CRS.from_user_input(UTM), UTM_10M, *size[::-1]))


def squares(count, side=30.0, **columns):
    """``count`` squares that grow."""
    sides = side + np.arange(count)
    left = 570000 + 10.0 * np.arange(count)
    geometry = shapely.box(left, 4729000, left + sides, 4729000 + sides)
    return gpd.GeoDataFrame({"id": np.arange(count), "area_m2": sides**2} | columns, geometry=geometry, crs=UTM)


def test_only_the_largest_are_drawn_but_all_are_counted(monkeypatch):
    found = Landslides(frame_of(), 10.0, most=50)
    for part in (squares(100), squares(200, 10.0), squares(3, 1000.0)):
        found.add(part)
    assert found.count == found.counts["area_m2"].sum() == 303
    shown = found.shown()
    assert len(shown) == 50
    assert shown["area_m2"].is_monotonic_decreasing
    assert shown["area_m2"].iloc[2] == 1000**2
    monkeypatch.setattr(found_module, "MOST_POINTS", 40)
    assert len(found.shown()) == 8


def test_a_ragged_landslide_is_drawn_coarser(monkeypatch):
    monkeypatch.setattr(found_module, "POINTS_OF_ONE", 200)
    edge = [(570000 + 20.0 * i, 4729000 + 30.0 * (i % 2)) for i in range(2000)]
    ragged = shapely.Polygon([*edge, (610000, 4720000), (570000, 4720000)])
    found = Landslides(frame_of(), 10.0)
    found.add(gpd.GeoDataFrame({"id": [1], "area_m2": [ragged.area]}, geometry=[ragged], crs=UTM))
    (outline,) = found.shown()["geometry"]
    assert 4 <= shapely.get_num_coordinates(outline) <= 200
    assert outline.area == pytest.approx(ragged.area, rel=0.05)


def test_the_page_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(found_module, "MOST_POINTS", 11)
    page = Page(write_report(tmp_path, write_map(tmp_path)))
    assert "Only the 2 largest of 3 landslides are drawn and listed" in page.text
    assert "out.gpkg has all of them" in page.text


def test_blocks_are_means_of_what_is_known():
    rng = np.random.default_rng(0)
    values = rng.random((2, 70, 45)).astype(np.float32)
    values[:, 10:20, 30:] = np.nan
    grid = Grid(CRS.from_user_input(UTM), UTM_10M, 45, 70)

    def read(window):
        return values[:, window.row_off : window.row_off + window.height]

    found, transform = decimated(grid, read, 10)  # blocks of 7
    assert found.shape == (2, 10, 7)
    assert transform * (1, 1) == UTM_10M * (7, 7)
    with np.errstate(all="ignore"):
        wanted = [[np.nanmean(values[0, r : r + 7, c : c + 7]) for c in range(0, 45, 7)] for r in range(0, 70, 7)]
    assert np.allclose(found[0], wanted, equal_nan=True)


class Endless:
    """A raster that is made while it is read."""

    def __init__(self, height):
        self.grid = Grid(CRS.from_user_input(UTM), UTM_10M, 1000, height)

    def read(self, window: Window, layer: str):
        return np.full((int(window.height), int(window.width)), 0.1, np.float32)


def test_memory_does_not_grow_with_the_scene(tmp_path):
    def peak(height):
        tracemalloc.start()
        report = Report(Endless(height), LAYERS[0], page=tmp_path / "page.html")
        report.add(squares(3))
        summary = {"landslides": 3, "area_m2": 1.0, "largest_m2": 1.0, "seen_share": 1.0, "landslide_share": 0.1}
        with ExitStack() as until:
            report.write(record(), summary | {"threshold": 0.5, "out": "x.gpkg"}, until)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2000)  # imports
    assert peak(40_000) < 1.3 * peak(4000)


def test_before_and_after_have_the_same_colours(tmp_path):
    files = write_map(tmp_path)
    with open_scene(files.after) as after, open_scene(files.before) as before, ProbabilityRaster(files.prob) as raster:
        photos = Report(raster, LAYERS[0], scene=after, before=before)._photos()
    assert [*photos] == ["before", "image"]
    same = photos["before"].pixels == photos["image"].pixels
    changed = np.zeros((H, W), bool)
    for rows, columns, _ in PLACES:
        changed[rows, columns] = True
    assert same[~changed].all()
    assert not same[changed].all(axis=-1).any()
    assert "2018-09-11, natural colours" in photos["image"].caption


@pytest.mark.parametrize(
    ("bands", "shown", "said"),
    [
        (("B2", "B3", "B4", "dem"), ("B4", "B3", "B2"), "natural"),
        (("B8", "B4", "B3"), ("B8", "B4", "B3"), "false colours: B8, B4, B3"),
        (("B8", "slope"), ("B8",), "band B8 in grey"),
        (("dem",), (), ""),
    ],
)
def test_scenes_without_red_green_and_blue_are_shown_too(bands, shown, said):
    found, words = shown_bands(bands)
    assert found == shown
    assert said in words


def test_relief_is_lit_from_the_upper_left():
    row, column = np.indices((20, 20), dtype=np.float32)
    towards, away, flat = (relief(10 * slope, 10.0)[5, 5] for slope in (row + column, -row - column, 0 * row))
    assert towards[0] > flat[0] > away[0]
    assert flat[0] == 60 + int(195 / np.sqrt(2))
    assert (relief(np.full((4, 4), np.nan, np.float32), 10.0)[..., 3] == 0).all()


def test_what_is_not_valid_is_transparent():
    bands = np.ones((3, 4, 5), np.float32)
    bands[:, 0] = np.nan
    bands[:, 1] = 2
    pixels = Stretch.of(bands)(bands)
    assert (pixels[0, :, 3] == 0).all()
    assert (pixels[1:, :, 3] == 255).all()


def test_bars_are_as_high_as_their_numbers():
    counts = np.array([0, 4, 2, 1, 0])
    bars = Bars("By size", np.arange(6.0), counts, "m").trimmed()
    assert bars.edges.tolist() == [1, 2, 3, 4]
    heights = [float(h) for h in re.findall(r'class="bar".*?height="([\d.]+)"', histogram(bars))]
    assert np.array(heights) / heights[0] == pytest.approx([1, 0.5, 0.25], abs=0.01)
    many = Bars("Elevation", BINS["elevation"], np.ones(len(BINS["elevation"]) - 1, int), "m").trimmed()
    assert len(many.counts) <= 24
    assert many.counts.sum() == len(BINS["elevation"]) - 1


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=30))
def test_any_areas_make_a_chart(areas):
    counts = np.histogram(np.clip(areas, *BINS["area_m2"][[0, -1]]), BINS["area_m2"])[0]
    chart = histogram(Bars("By area", BINS["area_m2"], counts, "m²", log=True).trimmed())
    assert f"{len(areas):,} landslides" in chart
    assert "nan" not in chart


def test_readers_are_warned():
    def said(part=None, **changes):
        found = Landslides(frame_of(), 10.0)
        if part is not None:
            found.add(part)
        summary = {"seen_share": 1.0, "landslide_share": 0.01, "threshold": 0.5} | changes
        return " ".join(warnings(summary, found))

    sound = squares(10, prob_mean=0.9, agreement=1.0, edge=False)
    assert said(sound) == ""
    assert "No landslide was found" in said()
    assert "Only 40 % of the scene was seen" in said(sound, seen_share=0.4)
    assert "31 % of the ground is mapped" in said(sound, landslide_share=0.31)
    assert "touch the edge" in said(sound.assign(edge=True))
    assert "100 % of the landslides the networks do not agree" in said(sound.assign(agreement=0.5))
    assert "hardly more probable than the threshold" in said(sound.assign(prob_mean=0.55))
    assert "3 of the landslides were there in the image before" in said(sound.assign(new=["no"] * 3 + ["yes"] * 7))


def test_probabilities_are_explained_as_what_they_are(tmp_path, page):
    assert "was not calibrated" in page.text
    made = record()
    made["models"][0]["calibration"] = {"temperature": 1.3}
    sure = Page(write_report(tmp_path, write_map(tmp_path), made=made))
    assert "was not calibrated" not in sure.text
    assert "about 8 in 10 pixels" in sure.text


def test_a_map_without_landslides_has_a_page_too(tmp_path):
    page = Page(write_report(tmp_path, write_map(tmp_path, places=())))
    assert "No landslide was found" in page.text
    assert page.data["rows"] == []


def test_map_writes_page_and_picture_and_the_command_repeats_it(scene, model, tmp_path):  # noqa: F811
    asked = options(scene, model, tmp_path, report=tmp_path / "out.html", quicklook=tmp_path / "look.jpg", tta=False)
    map_scene(asked, Silent())
    page = Page(tmp_path / "out.html")
    assert "Landslides in scene_20180911" in page.text
    assert "Image of 2018-09-11" in page.text
    assert len(page.data["rows"]) == 2
    assert len(page.all("g", id="layer-image")) == 1
    words = shlex.split(json.loads((tmp_path / "out.html.json").read_text())["command"])
    assert words[:2] == ["l4s-map", "map"]
    parsed = map_command.make_context("map", words[2:]).params
    assert MapOptions(**{k: v for k, v in parsed.items() if k not in NOT_OPTIONS}) == asked
    with Image.open(tmp_path / "look.jpg") as picture:
        assert 800 <= max(picture.size) <= 1900


@pytest.mark.parametrize(
    "changes",
    [
        {"bands": ("B4", "B3", "B2"), "masks": ("a b.tif", "c.gpkg"), "models": ("x", "y"), "crf": False, "scl": False},
        {"threshold": 0.25, "simplify": 12.5, "overlap": 0.3, "tta": True, "preset": "recall", "units": "byte"},
    ],
)
def test_commands_say_all_options(changes, tmp_path):
    asked = MapOptions(scene="a scene's.tif", out=tmp_path / "o.gpkg", **changes)
    words = shlex.split(command_line("map", "scene", asked))
    parsed = map_command.make_context("map", words[2:]).params
    assert MapOptions(**{k: v for k, v in parsed.items() if k not in NOT_OPTIONS}) == asked


def test_the_quicklook_shows_the_landslides(built):
    with Image.open(built.with_name("out.png")) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert 1500 <= max(picture.size) <= 1900
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 60) & (pixels[..., 2] < 90)
    assert red.sum() > 200


def run(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def test_polygonize_writes_them_too(tmp_path):
    files = write_map(tmp_path)
    wanted = ("--report", tmp_path / "p.html", "--quicklook", tmp_path / "p.png", "--threshold", 0.5)
    run("polygonize", files.prob, "--out", tmp_path / "p.gpkg", "--dem", files.dem, *wanted)
    page = Page(tmp_path / "p.html")
    assert len(page.data["rows"]) == 3
    assert "There was no image to show" in page.text
    assert page.all("g", id="layer-probability")
    assert page.all("g", id="layer-relief")
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize("option", ["--report", "--quicklook"])
def test_bad_names_are_refused_before_any_work(tmp_path, option):
    files = write_map(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "there.png").write_text("mine")
    before = sorted(p.name for p in tmp_path.iterdir())
    there = tmp_path / ("there.html" if option == "--report" else "there.png")
    for name in ("page.pdf", "nowhere/page.html", "nowhere/page.png", there):
        with pytest.raises(L4SError):
            run_polygonize(files, tmp_path, option, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert there.read_text() == "mine"


def run_polygonize(files, folder, option, name):
    from l4s_geo.polygonize import PolygonizeOptions, polygonize

    made = {option.removeprefix("--"): folder / name}
    polygonize(PolygonizeOptions(files.prob, folder / "p.gpkg", threshold=0.5, **made), Silent())


def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    files = write_map(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("l4s_geo.report.quicklook.quicklook", full)
    with pytest.raises(L4SError, match="No space left"):
        run_polygonize(files, tmp_path, "--quicklook", "p.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_run_whose_page_failed_goes_on(scene, model, tmp_path, monkeypatch):  # noqa: F811
    from l4s_geo.plan import Here

    asked = options(scene, model, tmp_path, report=tmp_path / "out.html", quicklook=tmp_path / "out.png")
    firsts = []

    class Source(Here):
        def __call__(self, plan, scene, first=0, end=None):
            firsts.append(first)
            return super().__call__(plan, scene, first, end)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("l4s_geo.report.quicklook.quicklook", full)
        with pytest.raises(L4SError, match="No space left"):
            map_scene(asked, Silent(), Source())
    assert not (tmp_path / "out.html").exists()
    map_scene(replace(asked, resume=True), Silent(), Source())
    assert firsts == [0, 300]  # all rows were there
    assert len(Page(tmp_path / "out.html").data["rows"]) == 2


def test_batch_writes_a_page_for_each(scene, model, tmp_path):  # noqa: F811
    out = tmp_path / "maps"
    result = run(
        "batch", scene, "--out", out, "--model", model, "--device", "cpu", "--report", "--quicklook", "-q"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert Page(out / "scene_20180911.html").data["rows"]
    assert (out / "scene_20180911.png").exists()


def test_products_are_made_only_where_wanted(tmp_path):
    files = write_map(tmp_path)
    with ProbabilityRaster(files.prob) as raster:
        assert [*results.products_for(Outputs(tmp_path / "o.gpkg"), raster)] == []


@needs_data
def test_a_real_scene_has_a_light_page(tmp_path):
    folder = DATA / "hokkaido_s2"
    with open_scene(f"{folder}/post_B*.tif", dem=folder / "dem.tif") as after:
        report = Report(Flat(after.grid), LAYERS[0], page=tmp_path / "page.html", scene=after)
        summary = {"landslides": 0, "area_m2": 0.0, "largest_m2": 0.0, "seen_share": 1.0, "landslide_share": 0.0}
        with ExitStack() as until:
            report.write(record(), summary | {"threshold": 0.5, "out": "x.gpkg"}, until)
    assert 50_000 < (tmp_path / "page.html").stat().st_size < 1_500_000


class Flat(Endless):
    """Low probabilities on a grid."""

    def __init__(self, grid):
        self.grid = grid
