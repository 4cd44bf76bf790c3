"""The report of an adaptation: its facts, its pictures, and what strange rasters and names do to it."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import rasterio
from affine import Affine
from matplotlib import image as pictures
from rasterio.enums import Resampling

from l4s_geo.adapt.guard import Signs
from l4s_geo.adapt.report import Report, RoundEntry, TargetFiles, write_report
from l4s_geo.adapt.views import Maps, View, true_colour, truth_of
from l4s_geo.data.synth_l4s import write_synthetic
from l4s_geo.errors import InputError
from l4s_geo.progress import Silent
from l4s_geo.scene import Grid
from l4s_geo.train.targets import copy_target, find_targets, grid_of
from tests.conftest import UTM, UTM_10M, write_raster

H, W = 60, 80
START = Signs(0.0417, 200, 0.05, 0.9, 0.8, 1.0, 0.9)


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Pictures of half the size, to be fast."""
    monkeypatch.setattr("l4s_geo.adapt.pictures.DPI", 70)


@pytest.fixture
def target(tmp_path):
    """A target with a landslide in its upper left that only the starting model maps, and one that both map."""
    return write_target(tmp_path / "in")


def write_target(folder, names=("B4", "B3", "B2"), **changes):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    valid = np.ones((H, W), bool)
    valid[:, :5] = False
    image = rng.integers(500, 2000, (len(names), H, W)).astype(np.uint16)
    before = np.stack([np.full((H, W), 0.1), rng.random((H, W))]).astype(np.float32)
    after = before.copy()
    before[0, 10:20, 10:20] = 0.8
    before[0, 40:50, 60:70] = after[0, 40:50, 60:70] = 0.9
    for answer in (before, after):
        answer[:, ~valid] = np.nan
    labels = np.where(before[0] > 0.5, 1, 0).astype(np.uint8)
    labels[30:40] = 255
    kind = {"nodata": np.nan, "names": ("probability", "uncertainty")}
    return TargetFiles(
        "valley",
        write_raster(folder / "image.tif", image, names=names, mask=valid),
        write_raster(folder / "before.tif", changes.get("before", before), **kind),
        write_raster(folder / "after.tif", changes.get("after", after), **kind),
        (write_raster(folder / "labels-1.tif", labels, nodata=255),),
    )


def report_on(*targets, **changes):
    """Of two rounds; the second is refused."""
    counts = {t.name: {"background": 4000, "landslide": 200, "not used": 800} for t in targets}
    worse = replace(START, share=0.2, pixels=900, agreement=0.31)
    rounds = (
        RoundEntry(0, {}, START, ()),
        RoundEntry(1, counts, replace(START, share=0.0211), ()),
        RoundEntry(2, counts, worse, ("it maps 5 times as much",)),
    )
    base = Report(
        "start", "auto", True, 1, "Round 2 looked like a collapse.", {"scene": 0.71, "model": 0.3}, "scene",
        0.5, 0.6, rounds, targets, {"rounds": 2}, {},
    )  # fmt: skip
    return replace(base, **changes)


class Page(HTMLParser):
    """Its text and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.tags, self.links = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.texts.append(data)


def facts_of(folder):
    def never(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=never)


def colours_of(path):
    """RGB (h, w, 3) of a PNG."""
    return pictures.imread(path)[..., :3]


def shows(path, colour):
    """Whether many of a PNG's pixels have a colour."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.count_nonzero(np.abs(colours_of(path) - rgb).max(axis=2) < 0.01) > 300


def test_page_and_json_tell_the_same_and_need_nothing_else(target, tmp_path):
    page = Page(write_report(report_on(target, given={"landslide polygons": 20}), tmp_path / "out"))
    facts = facts_of(tmp_path / "out")
    assert page.text.index("Adapted: round 1 is kept") < page.text.index("Rounds")
    for told in ("Round 2 looked like a collapse.", "it maps 5 times as much", "2.11 %", "4.76 %", "20 landslide"):
        assert told in page.text
    assert facts["kept"] == 1
    assert facts["rounds"][2]["faults"] == ["it maps 5 times as much"]
    assert facts["rounds"][1]["selected"]["valley"]["landslide"] == 200
    assert facts["targets"]["valley"]["pixels"] == {
        "seen": H * (W - 5),
        "only before": 100,
        "only after": 0,
        "both": 100,
    }
    assert "4.44 % (0.02 km²)" in page.text  # before: 200 of 4500 pixels of 100 m²
    assert len(page.links) == 4  # curves, map, uncertainty, labels
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "script" not in page.tags


