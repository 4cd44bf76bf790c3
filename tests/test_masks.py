"""Areas of interest, masks, flat ground, and the density grid: where a map looks, and what it leaves out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window
from scipy.ndimage import maximum_filter
from shapely.geometry import Polygon, box

from l4s_geo import plan
from l4s_geo.cli import main
from l4s_geo.density import Density
from l4s_geo.errors import InputError, OutputError
from l4s_geo.masks import Limits, open_limits
from l4s_geo.models import zoo
from l4s_geo.pipeline import map_scene
from l4s_geo.polygonize import PolygonizeOptions, polygonize
from l4s_geo.progress import Silent
from l4s_geo.scene import Grid
from l4s_geo.vector import Polygons

from .test_pipeline import Brightness, model, options, scene, write  # noqa: F401 (fixtures)
from .test_resume import fail_at, often, tall, wanted  # noqa: F401 (fixtures)

CRS_, AT = "EPSG:32651", Affine(10, 0, 3e5, 0, -10, 2.6e6)


def rectangle(row, column, end_row, end_column):
    return box(*(AT * (column, end_row)), *(AT * (end_column, row)))


def area(path, *shapes, to="EPSG:4326"):
    """A vector file of rectangles (row, column, end row, end column) of the scene, or of other shapes."""
    found = [rectangle(*s) if isinstance(s, tuple) else s for s in shapes]
    gpd.GeoSeries(found, crs=CRS_).segmentize(200).to_crs(to).to_file(path)
    return str(path)


def landslides(path):
    return gpd.read_file(path, layer="landslides")


def pixels(path, band=1):
    with rasterio.open(path) as file:
        return file.read(band)


# --- where one looks ----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 5))
def test_a_window_sees_the_area_and_its_margin_as_the_whole_does(seed, margin):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(3, 30, 2)
    grid = Grid(CRS.from_user_input(CRS_), AT, int(w), int(h))
    corners = [(r, c, r + rng.integers(1, 9), c + rng.integers(1, 9)) for r, c in rng.integers(0, (h, w), (3, 2))]
    whole = np.zeros((h, w), bool)
    for r, c, end_r, end_c in corners:
        whole[r:end_r, c:end_c] = True
    shapes = Polygons("area", gpd.GeoSeries([rectangle(*c) for c in corners], crs=CRS_))
    row, col = int(rng.integers(0, h)), int(rng.integers(0, w))
    window = Window(col, row, int(rng.integers(1, w - col + 1)), int(rng.integers(1, h - row + 1)))
    # what lies beyond the grid counts for the margin as well, so the rectangles are cut at it
    shapes = Polygons("area", shapes.geometries.intersection(box(*grid.bounds)))
    found = Limits(shapes.burn(grid)).inside(window, margin)
    expected = maximum_filter(whole, 2 * margin + 1, mode="constant")
    assert np.array_equal(found, expected[row : row + window.height, col : col + window.width])


class Blurred(Brightness):
    """Looks far around every pixel, so that what it sees there matters."""

    def forward(self, x):
        return super().forward(torch.nn.functional.avg_pool2d(x, 41, 1, 20, count_include_pad=False) * 3)


def test_inside_the_area_the_map_is_that_of_the_whole_scene(scene, model, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(zoo, "build", lambda name, args, n: Blurred())
    where = area(tmp_path / "area.gpkg", (90, 30, 170, 77), (200, 0, 203, 200))
    whole = options(scene, model, tmp_path, prob=tmp_path / "whole.tif")
    part = replace(whole, out=tmp_path / "part.gpkg", prob=tmp_path / "part.tif", aoi=where)
    records = [json.loads(map_scene(o, Silent()).message and Path(f"{o.out}.json").read_text()) for o in (whole, part)]
    inside = np.zeros((300, 200), bool)
    inside[90:170, 30:77] = inside[200:203] = True
    for band in (1, 2, 3):
        expected = np.where(inside, pixels(tmp_path / "whole.tif", band), np.nan)
        assert np.allclose(pixels(tmp_path / "part.tif", band), expected, atol=1e-5, equal_nan=True)
    assert 0.1 < np.nanmean(pixels(tmp_path / "part.tif")) < 0.9
    assert records[0]["normalization"] == records[1]["normalization"]
    assert records[1]["seen_share"] == pytest.approx(inside.sum() / inside.size, abs=1e-6)
    aoi = records[1]["inputs"]["aoi"]
    assert (aoi["path"], aoi["bytes"]) == (where, Path(where).stat().st_size)


def test_what_the_area_cuts_goes_on_outside(scene, model, tmp_path):  # noqa: F811
    where = area(tmp_path / "area.kml", (0, 0, 130, 200))
    map_scene(options(scene, model, tmp_path, aoi=where), Silent())
    (found,) = landslides(tmp_path / "out.gpkg").itertuples()
    assert found.area_m2 == pytest.approx(30 * 50 * 100, rel=1e-3)
    assert found.edge
    unseen = gpd.read_file(tmp_path / "out.gpkg", layer="not_seen")
    assert unseen.area_m2.sum() == pytest.approx(170 * 200 * 100, rel=1e-3)


def test_networks_see_only_patches_around_the_area(model, tmp_path, monkeypatch):  # noqa: F811
    seen = []

    class Counting(Brightness):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    monkeypatch.setattr(zoo, "build", lambda name, args, n: Counting())
    monkeypatch.setattr(plan, "for_inference", lambda network, channels: network)  # which tries it out
    write(tmp_path / "s.tif", np.random.default_rng(0).normal(500, 50, (3, 600, 600)))
    where = area(tmp_path / "area.gpkg", (20, 20, 30, 30))
    map_scene(options(tmp_path / "s.tif", model, tmp_path, aoi=where), Silent())
    assert sum(seen) == 2 * 9  # both networks; patches that begin at 0, 64 and 128 reach what is around
    seen.clear()
    below = area(tmp_path / "below.gpkg", (128, 0, 600, 600))
    map_scene(options(tmp_path / "s.tif", model, tmp_path, masks=(below,), overwrite=True), Silent())
    assert sum(seen) == 2 * 2 * 9  # the rows of patches that begin at 0 and 64


@pytest.mark.parametrize("kind", ["vector", "raster"])
def test_a_mask_is_the_same_as_no_data(kind, scene, model, tmp_path, raster):  # noqa: F811
    """Also for the statistics of the scene: clouds must not count."""
    hidden = np.zeros((300, 200), bool)
    hidden[90:150, 30:66] = hidden[0:30, 90:150] = True
    with rasterio.open(scene) as file:
        image = np.where(hidden, 0, file.read())
    image[:, 200:230, 60:90] = np.where(hidden[200:230, 60:90], 0, 9000)  # a cloud that is not masked
    write(tmp_path / "with_nodata.tif", image)
    write(tmp_path / "whole.tif", np.where(hidden, 9000, image))
    if kind == "vector":
        masks = [area(tmp_path / "a.geojson", (90, 30, 150, 66)), area(tmp_path / "b.fgb", (0, 90, 30, 150))]
    else:
        cells = np.zeros((50, 25), np.uint8)
        cells[15:25, 5:11], cells[0:5, 15:25], cells[40:] = 4, 1, 255
        at = AT * Affine.scale(6)
        masks = [raster("cloud.tif", cells, crs=CRS_, transform=at, nodata=255)]
    one = options(tmp_path / "with_nodata.tif", model, tmp_path, prob=tmp_path / "one.tif")
    other = options(tmp_path / "whole.tif", model, tmp_path, prob=tmp_path / "other.tif", masks=tuple(map(str, masks)))
    records = []
    for chosen, name in ((one, "one"), (other, "other")):
        map_scene(replace(chosen, out=tmp_path / f"{name}.gpkg"), Silent())
        records.append(json.loads((tmp_path / f"{name}.gpkg.json").read_text()))
        records[-1]["normalization"].pop("source")
    assert records[0]["normalization"] == records[1]["normalization"]
    assert np.array_equal(pixels(tmp_path / "one.tif"), pixels(tmp_path / "other.tif"), equal_nan=True)
    assert np.isnan(pixels(tmp_path / "other.tif")[hidden]).all()
    assert [m["path"] for m in records[1]["inputs"]["masks"]] == [str(m) for m in masks]


def test_a_mask_elsewhere_is_told(scene, model, tmp_path):  # noqa: F811
    far = area(tmp_path / "far.gpkg", (5000, 5000, 5010, 5010))
    result = map_scene(options(scene, model, tmp_path, masks=(far,)), Silent())
    assert f"note: the mask {far} does not reach" in result.message
    assert result.summary["landslides"] == 2


def test_polygonize_looks_where_map_does(scene, model, tmp_path):  # noqa: F811
    limits = {
        "aoi": area(tmp_path / "area.gpkg", (0, 0, 255, 200)),
        "masks": (area(tmp_path / "mask.gpkg", (100, 40, 160, 60)),),
    }
    map_scene(options(scene, model, tmp_path, prob=tmp_path / "prob.tif"), Silent())
    cut = PolygonizeOptions(tmp_path / "prob.tif", tmp_path / "cut.gpkg", density=tmp_path / "density.tif", **limits)
    polygonize(cut, Silent())
    normalizer = tmp_path / "statistics.json"
    normalizer.write_text(json.dumps(json.loads((tmp_path / "out.gpkg.json").read_text())["normalization"]))
    mapped = options(scene, model, tmp_path, overwrite=True, normalize=str(normalizer), **limits)
    map_scene(mapped, Silent())
    first, second = landslides(tmp_path / "out.gpkg"), landslides(tmp_path / "cut.gpkg")
    assert first.geometry.geom_equals(second.geometry).all()
    assert first.area_m2.tolist() == pytest.approx([60 * 30 * 100, 5 * 20 * 100], rel=1e-3)
    assert first.edge.all()
    assert pixels(tmp_path / "density.tif")[1, 0] == pytest.approx(1e6 * 1800 / (10_000 - 60 * 20))


def test_a_changed_area_is_not_resumed(tall, model, tmp_path, often, monkeypatch):  # noqa: F811
    where = area(tmp_path / "area.gpkg", (0, 0, 1500, 250))
    restore = fail_at(monkeypatch, 1000, InputError("The mount is gone."))
    with pytest.raises(InputError, match="mount"):
        map_scene(wanted(tall, model, tmp_path, aoi=where), Silent())
    restore()
    with pytest.raises(InputError, match="option aoi"):
        map_scene(wanted(tall, model, tmp_path, resume=True), Silent())
    os.utime(where, ns=(1, 1))
    with pytest.raises(InputError, match=r"input .*area\.gpkg"):
        map_scene(wanted(tall, model, tmp_path, aoi=where, resume=True), Silent())


# --- what cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--aoi", "missing.gpkg"], "no file 'missing.gpkg'"),
        (["--aoi", "far.gpkg"], "does not overlap"),
        (["--aoi", "hole.gpkg"], "no valid pixel inside hole.gpkg"),
        (["--aoi", "empty.fgb"], "holds no polygons"),
        (["--aoi", "points.geojson"], "holds Point geometries"),
        (["--aoi", "scene.txt"], "Cannot read polygons from scene.txt"),
        (["--aoi", "lost.shp"], "has no CRS"),
        (["--mask", "two.tif"], "2 bands"),
        (["--mask", "missing.tif"], "no file 'missing.tif'"),
        (["--mask", "scene.txt"], "cannot be opened as a raster"),
        (["--mask", "all.gpkg"], "no valid pixel outside all.gpkg"),
        (["--mask", "all.gpkg", "--normalize", "statistics.json"], "no valid pixel outside all.gpkg"),
        (["--min-slope", "5"], "--min-slope needs the slope"),
        (["--min-slope", "91"], "--min-slope"),
        (["--density", "d.png"], "no format for .png"),
        (["--density", "p.tif", "--prob", "p.tif"], "both p.tif"),
    ],
)
def test_bad_limits_give_one_message_and_no_file(given, said, scene, model, tmp_path, monkeypatch, raster):  # noqa: F811
    area(tmp_path / "far.gpkg", (5000, 0, 5010, 10))
    area(tmp_path / "hole.gpkg", (245, 175, 290, 190))
    area(tmp_path / "all.gpkg", (-10, -10, 310, 210))
    gpd.GeoSeries([], crs=CRS_).to_file(tmp_path / "empty.fgb")
    gpd.GeoSeries.from_xy([3e5], [2.6e6], crs=CRS_).to_file(tmp_path / "points.geojson")
    gpd.GeoSeries([rectangle(0, 0, 9, 9)], crs=CRS_).to_file(tmp_path / "lost.shp")
    (tmp_path / "lost.prj").unlink()
    (tmp_path / "scene.txt").write_text("no file of this kind")
    raster("two.tif", np.ones((2, 9, 9), np.uint8), crs=CRS_, transform=AT)
    statistics = {"bands": ["B4", "B3", "B2"], "center": [500] * 3, "scale": [50] * 3, "compression": "asinh"}
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    monkeypatch.chdir(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    done = CliRunner().invoke(main, ["map", scene.name, "--model", model, "--out", "out.gpkg", "-q", *given])
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == before


def test_an_area_is_never_written_over(scene, model, tmp_path):  # noqa: F811
    where = area(tmp_path / "out.gpkg", (0, 0, 300, 200))
    before = Path(where).read_bytes()
    with pytest.raises(OutputError, match="is an input"):
        map_scene(options(scene, model, tmp_path, aoi=where, overwrite=True), Silent())
    with pytest.raises(OutputError, match=r"Give --density another name"):
        map_scene(
            replace(options(scene, model, tmp_path, overwrite=True), out=tmp_path / "o.fgb", density=scene), Silent()
        )
    assert Path(where).read_bytes() == before


def test_an_outline_that_crosses_itself_is_no_bug(scene, model, tmp_path):  # noqa: F811
    corners = [AT * c for c in ((-50, -50), (250, 350), (250, -50), (-50, 350))]
    where = area(tmp_path / "bow.geojson", Polygon(corners))
    result = map_scene(options(scene, model, tmp_path, aoi=where), Silent())
    assert 0.2 < result.summary["seen_share"] < 0.8


def test_batch_looks_inside_the_area_only(scene, model, tmp_path):  # noqa: F811
    (tmp_path / "other.tif").write_bytes(scene.read_bytes())
    where = area(tmp_path / "area.gpkg", (90, 30, 170, 100))
    words = [str(scene), str(tmp_path / "other.tif"), "--out", str(tmp_path / "maps"), "--aoi", where]
    done = CliRunner().invoke(main, ["batch", *words, "--model", model, "--density", "--device", "cpu", "-q", "--json"])
    assert done.exit_code == 0, done.output
    assert [s["landslides"] for s in json.loads(done.stdout)["scenes"]] == [1, 1]
    assert np.nanmax(pixels(tmp_path / "maps" / "other-density.tif")) == pytest.approx(1e6 * 3000 / 4900)


# --- flat ground --------------------------------------------------------------------------------------------


def test_landslides_on_flat_ground_are_left_out_where_the_slope_is_known(scene, model, tmp_path, raster):  # noqa: F811
    """The large one lies on 3 degrees, that at the hole on 20; the small one where the slope raster is not."""
    slope = np.full((290, 200), 3, np.float32)
    slope[200:] = 20
    slope = str(raster("slope.tif", slope[20:], crs=CRS_, transform=AT * Affine.translation(0, 20), nodata=-1))
    chosen = options(scene, model, tmp_path, prob=tmp_path / "prob.tif", slope=slope, min_slope=0.0)
    kept = map_scene(chosen, Silent())
    assert kept.summary["landslides"] == 2
    assert not any("flatter" in note for note in kept.summary["notes"])
    left = map_scene(replace(chosen, min_slope=10.0, overwrite=True), Silent())
    assert landslides(tmp_path / "out.gpkg").slope_mean.tolist() == [20]
    assert landslides(tmp_path / "out.gpkg").id.tolist() == [1]
    assert any("flatter than 10 degrees" in note for note in left.summary["notes"])
    map_scene(options(scene, model, tmp_path, overwrite=True, prob=tmp_path / "prob.tif"), Silent())
    for limit, count in ((3, 3), (3.1, 2), (21, 1)):  # of the tiny one nothing says how steep it is
        again = PolygonizeOptions(tmp_path / "prob.tif", tmp_path / f"{limit}.gpkg", slope=slope, min_slope=limit)
        assert polygonize(replace(again, min_area=0), Silent()).summary["landslides"] == count


def test_by_default_flat_ground_counts_only_where_there_is_a_slope(scene, model, tmp_path, raster):  # noqa: F811
    flat = str(raster("dem.tif", np.zeros((300, 200), np.float32), crs=CRS_, transform=AT))
    without = map_scene(options(scene, model, tmp_path), Silent())
    with_dem = map_scene(options(scene, model, tmp_path, dem=flat, overwrite=True), Silent())
    kept = map_scene(options(scene, model, tmp_path, dem=flat, min_slope=0, overwrite=True), Silent())
    assert [r.summary["landslides"] for r in (without, with_dem, kept)] == [2, 0, 2]


# --- density ------------------------------------------------------------------------------------------------


def test_density_is_landslide_area_per_seen_square_kilometre(scene, model, tmp_path):  # noqa: F811
    density = tmp_path / "density.tif"
    where = area(tmp_path / "area.gpkg", (0, 0, 300, 200), to=CRS_)
    map_scene(options(scene, model, tmp_path, density=density, aoi=where, min_area=500.0), Silent())
    with rasterio.open(density) as file:
        assert file.transform == AT * Affine.scale(100)
        assert file.crs == CRS_
        assert np.isnan(file.nodata)
        found = file.read(1)
    expected = np.zeros((3, 2))
    expected[1, 0] = 0.3e6
    expected[2, 1] = 1e6 * 200 / (100 * 100 - 60 * 30)
    assert np.allclose(found, expected)
    assert json.loads((tmp_path / "density.tif.json").read_text())["output"] == "density.tif"


class Pixels:
    """A raster in memory."""

    def __init__(self, values):
        self.values = values
        self.grid = Grid(CRS.from_user_input(CRS_), AT * Affine.scale(30), values.shape[1], values.shape[0])

    def read(self, window, layer):
        return self.values[window.toslices()]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_density_times_seen_ground_is_the_area_of_the_landslides(seed, h, w, parts):
    """Cells of 3 x 3 pixels of 300 m, cut at the border; in whatever parts the landslides come."""
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array([0.1, 0.9, np.nan], np.float32), (h, w))
    raster = Pixels(values)
    rows, cols = np.nonzero(values > 0.5)
    corner = raster.grid.transform
    squares = [box(*(corner * (c, r + 1)), *(corner * (c + 1, r))) for r, c in zip(rows, cols, strict=True)]
    density = Density(Path("unused.tif"), raster, "probability")
    for part in range(parts):
        density.add(gpd.GeoDataFrame(geometry=gpd.GeoSeries(squares[part::parts], crs=CRS_)))
    found = density.values()
    seen = np.array(
        [[np.isfinite(values[r : r + 3, c : c + 3]).sum() for c in range(0, w, 3)] for r in range(0, h, 3)]
    )  # fmt: skip
    assert np.array_equal(np.isnan(found), seen == 0)
    assert np.nansum(found * seen) / 1e6 == pytest.approx(len(squares), rel=1e-5)
    assert np.nanmax(found, initial=0) <= 1e6


def test_limits_of_nothing_are_everywhere():
    grid = Grid(CRS.from_user_input(CRS_), AT, 7, 5)
    with open_limits(grid, "scene") as limits:
        assert not limits
        assert (limits.inside(grid.window(), 3) & limits.clear(grid.window())).all()
