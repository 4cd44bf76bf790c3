"""Evaluation: every combination of raster and polygons, other grids, what is unknown, and bad input."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner, Result
from matplotlib import image as pictures
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import shapes
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform
from shapely.geometry import MultiPolygon, Point, box, shape

from l4s_geo.cli import main
from l4s_geo.errors import InputError
from l4s_geo.evaluation.evaluate import evaluate
from l4s_geo.metrics import Counts, confusion

LABELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "l4s_scenes" / "hokkaido" / "labels.tif"

UTM = CRS.from_epsg(32654)
ORIGIN = Affine(10, 0, 500_000, 0, -10, 4_700_000)


def write_raster(
    path: Path,
    values: NDArray[Any],
    *,
    nodata: float | None = None,
    transform: Affine = ORIGIN,
    crs: CRS | None = UTM,
) -> Path:
    height, width = values.shape
    options = {"width": width, "height": height, "count": 1, "dtype": values.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **options) as dst:
        dst.write(values, 1)
    return path


def cells(*slices: tuple[slice, slice]) -> list[Any]:
    """Polygons around pixels of the raster at ``ORIGIN``."""
    return [
        box(500_000 + 10 * c.start, 4_700_000 - 10 * r.stop, 500_000 + 10 * c.stop, 4_700_000 - 10 * r.start)
        for r, c in slices
    ]


def write_polygons(path: Path, polygons: list[Any], layer: str = "landslides", **options: Any) -> Path:
    gpd.GeoDataFrame({"id": range(len(polygons))}, geometry=polygons, crs=UTM).to_file(
        path, layer=layer, engine="pyogrio", geometry_type="Polygon" if not polygons else None, **options
    )
    return path


@pytest.fixture
def truth() -> NDArray[np.uint8]:
    """300 x 200 labels: a landslide of 40 x 40 and a strip of unknown pixels."""
    labels = np.zeros((300, 200), np.uint8)
    labels[100:140, 50:90] = 1
    labels[:, 190:] = 255
    return labels


@pytest.fixture
def prob(truth: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Half of the landslide found, as much again mapped beside it."""
    values = np.full(truth.shape, 0.1, np.float32)
    values[100:140, 70:110] = 0.8
    return values


EXPECTED = Counts(tp=800, fp=800, fn=800, tn=300 * 190 - 2400)


def test_probability_against_labels(tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any]) -> None:
    pred, labels = write_raster(tmp_path / "p.tif", prob), write_raster(tmp_path / "t.tif", truth)
    found = evaluate(pred, labels)
    assert found.counts == EXPECTED == confusion(prob >= 0.5, truth)
    assert found.blocks == 6
    low, high = found.intervals["f1"]
    assert low <= found.counts.f1 == 0.5 <= high
    assert evaluate(pred, labels, threshold=0.9).counts.tp == 0
    assert evaluate(pred, labels, threshold=0.05).counts.recall == 1


@pytest.mark.parametrize("pred_kind", ["raster", "polygons"])
@pytest.mark.parametrize("truth_kind", ["raster", "polygons"])
def test_every_combination_gives_the_same_counts(
    tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any], pred_kind: str, truth_kind: str
) -> None:
    pred = (
        write_raster(tmp_path / "p.tif", prob)
        if pred_kind == "raster"
        else write_polygons(tmp_path / "p.gpkg", cells(np.s_[100:140, 70:110]))
    )
    labels = (
        write_raster(tmp_path / "t.tif", np.where(truth == 255, 0, truth).astype(np.uint8))
        if truth_kind == "raster"
        else write_polygons(tmp_path / "t.gpkg", cells(np.s_[100:140, 50:90]))
    )
    found = evaluate(pred, labels).counts
    assert (found.tp, found.fp, found.fn) == (800, 800, 800)
    both_polygons = pred_kind == truth_kind == "polygons"
    assert found.total == (60 * 40 if both_polygons else 300 * 200)