def test_pictures_show_what_changed_and_the_labels(target, tmp_path):
    write_report(report_on(target), tmp_path / "out")
    files = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert files == {"curves.png", "1-valley-map.png", "1-valley-uncertainty.png", "1-valley-labels.png"}
    for name in files:
        assert colours_of(tmp_path / "out" / name).std() > 0.05
    gone, new, both = "#56b4e9", "#d55e00", "#f0e442"
    changed = tmp_path / "out" / "1-valley-map.png"
    assert [shows(changed, c) for c in (gone, new, both)] == [True, False, True]
    labels = tmp_path / "out" / "1-valley-labels.png"
    assert [shows(labels, c) for c in (new, both)] == [True, True]  # landslide, not used


def test_not_adapted_says_so_and_shows_one_map(target, tmp_path):
    page = Page(write_report(report_on(target, adapted=False, kept=0), tmp_path / "out"))
    assert "Not adapted: the starting model is kept" in page.text
    assert "starting model, kept" in page.text
    assert "After:" not in page.text
    pixels = facts_of(tmp_path / "out")["targets"]["valley"]["pixels"]
    assert (pixels["only before"], pixels["both"]) == (0, 200)
    assert not shows(tmp_path / "out" / "1-valley-map.png", "#56b4e9")


def test_names_are_escaped_and_stay_in_the_folder(target, tmp_path):
    evil = "../<script>alert('$x')</script>"
    report = report_on(
        replace(target, name=evil),
        model="/home/me/<b>model",
        settings={"source": ["/home/me/a.tif", "https://me:secret@host/b.tif?key=1"], "<i>": "&"},
    )
    path = write_report(report, tmp_path / "out")
    page, raw = Page(path), path.read_text()
    assert not {"script", "b", "i"} & {*page.tags}
    assert evil in page.text
    for text in (raw, (tmp_path / "out" / "report.json").read_text()):
        assert not any(private in text for private in ("/home/me", str(tmp_path), "secret", "key=1"))
    assert "a.tif" in page.text
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_figures_against_truth_are_compared(target, tmp_path):
    truth = np.zeros((H, W), np.uint8)
    truth[8:22, 8:22] = 1
    truth = write_raster(tmp_path / "truth.tif", truth, nodata=255)
    report = report_on(replace(target, truth=truth))
    figures = ({"precision": 0.5, "recall": 0.4, "f1": 0.444}, {"precision": 0.75, "recall": 0.4, "f1": 0.522})
    rounds = [replace(r, figures=f) for r, f in zip(report.rounds, figures, strict=False)]
    page = Page(write_report(replace(report, rounds=(*rounds, report.rounds[2])), tmp_path / "out"))
    for told in ("+25.0 points", "+0.0 points", "+7.8 points", "0.522"):
        assert told in page.text
    assert "No truth was given" not in page.text
    # Other statistics alone: the first model is not that of round 0.
    first = {"precision": 0.45, "recall": 0.4, "f1": 0.424}
    rest = replace(report, kept=0, rounds=(*rounds, report.rounds[2]), figures_before=first)
    other = Page(write_report(rest, tmp_path / "other"))
    assert "the starting model is kept, with other band statistics" in other.text
    assert "+5.0 points" in other.text
    without = Page(write_report(report_on(target), tmp_path / "without"))
    assert "No truth was given" in without.text
    name = "1-valley-map.png"
    assert (tmp_path / "out" / name).read_bytes() != (tmp_path / "without" / name).read_bytes()


