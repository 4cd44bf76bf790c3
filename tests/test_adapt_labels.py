"""Labels to adapt with: polygons of any CRS on the pixels of a scene, their classes, and what is refused."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.windows import Window
from shapely.geometry import LineString, Point, Polygon, box

from l4s_geo.adapt.labels import RIM, Labels, check_on_targets, read_labels
from l4s_geo.errors import InputError
from l4s_geo.scene import Grid
from l4s_geo.vector import Polygons
from tests.conftest import UTM, UTM_10M

GRID = Grid(CRS.from_string(UTM), UTM_10M, 120, 300)


def cell(row, col, end_row, end_col):
    """Polygon around pixels of ``GRID``."""
    left, top = UTM_10M @ (col, row)
    right, bottom = UTM_10M @ (end_col, end_row)
    return box(left, bottom, right, top)


@pytest.fixture
def write(tmp_path):
    """Writes polygons by name; gives the path."""

    def to_file(polygons, name="labels.gpkg", crs=UTM, to=None, **columns):
        table = gpd.GeoDataFrame(columns, geometry=polygons, crs=crs)
        table = table.to_crs(to) if to else table
        path = tmp_path / name
        if path.suffix == ".parquet":
            table.to_parquet(path)
        else:
            table.to_file(path)
        return path

    return to_file


def test_without_a_column_all_polygons_are_landslides_and_holes_stay_out(write):
    ring = cell(10, 10, 40, 50).difference(cell(20, 20, 25, 30))
    labels = read_labels(write([ring, cell(270, 0, 300, 5)], name_of=["a", "b"]))
    expected = np.full(GRID.shape, 255, np.uint8)
    expected[10 - RIM : 40 + RIM, 10 - RIM : 50 + RIM] = 0
    expected[10:40, 10:50] = 1
    expected[20:25, 20:30] = 0
    expected[270 - RIM :, : 5 + RIM] = 0
    expected[270:, :5] = 1
    assert np.array_equal(labels.labels_on(GRID)(GRID.window()), expected)
    assert labels.polygons == {"background": 0, "landslide": 2}
    assert labels.pixels(GRID) == {"background": np.count_nonzero(expected == 0), "landslide": 30 * 40 - 50 + 150}


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp", "a.fgb", "a.parquet"])
def test_labels_of_another_crs_and_format_fall_on_the_same_pixels(write, name):
    # a tenth of a pixel beside its border: the way there and back rounds
    shape = cell(10.1, 10.1, 40.1, 50.1)
    path = write([shape, cell(5.1, 5.1, 60.1, 60.1)], name, to="EPSG:4326", Label=["Landslide", "background"])
    found = read_labels(path).labels_on(GRID)(GRID.window())
    expected = np.full(GRID.shape, 255, np.uint8)
    expected[5:60, 5:60] = 0
    expected[10:40, 10:50] = 1
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("landslide", [1, 0]),
        ("Landslide", [True, False]),
        ("CLASS", ["landslide", "Background"]),
        ("label", ["1", "0"]),
        ("class", [1.0, 0.0]),
        ("label", ["TRUE", "false "]),
    ],
)
def test_a_column_tells_the_classes_and_landslide_wins(write, column, values):
    labels = read_labels(write([cell(0, 0, 10, 10), cell(5, 5, 20, 20)], **{column: values}))
    found = labels.labels_on(GRID)(Window(0, 0, 20, 20))
    assert (found[:10, :10] == 1).all()
    assert (found[12:, 12:] == 0).all()
    assert labels.polygons == {"background": 1, "landslide": 1}
    rim = (10 + RIM) ** 2 - 10**2
    assert labels.pixels(GRID) == {"background": 15**2 - 5**2 + rim - ((5 + RIM) ** 2 - 5**2), "landslide": 100}


@settings(max_examples=30)
@given(corner=st.tuples(st.integers(0, 110), st.integers(0, 290)), step=st.integers(7, 130))
def test_the_rim_of_a_landslide_is_the_same_in_windows_as_in_the_whole(corner, step):
    column, row = corner
    drawn = Polygons("drawn", gpd.GeoSeries([cell(row, column, row + 9, column + 6)], crs=UTM))
    read = Labels("drawn", drawn, drawn.pick(np.zeros(1, np.bool_))).labels_on(GRID)
    parts = [
        [read(Window(c, r, min(step, GRID.width - c), min(step, GRID.height - r))) for c in range(0, GRID.width, step)]
        for r in range(0, GRID.height, step)
    ]
    whole = read(GRID.window())
    assert np.array_equal(np.block(parts), whole)
    rows, columns = np.nonzero(whole == 0)
    distance = np.maximum(
        np.maximum(row - rows, rows - (row + 8)), np.maximum(column - columns, columns - (column + 5))
    )
    assert distance.min() == 1
    assert distance.max() == RIM


POINTS = st.tuples(st.floats(-100, 1300), st.floats(-100, 3100))
TRIANGLES = st.lists(st.lists(POINTS, min_size=3, max_size=3, unique=True), min_size=1, max_size=6)


@settings(max_examples=30)
@given(corners=TRIANGLES, step=st.integers(7, 130), turn=st.floats(0, 45))
def test_windows_are_cut_from_the_whole(corners, step, turn):
    shapes = [Polygon([(UTM_10M.c + x, UTM_10M.f - y) for x, y in points]) for points in corners]
    polygons = Polygons("drawn", gpd.GeoSeries(shapes, crs=UTM))
    grid = Grid(GRID.crs, UTM_10M @ Affine.rotation(turn), GRID.width, GRID.height)
    read = polygons.burn(grid)
    parts = [
        [read(Window(c, r, min(step, grid.width - c), min(step, grid.height - r))) for c in range(0, grid.width, step)]
        for r in range(0, grid.height, step)
    ]
    different = np.count_nonzero(np.block(parts) != read(grid.window()))
    # an edge through the very centre of a pixel may round either way
    assert different <= 2


def test_an_area_in_degrees_keeps_its_parallel_and_may_reach_round_the_earth():
    """A border along a parallel is no straight line in UTM: half-way across 120 km they are 0.2 km apart."""
    wide = Grid(CRS.from_epsg(32654), Affine(100, 0, 400000, 0, -100, 4750000), 1200, 600)
    polygons = Polygons("area", gpd.GeoSeries([box(-170, 42.6, 179, 89)], crs=4326))
    found = polygons.burn(wide)(wide.window())
    rows, cols = np.mgrid[: wide.height, : wide.width]
    xs, ys = wide.at(cols + 0.5, rows + 0.5)
    _, lat = Transformer.from_crs(32654, 4326, always_xy=True).transform(xs, ys)
    assert 0.1 < found.mean() < 0.9
    assert np.array_equal(found[abs(lat - 42.6) > 1e-5], (lat > 42.6)[abs(lat - 42.6) > 1e-5])


@pytest.mark.parametrize(
    ("shapes", "columns", "message"),
    [
        ([Point(UTM_10M.c, UTM_10M.f)], {}, "Point geometries.*only polygons.*Buffer"),
        ([LineString([(0, 0), (9, 9)])], {}, "LineString geometries"),
        ([cell(0, 0, 9, 9)] * 3, {"class": ["river", "landslide", "7"]}, "column class, holds 7, river.*rename"),
        ([cell(0, 0, 9, 9)] * 2, {"landslide": [1, None]}, "column landslide, holds empty"),
        ([cell(0, 0, 9, 9)], {"landslide": [0]}, "marks no landslide"),
    ],
)
def test_shapes_and_classes_that_say_too_little_are_refused(write, shapes, columns, message):
    with pytest.raises(InputError, match=message):
        read_labels(write(shapes, **columns))


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_files_that_are_no_labels_are_refused(write, tmp_path):
    empty = write([], "empty.fgb")
    nowhere = write([cell(0, 0, 9, 9)], "nowhere.shp", crs=None)
    junk = tmp_path / "junk.gpkg"
    junk.write_bytes(b"no polygons")
    for path, message in (
        (empty, "holds no polygons"),
        (nowhere, "has no CRS"),
        (junk, "Cannot read polygons"),
        (tmp_path / "missing.gpkg", "There is no file"),
    ):
        with pytest.raises(InputError, match=message):
            read_labels(path)


def test_labels_must_mark_a_landslide_on_one_of_the_scenes(write):
    away = Grid(GRID.crs, Affine(10, 0, 900000, 0, -10, 100000), 50, 50)
    labels = read_labels(write([cell(0, 0, 9, 9)], to="EPSG:4326"))
    check_on_targets(labels, [away, GRID])
    with pytest.raises(InputError, match=r"do not overlap.*lie in 141\.8.*the scenes in 144.*EPSG:4326"):
        check_on_targets(labels, [away])
    dot = read_labels(write([cell(3.1, 3.1, 3.4, 3.4)], "dot.gpkg"))
    with pytest.raises(InputError, match="smaller than pixels"):
        check_on_targets(dot, [GRID])