def test_rows_restrict_the_comparison(tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any]) -> None:
    pred, labels = write_raster(tmp_path / "p.tif", prob), write_raster(tmp_path / "t.tif", truth)
    found = evaluate(pred, labels, rows=(120, 300))
    assert found.counts == confusion(prob[120:] >= 0.5, truth[120:])
    assert found.rows == (120, 300)
    for rows in ((-1, 5), (5, 5), (0, 301)):
        with pytest.raises(InputError, match="Rows"):
            evaluate(pred, labels, rows=rows)


def test_area_of_interest(tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any]) -> None:
    pred, labels = write_raster(tmp_path / "p.tif", prob), write_raster(tmp_path / "t.tif", truth)
    inside = np.s_[90:130, 60:100]
    aoi = write_polygons(tmp_path / "aoi.fgb", cells(inside), layer="area")
    assert evaluate(pred, labels, aoi=aoi).counts == confusion(prob[inside] >= 0.5, truth[inside])


def test_unseen_pixels_count_as_not_mapped(tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any]) -> None:
    labels = write_raster(tmp_path / "t.tif", truth)
    hole = np.s_[100:120, 0:200]
    holed = prob.copy()
    holed[hole] = np.nan
    raster = evaluate(write_raster(tmp_path / "p.tif", holed, nodata=np.nan), labels)
    assert raster.counts == confusion(np.nan_to_num(holed) >= 0.5, truth)
    assert raster.unseen_share == pytest.approx(20 / 300)
    assert "not seen  6.67%" in raster.text()
    vector = write_polygons(tmp_path / "p.gpkg", cells(np.s_[120:140, 70:110]))
    write_polygons(vector, cells(hole), layer="not_seen", mode="a")
    assert evaluate(vector, labels).counts == raster.counts
    assert evaluate(vector, labels).unseen == raster.unseen


def test_prediction_that_covers_a_part_on_another_grid(tmp_path: Path, truth: NDArray[Any]) -> None:
    """Half of the pixels at half the size: outside is unseen, inside nothing is lost."""
    labels = write_raster(tmp_path / "t.tif", truth)
    fine = np.kron(truth[:, :100], np.ones((2, 2), np.uint8)).astype(np.uint8)
    half = Affine(5, 0, ORIGIN.c, 0, -5, ORIGIN.f)
    mask = evaluate(write_raster(tmp_path / "m.tif", fine, transform=half), labels)
    assert mask.counts == Counts(tp=1600, tn=300 * 190 - 1600)
    assert mask.unseen == 300 * 90
    smooth = write_raster(tmp_path / "p.tif", fine.astype(np.float32), transform=half)
    assert evaluate(smooth, labels).counts == mask.counts


def test_probabilities_are_interpolated_and_masks_are_not(tmp_path: Path) -> None:
    """Stripes of one column, shifted by half a pixel: the mean of two neighbours is 0.5 everywhere."""
    stripes = np.tile(np.array([0, 1], np.uint8), (20, 10))
    labels = write_raster(tmp_path / "t.tif", np.ones((20, 18), np.uint8))
    shifted = Affine(10, 0, ORIGIN.c - 5, 0, -10, ORIGIN.f)
    prob = write_raster(tmp_path / "p.tif", stripes.astype(np.float32), transform=shifted)
    mask = write_raster(tmp_path / "m.tif", stripes, transform=shifted)
    assert evaluate(prob, labels, threshold=0.45).counts.recall == 1
    assert evaluate(prob, labels, threshold=0.55).counts.recall == 0
    assert evaluate(mask, labels, threshold=0.55).counts.recall == 0.5


def test_empty_prediction(tmp_path: Path, truth: NDArray[Any]) -> None:
    labels = write_raster(tmp_path / "t.tif", truth)
    found = evaluate(write_polygons(tmp_path / "p.gpkg", []), labels)
    assert (found.counts.tp, found.counts.fp, found.counts.fn) == (0, 0, 1600)
    assert found.to_dict()["precision"] is None
    assert found.to_dict()["f1"] == 0
    assert "precision not defined" in found.text()
    json.dumps(found.to_dict(), allow_nan=False)


