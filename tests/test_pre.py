"""A scene from before the event: laid on the scene's grid, shifted onto it, and compared landslide by landslide."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform as convert
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter, map_coordinates
from shapely.geometry import box

from l4s_geo.batch import Job, find_jobs, map_batch
from l4s_geo.before.alignment import find_shift
from l4s_geo.before.novelty import NO, UNKNOWN, YES, novelty
from l4s_geo.before.scene import Before, Comparison, open_before
from l4s_geo.cli import main
from l4s_geo.errors import InputError, OutputError
from l4s_geo.masks import EVERYWHERE
from l4s_geo.pipeline import map_scene
from l4s_geo.polygonize import PolygonizeOptions, polygonize
from l4s_geo.progress import Silent
from l4s_geo.scene import Grid, open_scene
from l4s_geo.settings import MapOptions
from l4s_geo.vectorize import LAYERS, vectorize

from .conftest import DATA, needs_data
from .test_pipeline import BANDS, model, options, write  # noqa: F401 (fixtures)
from .test_resume import fail_at, often, tall, wanted  # noqa: F401 (fixtures)
from .test_safe import CORNER, SIZE, newer, write_safe, zipped

UTM, AT, SHAPE = "EPSG:32651", Affine(10, 0, 3e5, 0, -10, 2.6e6), (300, 200)

#: Scars in metres from the upper left corner: left, top, right, bottom. One is new, one was there before, one lies
#: where nothing was seen before.
NEW, OLD, HIDDEN = (400, 1000, 900, 1600), (1200, 400, 1500, 900), (1200, 2300, 1600, 2700)


#: Ground in cells of 5 m from 500 m above and left of the scene on, coarse and fine together.
GROUND = sum(
    gaussian_filter(layer, width) * width
    for layer, width in zip(np.random.default_rng(3).normal(size=(3, 1000, 900)), (1.5, 3, 8), strict=True)
)


def ground(x, y):
    """Brightness around 500 of ground anywhere, from metres."""
    return 500 + 40 * map_coordinates(GROUND, [(y + 500) / 5, (x + 500) / 5], order=1) / GROUND.std()


def look(transform, shape, *scars, crs=UTM, gain=1.0, noise=10.0, seed=0, moved=(0.0, 0.0)):
    """(3, h, w) image of the ground with bare scars, as another season and light show it; ``moved`` in metres."""
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = transform * (cols, rows)
    if crs != UTM:
        x, y = (np.reshape(v, shape) for v in convert(crs, UTM, x.ravel(), y.ravel()))
    x, y = x - AT.c - moved[0], AT.f - y - moved[1]
    image = np.stack([ground(x, y)] * 3) + np.random.default_rng(seed).normal(0, noise, (3, *shape))
    for left, top, right, bottom in scars:
        image[:, (x >= left) & (x < right) & (y >= top) & (y < bottom)] = 1200
    return 150 + gain * image if gain != 1 else image


@pytest.fixture
def after(tmp_path):
    return write(tmp_path / "after_20180911.tif", look(AT, SHAPE, NEW, OLD, HIDDEN), transform=AT)


@pytest.fixture
def before(tmp_path):
    """On another grid, in another CRS, in another light, 12 m too far east and 8 m too far south, half a scene."""
    transform, shape = Affine(1e-4, 0, 121.0330, 0, -1e-4, 23.4990), (290, 230)
    image = look(transform, shape, OLD, HIDDEN, crs="EPSG:4326", gain=1.5, noise=15, seed=1, moved=(12, 8))
    image[:, 205:] = 0
    path = write(tmp_path / "before_20180801.tif", image, crs="EPSG:4326", transform=transform)
    return str(path)


def by_scar(path):
    """``new`` of the landslide in each scar; None where there is none."""
    found = gpd.read_file(path, layer="landslides")
    at = [gpd.points_from_xy([AT.c + (a + c) / 2], [AT.f - (b + d) / 2])[0] for a, b, c, d in (NEW, OLD, HIDDEN)]
    hits = [found[found.contains(point)] for point in at]
    return [None if hit.empty else hit.new.item() for hit in hits]


# --- what is new --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "old"), [("drop", None), ("flag", "no")])
def test_new_old_and_unknown(action, old, after, before, model, tmp_path):  # noqa: F811
    result = map_scene(options(after, model, tmp_path, pre=before, pre_action=action), Silent())
    assert by_scar(tmp_path / "out.gpkg") == ["yes", old, "unknown"]
    assert result.summary["landslides"] == (2 if action == "drop" else 3)
    record = json.loads((tmp_path / "out.gpkg.json").read_text())
    entry = record["inputs"]["pre"]
    assert (entry["path"], entry["bytes"]) == (before, Path(before).stat().st_size)
    found = record["pre"]
    assert (found["action"], found["date"], found["bands"]) == (action, "2018-08-01", list(BANDS))
    assert (found["shift"]["east_m"], found["shift"]["south_m"]) == pytest.approx((12, 8), abs=1.5)
    assert found["shift"]["taken_out"]
    assert 0.5 < found["seen_share"] < 0.9
    said = "\n".join(record["notes"])
    assert "sees" in said
    assert "m east and" in said
    assert "this was taken out" in said


def test_a_scene_against_itself_has_nothing_new(after, model, tmp_path):  # noqa: F811
    map_scene(options(after, model, tmp_path, pre=str(after), pre_action="flag"), Silent())
    assert by_scar(tmp_path / "out.gpkg") == ["no"] * 3
    result = map_scene(options(after, model, tmp_path, pre=str(after), overwrite=True), Silent())
    assert result.summary["landslides"] == 0
    assert "is of 2018-09-11, not before the scene of 2018-09-11" in result.message


def test_a_tight_area_of_interest_sees_the_ground_around(after, before, model, tmp_path):  # noqa: F811
    left, top, right, bottom = NEW
    where = gpd.GeoSeries([box(AT.c + left, AT.f - bottom, AT.c + right, AT.f - top)], crs=UTM)
    where.to_file(tmp_path / "scar.gpkg")
    map_scene(options(after, model, tmp_path, pre=before, aoi=str(tmp_path / "scar.gpkg")), Silent())
    assert by_scar(tmp_path / "out.gpkg") == ["yes", None, None]


def test_large_landslides_are_compared_too(model, tmp_path):  # noqa: F811
    """Most of their pixels have no other ground around."""
    large = (200, 200, 1800, 1500), (200, 1700, 1800, 2800)
    scene = write(tmp_path / "after.tif", look(AT, SHAPE, *large), transform=AT)
    pre = write(tmp_path / "before.tif", look(AT, SHAPE, large[1], seed=1), transform=AT)
    chosen = options(scene, model, tmp_path, pre=str(pre), pre_action="flag", normalize="model")
    map_scene(chosen, Silent())
    assert gpd.read_file(tmp_path / "out.gpkg", layer="landslides").new.tolist() == ["yes", "no"]


def test_what_was_brighter_still_is_no_scar(after, model, tmp_path):  # noqa: F811
    """Cloud and snow hide what was there."""
    image = look(AT, SHAPE, OLD, seed=1)
    image[:, 85:175, 30:100] = 6000
    pre = write(tmp_path / "pre.tif", image, transform=AT)
    map_scene(options(after, model, tmp_path, pre=str(pre), pre_action="flag"), Silent())
    assert by_scar(tmp_path / "out.gpkg") == ["unknown", "no", "yes"]


def test_a_product_as_the_scene_from_before(model, tmp_path):  # noqa: F811
    """Zipped Level-2A with the offset of newer baselines, and cloud over one scar by its classification."""
    rows, cols = np.mgrid[:SIZE, :SIZE] * 10.0
    scars = [np.s_[20:50, 20:40], np.s_[20:50, 60:80], np.s_[80:100, 40:70]]
    old, new = (ground(cols, rows) for _ in range(2))
    for scar in scars:
        new[scar] = 1200
    old[scars[1]] = 1100
    classes = np.full((SIZE // 2, SIZE // 2), 5, np.uint8)
    classes[35:55, 15:40] = 9
    images = {band: (old + 1000).astype(np.uint16) for band in BANDS}
    pre = zipped(write_safe(tmp_path, newer("L2A", images=images, scl=classes)))
    scene = write(tmp_path / "after.tif", np.stack([new] * 3), crs="EPSG:32654", transform=CORNER)
    result = map_scene(options(scene, model, tmp_path, pre=str(pre), pre_action="flag"), Silent())
    found = gpd.read_file(tmp_path / "out.gpkg", layer="landslides")
    assert found.new.tolist() == ["yes", "no", "unknown"]
    assert "--pre" in result.message
    assert "offset of the metadata" in result.message
    assert "shows the ground" not in result.message  # lies where it should


@pytest.mark.parametrize("extension", ["gpkg", "geojson", "fgb", "parquet", "shp"])
def test_without_a_scene_from_before_new_is_empty(extension, after, model, tmp_path):  # noqa: F811
    out = tmp_path / f"o.{extension}"
    map_scene(MapOptions(str(after), out, models=(model,), device="cpu", prob=tmp_path / "p.tif"), Silent())
    layer = {"layer": "landslides"} if extension == "gpkg" else {}
    found = gpd.read_parquet(out) if extension == "parquet" else gpd.read_file(out, **layer)
    assert len(found) == 3
    assert found.new.isna().all()
    record = json.loads(out.with_name(out.name + ".json").read_text())
    assert "pre" not in record
    polygonize(PolygonizeOptions(tmp_path / "p.tif", tmp_path / f"again.{extension}"), Silent())


def test_verdicts():
    nan = np.nan
    table = [
        # pixels, compared, now, before
        (10, 10, 2.0, 0.1, YES),
        (10, 10, 2.0, -0.5, YES),
        (10, 10, 2.0, 1.9, NO),
        (10, 10, 2.0, 2.5, NO),
        (10, 10, 2.0, 1.0, UNKNOWN),  # half of it
        (10, 4, 2.0, 0.0, UNKNOWN),  # hardly seen
        (10, 10, 0.1, 0.0, UNKNOWN),  # does not stand out
        (10, 10, -1.0, 0.0, UNKNOWN),
        (10, 0, nan, nan, UNKNOWN),
    ]
    *numbers, expected = zip(*table, strict=True)
    assert novelty(*(np.array(n, float) for n in numbers)).tolist() == list(expected)


@needs_data
def test_hokkaido_landslides_are_new_and_those_of_a_later_image_are_not():
    """Labelled landslides against the scene from before, and against another image from after the earthquake."""
    scenes = {"before": str(DATA / "hokkaido_s2/pre_B*.tif"), "after": str(DATA / "l4s_scenes/hokkaido/rgb.tif")}
    shares = {}
    with (
        open_scene(DATA / "hokkaido_s2/post_B*.tif", wanted=BANDS) as scene,
        open_scene(DATA / "l4s_scenes/hokkaido/labels.tif", bands=("B2",), units="byte", grid=scene.grid) as labels,
    ):
        values, known = labels.read(scene.grid.window())
        truth = np.where(known, (values[0] > 0.5) & (values[0] < 1.5), np.nan).astype(np.float32)
        for name, path in scenes.items():
            with open_before(path, scene, units="auto") as compared:
                assert compared.shift.peak > 10
                mapped = Pixels(scene.grid, truth)
                found = vectorize(
                    mapped, None, scene.grid.crs, {}, threshold=0.5, min_area=1000, min_slope=0,
                    max_hole=0, simplify=0, compared=compared.comparison(mapped, LAYERS[0], 0.5), old="flag",
                )  # fmt: skip
                counts = next(iter(found.landslides)).new.value_counts()
                shares[name] = counts.get("yes", 0) / (counts.get("yes", 0) + counts.get("no", 0))
                assert counts.get("yes", 0) + counts.get("no", 0) > 150
    assert shares["before"] > 0.95
    assert shares["after"] < 0.05


# --- alignment ----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(0.5, 2))
def test_shifts_are_found_to_a_part_of_a_pixel(east, south, gain):
    one = look(AT, (256, 128))[0]
    other = look(AT, (256, 128), gain=gain, seed=1, moved=(east, south))[0]
    valid = np.ones((128, 128), bool)
    pairs = [(one[i : i + 128], other[i : i + 128], valid) for i in (0, 128)]
    shift = find_shift(pairs, 128)
    assert (10 * shift.column, 10 * shift.row) == pytest.approx((east, south), abs=1)
    assert shift.windows == 2
    assert shift.peak > 10


def test_nothing_to_see_is_no_shift():
    empty = np.zeros((64, 64), np.float32)
    for valid in (empty > 0, empty == 0):
        assert find_shift([(empty, empty, valid)], 64).peak == 0
    assert find_shift([], 64).windows == 0


def test_other_ground_is_told_and_ground_far_away_refused(after, model, tmp_path):  # noqa: F811
    image = np.random.default_rng(9).normal(500, 50, (3, *SHAPE))
    other = write(tmp_path / "other.tif", image, transform=AT)
    result = map_scene(options(after, model, tmp_path, pre=str(other)), Silent())
    assert "does not look like the same ground" in result.message
    far = write(tmp_path / "far.tif", look(AT, SHAPE, moved=(150, 0)), transform=AT)
    with pytest.raises(InputError, match=r"shows the same ground as .* 15\d\.\d m east"):
        map_scene(options(after, model, tmp_path, pre=str(far), overwrite=True), Silent())


# --- windows ------------------------------------------------------------------------------------------------


class Pixels:
    """Probabilities in memory."""

    def __init__(self, grid, values):
        self.grid, self.values = grid, values

    def read(self, window, layer):
        return self.values[window.toslices()] if layer == LAYERS[0] else np.full_like(self.values, np.nan)[
            window.toslices()
        ]  # fmt: skip


class Image:
    """A scene in memory."""

    def __init__(self, values, valid):
        self.grid, self.values, self.valid = Grid(CRS.from_string(UTM), AT, *valid.shape[::-1]), values, valid

    def read(self, window, bands):
        return self.values[(slice(None), *window.toslices())], self.valid[window.toslices()]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 40), st.integers(1, 30))
def test_contrasts_do_not_depend_on_the_strip(seed, h, w, rows):
    from l4s_geo.normalize import Normalizer

    rng = np.random.default_rng(seed)
    one, other = (Image(rng.normal(500, 50, (3, h, w)).astype(np.float32), rng.random((h, w)) < 0.9) for _ in range(2))
    prob = np.where(rng.random((h, w)) < 0.1, np.nan, rng.random((h, w))).astype(np.float32)
    normalizer = Normalizer(BANDS, (500.0,) * 3, (50.0,) * 3, "asinh")
    scenes = Before(one, other, EVERYWHERE, BANDS, find_shift([], 64), ())
    compared = Comparison(scenes, Pixels(one.grid, prob), LAYERS[0], 0.8, (normalizer, normalizer), 1.0)
    whole = compared.contrasts(Window(0, 0, w, h))
    windows = [Window(0, r, w, min(rows, h - r)) for r in range(0, h, rows)]
    strips = [compared.contrasts(window) for window in windows]
    for k in range(2):
        assert np.allclose(np.concatenate([s[k] for s in strips]), whole[k], atol=1e-5, equal_nan=True)
    seen = one.valid & other.valid
    assert np.isnan(whole[0][~seen]).all()
    assert 2 * np.isfinite(whole[0][seen]).sum() > seen.sum() or h * w < 100
    assert np.array_equal(np.isnan(whole[0]), np.isnan(whole[1]))


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_changed_scene_from_before_is_not_resumed(tall, model, tmp_path, often, monkeypatch):  # noqa: F811
    with rasterio.open(tall) as file:
        image = file.read()
    pre = write(tmp_path / "pre.tif", np.where(image > 640, 500, image))
    restore = fail_at(monkeypatch, 1000, InputError("The mount is gone."))
    with pytest.raises(InputError, match="mount"):
        map_scene(wanted(tall, model, tmp_path, pre=str(pre)), Silent())
    restore()
    with pytest.raises(InputError, match="option pre"):
        map_scene(wanted(tall, model, tmp_path, resume=True), Silent())
    with pytest.raises(InputError, match="option pre_action"):
        map_scene(wanted(tall, model, tmp_path, pre=str(pre), pre_action="flag", resume=True), Silent())
    changed = pre.stat().st_mtime_ns
    os.utime(pre, ns=(1, 1))
    with pytest.raises(InputError, match=r"input .*pre\.tif"):
        map_scene(wanted(tall, model, tmp_path, pre=str(pre), resume=True), Silent())
    os.utime(pre, ns=(changed, changed))
    map_scene(wanted(tall, model, tmp_path, pre=str(pre), resume=True), Silent())
    assert {*gpd.read_file(tmp_path / "out.fgb").new} == {"yes"}


def test_a_scene_from_before_is_never_written_over(after, model, tmp_path):  # noqa: F811
    pre = write(tmp_path / "p.tif", look(AT, SHAPE), transform=AT)
    content = pre.read_bytes()
    with pytest.raises(OutputError, match="is an input"):
        map_scene(options(after, model, tmp_path, pre=str(pre), prob=pre, overwrite=True), Silent())
    assert pre.read_bytes() == content


def test_options_travel_to_other_machines(after, before):
    chosen = MapOptions(str(after), Path("o.gpkg"), pre=before, clouds=True)
    assert pickle.loads(pickle.dumps(chosen)) == chosen


def test_a_table_names_a_scene_from_before_for_each(after, before, model, tmp_path):  # noqa: F811
    table = tmp_path / "list.csv"
    table.write_text(f"scene,pre,name\n{after.name},{Path(before).name},with\n{after.name},,without\n")
    jobs = find_jobs([str(table)])
    assert jobs == [Job(str(after), "with", pre=before), Job(str(after), "without")]
    chosen = MapOptions("", tmp_path, models=(model,), device="cpu", pre_action="flag")
    states = [o.state for o in map_batch(jobs, tmp_path / "maps", chosen, Silent())]
    assert states == ["mapped", "mapped"]
    assert by_scar(tmp_path / "maps/with.gpkg") == ["yes", "no", "unknown"]
    assert by_scar(tmp_path / "maps/without.gpkg") != ["yes", "no", "unknown"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--pre", "missing.tif"], "--pre: There is no file 'missing.tif'"),
        (["--pre", "elsewhere.tif"], "does not overlap the scene"),
        (["--pre", "infrared.tif"], "comparing takes B4, B3, B2"),
        (["--pre", "empty.tif"], "no pixel that is valid"),
        (["--pre", "nameless.tif"], "It is unclear which Sentinel-2 bands"),
        (["--pre", "note.txt"], "cannot be opened as a raster"),
        (["--pre", "after_20180911.tif", "--pre-action", "hide"], "--pre-action"),
    ],
)
def test_bad_scenes_from_before_give_one_message_and_no_file(given, said, after, model, tmp_path, monkeypatch):  # noqa: F811
    image = look(AT, SHAPE)
    write(tmp_path / "elsewhere.tif", image, transform=AT * Affine.translation(5000, 0))
    write(tmp_path / "infrared.tif", image, transform=AT, names=("B8", "B11", "B12"))
    write(tmp_path / "empty.tif", 0 * image, transform=AT)
    write(tmp_path / "nameless.tif", image, transform=AT, names=("", "", ""))
    (tmp_path / "note.txt").write_text("no raster")
    monkeypatch.chdir(tmp_path)
    there = {p.name for p in tmp_path.iterdir()}
    done = CliRunner().invoke(main, ["map", after.name, "--model", model, "--out", "out.gpkg", "-q", *given])
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == there


def test_polygons_again_are_compared_again(after, before, model, tmp_path):  # noqa: F811
    prob = tmp_path / "p.tif"
    map_scene(options(after, model, tmp_path, pre=before, pre_action="flag", prob=prob), Silent())
    again = PolygonizeOptions(prob, tmp_path / "again.gpkg", pre=before, pre_action="flag")
    polygonize(again, Silent())
    first, second = (gpd.read_file(tmp_path / n, layer="landslides") for n in ("out.gpkg", "again.gpkg"))
    assert second.new.tolist() == first.new.tolist()
    assert json.loads((tmp_path / "again.gpkg.json").read_text())["pre"]["shift"]["taken_out"]
    result = polygonize(replace(again, pre=None, overwrite=True), Silent())
    assert "these polygons are not, without --pre" in result.message
    with rasterio.open(prob, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.update_tags(PROVENANCE="{}")
    with pytest.raises(InputError, match="Give --scene too"):
        polygonize(replace(again, overwrite=True), Silent())
    polygonize(replace(again, scene=str(after), overwrite=True), Silent())
    assert gpd.read_file(again.out, layer="landslides").new.tolist() == first.new.tolist()
    with pytest.raises(InputError, match=r"was made of: There is no file 'gone.tif'"):
        polygonize(replace(again, scene="gone.tif", overwrite=True), Silent())


def test_names_of_bands_serve_both_scenes(after, before, model, tmp_path):  # noqa: F811
    nameless = [
        write(tmp_path / f"{name}.tif", look(AT, SHAPE, *scars), transform=AT, names=("", "", ""))
        for name, scars in (("n1", (NEW, OLD, HIDDEN)), ("n0", (OLD, HIDDEN)))
    ]
    chosen = options(nameless[0], model, tmp_path, pre=str(nameless[1]), bands=BANDS, pre_action="flag")
    map_scene(chosen, Silent())
    assert by_scar(tmp_path / "out.gpkg") == ["yes", "no", "no"]