def test_truth_in_another_crs_lies_where_it_should(target, tmp_path):
    grid = grid_of(target.image)
    degrees = grid.lattice(rasterio.CRS.from_epsg(4326))
    (west, south), (east, north) = np.min(degrees, axis=1), np.max(degrees, axis=1)
    step = (east - west) / 400
    truth = np.zeros((round((north - south) / step), 400), np.uint8)
    truth[: len(truth) // 2] = 1
    path = write_raster(
        tmp_path / "t.tif", truth, crs="EPSG:4326", transform=Affine(step, 0, west, 0, -step, north), nodata=255
    )
    found = truth_of(path, View.of(grid))
    assert found[: H // 2 - 3].mean() > 0.95
    assert found[H // 2 + 3 :].mean() < 0.05
    (tmp_path / "no.tif").write_text("no raster")
    with pytest.raises(InputError, match="same place"):
        truth_of(tmp_path / "no.tif", View.of(grid))


@pytest.mark.parametrize("case", ["nothing seen after", "no landslide", "one band", "one network"])
def test_strange_rasters_still_give_a_report(case, tmp_path):
    empty, flat = np.full((2, H, W), np.nan, np.float32), np.full((2, H, W), 0.01, np.float32)
    calm = flat.copy()
    calm[1] = 0
    target = {
        "nothing seen after": lambda d: write_target(d, after=empty),
        "no landslide": lambda d: write_target(d, before=flat, after=flat),
        "one band": lambda d: write_target(d, names=("B8",)),
        "one network": lambda d: write_target(d, before=calm, after=calm),
    }[case](tmp_path / "in")
    nothing = replace(START, confidence=float("nan"))
    rounds = (RoundEntry(0, {}, START, ()), RoundEntry(1, {}, nothing, ()))
    page = Page(write_report(report_on(target, rounds=rounds), tmp_path / "out"))
    facts = facts_of(tmp_path / "out")
    assert facts["rounds"][1]["signs"]["confidence"] is None
    pixels = facts["targets"]["valley"]["pixels"]
    if case == "nothing seen after":
        assert (pixels["only before"], pixels["only after"], pixels["both"]) == (200, 0, 0)
    if case in ("no landslide", "one network"):
        assert (pixels["only before"], pixels["only after"], pixels["both"]) == (0, 0, 0)
        assert "0.00 % (0.00 km²)" in page.text
    assert ("it is 0 everywhere" in page.text) == (case == "one network")


def test_large_rasters_are_read_decimated(tmp_path):
    side, spot = 4000, (slice(1000, 1003), slice(2000, 2003))
    kind = {"driver": "GTiff", "width": side, "height": side, "crs": UTM, "transform": UTM_10M, "tiled": True}
    paths = {}
    for name, count, dtype in (("image", 3, "uint16"), ("before", 2, "float32"), ("after", 2, "float32")):
        paths[name] = tmp_path / f"{name}.tif"
        with rasterio.open(paths[name], "w", **kind, count=count, dtype=dtype, sparse_ok=True) as file:
            file.descriptions = ("B4", "B3", "B2")[:count]
            if name == "before":
                file.write(np.ones((3, 3), np.float32), 1, window=((1000, 1003), (2000, 2003)))
    maps = Maps(paths["image"], paths["before"], paths["after"], (0.5, 0.5))
    tracemalloc.start()
    view = View.of(grid_of(paths["image"]))
    colour, shares, prob = (
        true_colour(paths["image"], view),
        maps.shares(view),
        view.read(paths["before"], [1], Resampling.average),
    )
    counts = maps.count()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < side * side * 4  # one band of one raster
    assert colour.shape == (900, 900, 3)
    assert prob.shape == (1, 900, 900)
    assert counts["only before"] == 9
    assert counts["seen"] == side * side
    # A landslide of nine pixels is still there, at its place, and as large as it was.
    y, x = (s.start * 900 // side for s in spot)
    near = shares[0, y - 1 : y + 3, x - 1 : x + 3]
    assert near.sum() == pytest.approx(shares[0].sum())
    assert near.sum() * (side / 900) ** 2 == pytest.approx(9, rel=0.3)


def test_patches_are_shown_side_by_side(tmp_path):
    write_synthetic(tmp_path / "l4s", 10, "images", 0, Silent())  # two of them for testing
    bands = ("B4", "B3", "B2")
    [found] = find_targets([str(tmp_path / "l4s")], bands, 10)
    grid = grid_of(copy_target(found, tmp_path / "t", bands, 10))
    colour = true_colour(tmp_path / "t" / "image.tif", View.of(grid))
    assert colour.shape == (128, 258, 3)
    assert np.isfinite(colour[:, :128]).all()
    assert np.isfinite(colour[:, 130:]).all()
    many = View.of(replace(grid, height=256 * 800))
    tops = many.compose(lambda w: np.full((1, *many.shape), w.row_off, np.float32))[0]
    assert tops.shape == (4 * 130 - 2, 7 * 130 - 2)
    assert (tops[0, 0], tops[-1, -1]) == (0, 256 * 799)
    assert not (tops[np.isfinite(tops)] % 256).any()


def test_a_view_keeps_proportions():
    view = View.of(Grid(rasterio.CRS.from_string(UTM), UTM_10M, 10980, 5490))
    assert view.shape == (450, 900)
    assert View.of(Grid(rasterio.CRS.from_string(UTM), UTM_10M, 9000, 1)).shape == (1, 900)
    assert View.of(Grid(rasterio.CRS.from_string(UTM), UTM_10M, 80, 60)).shape == (60, 80)