def test_labels_against_themselves_are_perfect() -> None:
    if not LABELS.exists():
        pytest.skip(f"no data in {LABELS}")
    found = evaluate(LABELS, LABELS)
    assert found.counts.f1 == found.counts.iou == 1
    assert found.unseen == 0
    assert found.intervals["f1"] == (1, 1)


@pytest.mark.parametrize("kind", ["raster", "polygons"])
def test_real_labels_survive_the_way_to_utm_and_back(tmp_path: Path, kind: str) -> None:
    if not LABELS.exists():
        pytest.skip(f"no data in {LABELS}")
    with rasterio.open(LABELS) as src:
        size = src.width, src.height
        transform, width, height = calculate_default_transform(src.crs, UTM, *size, *src.bounds, resolution=10)
        with WarpedVRT(src, crs=UTM, transform=transform, width=width, height=height) as vrt:
            warped = vrt.read(1)
    if kind == "raster":
        pred = write_raster(tmp_path / "p.tif", warped, nodata=255, transform=transform)
    else:
        found = shapes((warped == 1).astype(np.uint8), warped == 1, transform=transform)
        pred = write_polygons(tmp_path / "p.gpkg", [shape(geometry) for geometry, _ in found])
    result = evaluate(pred, LABELS)
    assert result.counts.f1 > 0.9
    assert result.unseen_share < 0.01


def test_geojson_shapefile_and_parquet_are_read(tmp_path: Path, truth: NDArray[Any]) -> None:
    labels = write_raster(tmp_path / "t.tif", truth)
    frame = gpd.GeoDataFrame(geometry=[MultiPolygon(cells(np.s_[100:140, 50:90]))], crs=UTM)
    frame.to_crs(4326).to_file(tmp_path / "p.geojson")
    frame.to_file(tmp_path / "p.shp")
    frame.to_parquet(tmp_path / "p.parquet")
    for name in ("p.geojson", "p.shp", "p.parquet"):
        assert evaluate(tmp_path / name, labels).counts.f1 == 1


def test_bad_values_are_refused(tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any]) -> None:
    good, labels = write_raster(tmp_path / "p.tif", prob), write_raster(tmp_path / "t.tif", truth)
    for name, values, nodata, message in (
        ("percent.tif", prob * 100, None, "holds the value 10; expected probabilities"),
        ("classes.tif", truth * 7, None, "expected 0, 1 and 255"),
        ("zero.tif", truth, 0, "0 as nodata"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(write_raster(tmp_path / name, values, nodata=nodata), labels)
    with pytest.raises(InputError, match="holds probabilities"):
        evaluate(labels, good)
    with pytest.raises(InputError, match="between 0 and 1"):
        evaluate(good, labels, threshold=1.2)


def test_inputs_that_do_not_meet_are_refused(tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any]) -> None:
    labels = write_raster(tmp_path / "t.tif", truth)
    away = Affine(10, 0, ORIGIN.c + 50_000, 0, -10, ORIGIN.f)
    for pred in (
        write_raster(tmp_path / "p.tif", prob, transform=away),
        write_polygons(tmp_path / "p.gpkg", cells(np.s_[5000:5010, 0:10])),
    ):
        with pytest.raises(InputError, match="Nothing to compare"):
            evaluate(pred, labels)
    unknown = write_raster(tmp_path / "u.tif", np.full_like(truth, 255))
    with pytest.raises(InputError, match="No labelled pixel"):
        evaluate(write_raster(tmp_path / "q.tif", prob), unknown)
    empty = write_polygons(tmp_path / "e.gpkg", [])
    with pytest.raises(InputError, match="holds a polygon"):
        evaluate(empty, empty)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any]) -> None:
    labels = write_raster(tmp_path / "t.tif", truth)
    junk = tmp_path / "junk.tif"
    junk.write_bytes(b"no raster")
    broken = tmp_path / "broken.gpkg"
    broken.write_bytes(b"no polygons")
    two = write_polygons(tmp_path / "two.gpkg", cells(np.s_[0:2, 0:2]), layer="a")
    write_polygons(two, cells(np.s_[0:2, 0:2]), layer="b", mode="a")
    points = tmp_path / "points.geojson"
    gpd.GeoDataFrame(geometry=[Point(1, 2)], crs=4326).to_file(points)
    nowhere = write_raster(tmp_path / "nowhere.tif", prob[:50], crs=None)
    for pred, message in (
        (tmp_path / "missing.tif", "no file"),
        (junk, "Cannot open .*junk.tif"),
        (broken, "Cannot read polygons from .*broken.gpkg"),
        (two, "has: a, b"),
        (points, "Point geometries"),
        (nowhere, "no CRS"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(pred, labels)


def test_truncated_raster_is_named(tmp_path: Path, truth: NDArray[Any]) -> None:
    labels = write_raster(tmp_path / "t.tif", truth)
    noise = np.random.default_rng(0).random(truth.shape, dtype=np.float32)
    pred = write_raster(tmp_path / "p.tif", noise)
    pred.write_bytes(pred.read_bytes()[:-100_000])
    with pytest.raises(InputError, match=r"Cannot read .*p\.tif"):
        evaluate(pred, labels)


def test_the_frame_of_a_raster_limits_the_comparison(tmp_path):
    truth = np.zeros((40, 40), np.uint8)
    truth[5:15, 5:15] = truth[25:35, 25:35] = 1
    pred = truth.copy()
    pred[25:35, 25:35] = 0
    for name, values in (("truth", truth), ("pred", pred)):
        write_raster(tmp_path / f"{name}.tif", values)
    write_raster(tmp_path / "scene.tif", np.ones((20, 20), np.uint16), nodata=0)
    files = (tmp_path / "pred.tif", tmp_path / "truth.tif")
    assert evaluate(*files).counts.recall == 0.5
    inside = evaluate(*files, aoi=tmp_path / "scene.tif").counts
    assert (inside.recall, inside.total) == (1.0, 400)


@pytest.mark.parametrize("kind", ["raster", "polygons"])
def test_what_a_model_has_learnt_from_is_left_out(
    tmp_path: Path, truth: NDArray[Any], prob: NDArray[Any], kind: str
) -> None:
    pred, labels = write_raster(tmp_path / "p.tif", prob), write_raster(tmp_path / "t.tif", truth)
    known, inside = cells(np.s_[100:120, 60:80], np.s_[200:210, 180:200]), truth.copy()
    inside[100:120, 60:80] = inside[200:210, 180:200] = 255
    if kind == "polygons":
        labels = write_polygons(tmp_path / "t.gpkg", cells(np.s_[100:140, 50:90]))
        inside[:, 190:] = 0
        inside[200:210, 190:] = 255
    given = write_polygons(tmp_path / "given.gpkg", known)
    gpd.read_file(given).to_crs(4326).to_file(tmp_path / "given.geojson")
    for path in (given, tmp_path / "given.geojson"):
        assert evaluate(pred, labels, exclude=path).counts == confusion(prob >= 0.5, inside)
    assert evaluate(pred, labels, exclude=given).counts != evaluate(pred, labels).counts
    away = write_polygons(tmp_path / "away.gpkg", cells(np.s_[5000:5010, 0:10]))
    assert evaluate(pred, labels, exclude=away).counts == evaluate(pred, labels).counts
    with pytest.raises(InputError, match="no file"):
        evaluate(pred, labels, exclude=tmp_path / "none.gpkg")
    with pytest.raises(InputError, match="No labelled pixel"):
        evaluate(pred, labels, exclude=write_polygons(tmp_path / "all.gpkg", cells(np.s_[0:300, 0:200])))


# --- details ------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, Path]:
    """Probabilities with uncertainty, and labels, over three rows of blocks.

    Three landslides: one on the border of two strips that is found, one that is missed, one in the unlabelled strip;
    and a false alarm, which alone is uncertain.
    """
    truth = np.zeros((300, 200), np.uint8)
    truth[110:150, 20:60] = truth[200:204, 100:105] = 1
    truth[:, 160:] = 255
    layers = np.zeros((3, 300, 200), np.float32)
    layers[0] = 0.02
    layers[0, 111:151, 20:60] = 0.95
    layers[0, 20:30, 20:30] = 0.7
    layers[0, 20:30, 170:180] = 0.9
    layers[2] = 0.01
    layers[2, 20:30, 20:30] = 0.4
    pred = tmp_path / "prob.tif"
    how = {"width": 200, "height": 300, "count": 3, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(pred, "w", driver="GTiff", crs=UTM, transform=ORIGIN, **how) as file:
        file.write(layers)
        file.descriptions = ("probability", "agreement", "uncertainty")
    return pred, write_raster(tmp_path / "labels.tif", truth)


def test_details_of_a_probability_raster(scene: tuple[Path, Path]) -> None:
    found = evaluate(*scene, details=True)
    facts = found.to_dict()
    json.dumps(facts, allow_nan=False)
    plain = evaluate(*scene)
    assert (plain.counts, plain.intervals) == (found.counts, found.intervals)

    objects = facts["objects"]
    assert objects["mapped"] == {"number": 2, "overlap": 1, "iou": 1}
    assert objects["reference"] == {"number": 2, "overlap": 1, "iou": 1}
    assert objects["iou"]["f1"] == 0.5
    assert objects["by_size"][3] == objects["by_size"][3] | {"from_m2": 100_000, "to_m2": None}
    _, small, middle, large = objects["by_size"]
    assert (small["overlap"]["precision"], small["overlap"]["recall"]) == (None, 0)
    assert (middle["overlap"]["precision"], middle["overlap"]["recall"]) == (0, None)
    assert (large["overlap"]["precision"], large["overlap"]["recall"]) == (1, 1)
    low, high = objects["overlap"]["intervals"]["recall"]
    assert low <= 0.5 <= high

    assert facts["boundary"]["tolerance_m"] == pytest.approx(20, rel=0.01)
    assert facts["boundary"]["recall"] == pytest.approx(156 / (156 + 14))
    assert evaluate(*scene, details=True, tolerance=0).details.edges.values["recall"] < 0.8

    prob, truth = (rasterio.open(path).read(1) for path in scene)
    known = truth != 255
    brier = np.mean((prob[known].astype(float) - truth[known]) ** 2)
    assert facts["calibration"]["brier"] == pytest.approx(brier)
    assert sum(b["pixels"] for b in facts["calibration"]["bins"]) == known.sum()
    best = facts["thresholds"]["f0.5"]
    assert 0.7 < best["threshold"] <= 0.95
    assert best["precision"] == pytest.approx(39 / 40)
    risk = facts["risk_coverage"]
    assert risk["objects_uncertainty"]["aurc"] < risk["objects_uncertainty"]["error_rate"] == 0.5
    assert risk["uncertainty"]["aurc"] < risk["uncertainty"]["error_rate"]
    for words in ("overlapping", "within 2 pixels (20 m)", "ECE", "best F2", "risk-coverage"):
        assert words in found.text()


def test_polygons_have_objects_and_edges_but_no_probabilities(tmp_path: Path, truth: NDArray[Any]) -> None:
    labels = write_raster(tmp_path / "t.tif", truth)
    pred = write_polygons(tmp_path / "p.gpkg", cells(np.s_[101:141, 50:90], np.s_[0:10, 0:10]))
    facts = evaluate(pred, labels, details=True).to_dict()
    assert facts["objects"]["iou"]["precision"] == 0.5
    assert facts["boundary"]["recall"] == 1
    assert not {"calibration", "thresholds", "risk_coverage"} & set(facts)
    empty = evaluate(write_polygons(tmp_path / "e.gpkg", []), labels, details=True).to_dict()
    assert empty["objects"]["overlap"] | {"precision": None, "recall": 0.0} == empty["objects"]["overlap"]


def test_a_landslide_cut_by_the_area_counts_if_most_of_it_lies_inside(tmp_path: Path, truth: NDArray[Any]) -> None:
    labels = write_raster(tmp_path / "t.tif", truth)
    pred = write_raster(tmp_path / "m.tif", np.where(truth == 255, 0, truth).astype(np.uint8))
    for columns, expected in ((slice(0, 71), 1), (slice(0, 70), 0)):
        aoi = write_polygons(tmp_path / f"aoi{columns.stop}.gpkg", cells((slice(0, 300), columns)))
        objects = evaluate(pred, labels, aoi=aoi, details=True).to_dict()["objects"]
        assert (objects["mapped"]["number"], objects["reference"]["number"]) == (expected, expected)


def test_sizes_on_a_grid_in_degrees_are_those_on_the_ground(tmp_path: Path) -> None:
    """At 60 degrees north a pixel of 0.0002 by 0.0001 degrees is about 11 m wide and high."""
    labels = np.zeros((60, 60), np.uint8)
    labels[10:18, 10:20] = 1
    path = write_raster(
        tmp_path / "t.tif", labels, transform=Affine(2e-4, 0, 25, 0, -1e-4, 60), crs=CRS.from_epsg(4326)
    )
    facts = evaluate(path, path, details=True).to_dict()
    assert [size["reference"]["number"] for size in facts["objects"]["by_size"]] == [0, 1, 0, 0]
    assert facts["boundary"]["tolerance_px"] == 2
    assert facts["boundary"]["tolerance_m"] == pytest.approx(22.3, rel=0.01)


def test_rasters_without_a_place_have_pixels_of_sentinel_2(tmp_path: Path, truth: NDArray[Any]) -> None:
    path = write_raster(tmp_path / "t.tif", truth, crs=None)
    assert evaluate(path, path, details=True).to_dict()["boundary"]["tolerance_m"] == 20


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_rasters_of_one_row_or_column(tmp_path: Path, shape: tuple[int, int]) -> None:
    labels = np.zeros(shape, np.uint8)
    labels[0, 0] = 1
    pred = write_raster(tmp_path / "p.tif", labels.astype(np.float32))
    found = evaluate(pred, write_raster(tmp_path / "t.tif", labels), details=True)
    assert found.to_dict()["objects"]["iou"]["f1"] == 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_labels_without_landslides_have_no_best_threshold(scene: tuple[Path, Path], tmp_path: Path) -> None:
    empty = write_raster(tmp_path / "none.tif", np.zeros((300, 200), np.uint8))
    facts = evaluate(scene[0], empty, details=True).to_dict()
    assert facts["thresholds"] == {}
    assert facts["objects"]["overlap"]["precision"] == 0
    assert run("evaluate", scene[0], empty, "--png", tmp_path / "c.png").exit_code == 0


# --- the command --------------------------------------------------------------------------------------------


def run(*args: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


class Page(HTMLParser):
    """Its cells by table, and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.cell = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] += data


def test_the_page_says_what_the_json_says_and_needs_nothing_else(scene: tuple[Path, Path], tmp_path: Path) -> None:
    page, png = tmp_path / "out.html", tmp_path / "out.png"
    done = run("evaluate", *scene, "--json", "--report", page, "--png", png)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    found = Page(page)
    assert [link[:22] for link in found.links] == ["data:image/png;base64,"]
    rows = {row[0]: row[1:] for row in found.rows if row}
    assert rows["pixels"][2].startswith(f"{facts['f1']:.3f} (")
    assert rows["ECE"][0].startswith(f"{facts['calibration']['ece']:.4f} (")
    assert rows["F2"][1] == f"{facts['thresholds']['f2']['threshold']:.3f}"
    assert rows["100,000 m² and more"][:2] == ["1", "1"]
    assert "of the mapped objects of that size" in page.read_text(encoding="utf-8")
    tags = dict(found.attributes)
    assert tags["html"] == {"lang": "en"}
    assert tags["img"]["alt"]
    assert page.stat().st_size < 400_000
    assert str(tmp_path) not in page.read_text(encoding="utf-8")
    assert pictures.imread(png).shape[1] > 1000


def test_names_in_the_page_are_escaped(scene: tuple[Path, Path], tmp_path: Path) -> None:
    odd = tmp_path / "<b>&a.tif"
    scene[0].rename(odd)
    assert run("evaluate", odd, scene[1], "--report", tmp_path / "o.html").exit_code == 0
    text = (tmp_path / "o.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;a.tif" in text
    assert "<b>" not in text


def test_outputs_that_cannot_be_written_are_refused_before_any_work(scene: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    page.write_text("mine")
    for option, path, message in (
        ("--report", page, "Give --overwrite"),
        ("--report", tmp_path / "out.pdf", "Use one of .html"),
        ("--png", tmp_path / "none" / "out.png", "no folder"),
    ):
        done = run("evaluate", *scene, option, path)
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr
    assert page.read_text() == "mine"
    missing = run("evaluate", "none.tif", scene[1], "--report", tmp_path / "new.html")
    assert missing.exit_code == 2
    assert not (tmp_path / "new.html").exists()
    assert run("evaluate", *scene, "--report", page, "--overwrite").exit_code == 0
    assert page.read_text() != "mine"
    picture = tmp_path / "labels.png"
    with (
        rasterio.open(scene[1]) as labels,
        rasterio.open(
            picture, "w", driver="PNG", width=200, height=300, count=1, dtype="uint8", crs=UTM, transform=ORIGIN
        ) as file,
    ):
        file.write(labels.read(1), 1)
    refused = run("evaluate", scene[0], picture, "--png", picture, "--overwrite")
    assert refused.exit_code == 2
    assert "is an input" in refused.stderr


def test_the_figures_of_real_labels_against_themselves(tmp_path: Path) -> None:
    if not LABELS.exists():
        pytest.skip(f"no data in {LABELS}")
    facts = evaluate(LABELS, LABELS, details=True).to_dict()
    assert facts["boundary"]["f1"] == facts["objects"]["iou"]["f1"] == 1
    assert facts["objects"]["mapped"] == facts["objects"]["reference"]
    assert facts["objects"]["iou"]["intervals"]["f1"] == [1, 1]


def test_the_threshold_is_that_of_the_map_unless_one_is_given(scene: tuple[Path, Path]) -> None:
    pred, truth = scene
    assert evaluate(pred, truth).threshold == 0.5
    with rasterio.open(pred, "r+") as file:
        file.update_tags(THRESHOLD="0.8")
    found = evaluate(pred, truth)
    assert found.threshold == 0.8
    assert found.counts == evaluate(pred, truth, threshold=0.8).counts != evaluate(pred, truth, threshold=0.5).counts
    assert evaluate(truth, truth).threshold == 0.5


def test_objects_are_as_uncertain_as_their_surest_pixel(scene: tuple[Path, Path]) -> None:
    """The false alarm has doubtful pixels and one sure one; by the mean it would be the most doubtful object."""
    pred, truth = scene
    with rasterio.open(pred, "r+") as file:
        layers = file.read()
        layers[0, 20, 20], layers[2, 20, 20] = 0.99, 0.0
        file.write(layers)
    risk = evaluate(pred, truth, details=True).to_dict()["risk_coverage"]
    assert risk["objects_probability"]["aurc"] < risk["objects_probability"]["error_rate"]
    assert risk["objects_uncertainty"]["aurc"] > risk["objects_uncertainty"]["error_rate"]
