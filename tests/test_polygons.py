from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from unittest.mock import patch

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Geod
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes
from rasterio.transform import array_bounds
from scipy import ndimage

from l4s_geo import polygons as module
from l4s_geo.components import Strip, Tracer
from l4s_geo.polygons import Block, scene_polygons
from tests.conftest import DATA, needs_data

UTM = CRS.from_epsg(32654)
TEN = Affine(10, 0, 500_000, 0, -10, 4_700_000)
EIGHT = np.ones((3, 3))
SIZES = ["area_m2", "perimeter_m", "length_m", "width_m"]
TERRAIN = ["elev_min", "elev_max", "relief_m", "slope_mean", "slope_max", "aspect_deg"]
CONFIDENCE = ["prob_mean", "prob_max", "agreement", "uncertainty"]
COLUMNS = ["id", *SIZES, *CONFIDENCE, "new", *TERRAIN, "edge", "geometry"]


def array(text: str) -> NDArray[np.float32]:
    """``#`` is 0.9, ``?`` is not seen, anything else 0.1."""
    values = {"#": 0.9, "?": np.nan}
    return np.array([[values.get(c, 0.1) for c in line] for line in text.split()], np.float32)


def blocks(prob: NDArray[np.float32], cuts: tuple[int, ...] = (), **layers: NDArray[np.float32]) -> Iterator[Block]:
    for start, stop in pairwise((0, *cuts, len(prob))):
        yield Block(start, prob[start:stop], **{name: layer[start:stop] for name, layer in layers.items()})


def polygons(
    prob: NDArray[np.float32] | str,
    cuts: tuple[int, ...] = (),
    *,
    transform: Affine = TEN,
    crs: CRS = UTM,
    **options,
) -> gpd.GeoDataFrame:
    prob = array(prob) if isinstance(prob, str) else prob
    layers = {k: options.pop(k) for k in tuple(options) if k in Block.__dataclass_fields__}
    options = {"threshold": 0.5, **options}
    found = scene_polygons(blocks(prob, cuts, **layers), transform=transform, crs=crs, **options)
    return pd.concat(found.landslides, ignore_index=True)


def not_seen(prob: NDArray[np.float32], cuts: tuple[int, ...]) -> list[gpd.GeoDataFrame]:
    return [*scene_polygons(blocks(prob, cuts), transform=TEN, crs=UTM, threshold=0.5).not_seen]


@st.composite
def cut_rasters(draw: st.DrawFn) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    # Drawn by a seed: arrays of hypothesis are mostly one value, and components then never meet at corners
    h, w, seed = draw(st.integers(1, 14)), draw(st.integers(1, 12)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    prob = rng.choice(np.array([0.25, 0.25, 0.25, 0.5, 0.75, np.nan], np.float32), (h, w))
    return prob, tuple(row for row in range(1, h) if rng.random() < 0.4)


@settings(max_examples=60)
@given(cut_rasters())
def test_polygons_are_the_components_of_the_whole(case: tuple[NDArray[np.float32], tuple[int, ...]]) -> None:
    prob, cuts = case
    dem = np.arange(prob.size, dtype=np.float32).reshape(prob.shape)
    found = polygons(prob, cuts, dem=dem)
    labels, n = ndimage.label(prob >= 0.5, EIGHT)
    near = ndimage.binary_dilation(np.pad(np.isnan(prob), 1, constant_values=True), EIGHT)[1:-1, 1:-1]
    assert found["id"].tolist() == list(range(1, n + 1))
    assert found.is_valid.all()
    for i, row in enumerate(found.itertuples(), 1):
        mine = labels == i
        drawn = rasterize([row.geometry], out_shape=prob.shape, transform=TEN)
        np.testing.assert_array_equal(drawn, mine)
        assert shapely.area(row.geometry) == 100 * mine.sum()
        assert row.prob_mean == pytest.approx(prob[mine].mean())
        assert row.prob_max == prob[mine].max()
        assert (row.elev_min, row.elev_max) == (dem[mine].min(), dem[mine].max())
        assert row.edge == near[mine].any()


@settings(max_examples=30)
@given(cut_rasters())
def test_cuts_change_nothing(case: tuple[NDArray[np.float32], tuple[int, ...]]) -> None:
    prob, cuts = case
    cut, whole = (polygons(prob, at, min_area_m2=250, max_hole_m2=450) for at in (cuts, ()))
    assert shapely.equals(cut.geometry.to_numpy(), whole.geometry.to_numpy()).all()
    columns = [c for c in COLUMNS if c not in ("new", "geometry")]
    for column in columns:
        np.testing.assert_allclose(cut[column].astype(float), whole[column].astype(float), rtol=1e-7)


@settings(max_examples=30)
@given(cut_rasters(), st.integers(1, 4))
def test_parts_make_the_whole(case: tuple[NDArray[np.float32], tuple[int, ...]], size: int) -> None:
    prob, cuts = case
    whole = polygons(prob, cuts, max_hole_m2=450)
    with patch.object(module, "PART", size):
        assert_geodataframe_equal(polygons(prob, cuts, max_hole_m2=450), whole)
        unseen = not_seen(prob, cuts)
    assert all(len(part) <= size for part in unseen)
    assert pd.concat(unseen)["id"].tolist() == list(range(1, sum(map(len, unseen)) + 1))


@settings(max_examples=30)
@given(cut_rasters())
def test_not_seen_is_where_probability_is_missing(case: tuple[NDArray[np.float32], tuple[int, ...]]) -> None:
    prob, cuts = case
    found = pd.concat(not_seen(prob, cuts))
    drawn = rasterize(found.geometry, out_shape=prob.shape, transform=TEN) if len(found) else np.zeros(prob.shape)
    np.testing.assert_array_equal(drawn, np.isnan(prob))
    assert found["area_m2"].sum() == pytest.approx(100 * np.isnan(prob).sum(), rel=1e-2)


@settings(max_examples=30)
@given(cut_rasters())
def test_closing_every_hole_fills_each_landslide(case: tuple[NDArray[np.float32], tuple[int, ...]]) -> None:
    prob, cuts = case
    mask = prob >= 0.5
    found = polygons(prob, cuts, max_hole_m2=1e9)
    drawn = rasterize(found.geometry, out_shape=mask.shape, transform=TEN) if len(found) else np.zeros(mask.shape)
    filled = np.zeros(mask.shape, bool)
    labels, n = ndimage.label(mask, EIGHT)
    for i in range(1, n + 1):
        filled |= ndimage.binary_fill_holes(labels == i)
    np.testing.assert_array_equal(drawn, filled)
    assert found.is_valid.all()
    assert found.union_all().area == pytest.approx(found.area.sum())


@st.composite
def cut_masks(draw: st.DrawFn) -> tuple[NDArray[np.bool_], tuple[int, ...]]:
    """Specks, blobs and mazes: islands in lakes, corners that touch, rings that meet themselves."""
    h, w, seed = draw(st.integers(1, 24)), draw(st.integers(1, 24)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.random((h, w)), rng.choice([0, 0.6, 1.2]))
    return mask > np.quantile(mask, rng.random()), tuple(row for row in range(1, h) if rng.random() < 0.3)


@settings(max_examples=150)
@given(cut_masks())
def test_outlines_are_those_of_gdal(case: tuple[NDArray[np.bool_], tuple[int, ...]]) -> None:
    mask, cuts = case
    tracer = Tracer(())
    bounds = pairwise((0, *cuts, len(mask)))
    found = [*(tracer.add(Strip(i, mask[i:j], {})) for i, j in bounds), tracer.end()]
    geometry = np.concatenate([components.geometry for components in found])
    size = np.concatenate([components.totals.count("place") for components in found])
    place = np.concatenate([components.totals.low("place") for components in found]).astype(int)

    labels, n = ndimage.label(mask, EIGHT)
    own = labels.ravel()[place]
    assert sorted(own) == list(range(1, n + 1))
    assert size.tolist() == np.bincount(labels.ravel())[own].tolist() == shapely.area(geometry).tolist()
    drawn = shapes(labels.astype(np.int32), mask=mask, connectivity=4, transform=Affine.identity())
    expected = {(int(label), shapely.normalize(shapely.geometry.shape(outline)).wkb) for outline, label in drawn}
    parts, owner = shapely.get_parts(geometry, return_index=True)
    assert {*zip(own[owner], shapely.to_wkb(shapely.normalize(parts)), strict=True)} == expected
    assert len(parts) == len(expected)
    assert shapely.is_valid(geometry).all()
    seen_on_a_map = shapely.transform(parts, lambda xy: xy * [1, -1])
    assert shapely.equals_exact(seen_on_a_map, shapely.orient_polygons(seen_on_a_map)).all()


def test_a_landslide_in_a_closed_hole_becomes_part_of_the_outer_one() -> None:
    ring = """
        #######
        #.....#
        #..#..#
        #.....#
        #######"""
    assert len(polygons(ring, max_hole_m2=1500)) == 2
    (outer,) = polygons(ring, max_hole_m2=1510).itertuples()
    assert outer.geometry.area == 3500


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2)])
def test_holes_are_closed_below_the_limit_also_those_shut_by_a_corner(cuts: tuple[int, ...]) -> None:
    diamond = ".#. #.# .#."
    assert polygons(diamond, cuts, max_hole_m2=99).geometry.area.tolist() == [400]
    assert polygons(diamond, cuts, max_hole_m2=101).geometry.area.tolist() == [500]


def test_pixels_that_touch_at_a_corner_are_one_valid_landslide() -> None:
    (one,) = polygons("#.. .#. ..#", (1, 2)).itertuples()
    assert one.geometry.is_valid
    assert one.geometry.geom_type == "MultiPolygon"


def test_small_landslides_are_left_out_by_what_their_pixels_cover() -> None:
    text = "##.#.. ...#.# ......"
    local = CRS.from_wkt('LOCAL_CS["nominal",UNIT["metre",1]]')
    sizes = [polygons(text, (1,), crs=local, min_area_m2=a)["area_m2"].tolist() for a in (0, 200, 201)]
    assert sizes == [[200, 200, 100], [200, 200], []]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, TEN),
        (UTM, Affine(10, 0, 166_000, 0, -10, 500_000)),
        (CRS.from_epsg(4326), Affine(1.3e-4, 0, 141.8, 0, -1.3e-4, 42.8)),
        (CRS.from_epsg(3857), Affine(10, 0, 1.5e7, 0, -10, 5.3e6)),
        (CRS.from_epsg(2263), Affine(33, 0, 980_000, 0, -33, 200_000)),
    ],
)
def test_sizes_are_geodesic(crs: CRS, transform: Affine) -> None:
    prob = np.full((400, 300), 0.1, np.float32)
    prob[50:350, 100:110] = 0.9
    prob[340:350, 110:250] = 0.9
    found = polygons(prob, (128, 256), transform=transform, crs=crs)
    (degrees,) = found.segmentize(transform.a).to_crs(found.crs.geodetic_crs).geometry
    area, perimeter = Geod(ellps=crs_ellipsoid(found)).geometry_area_perimeter(degrees)
    assert found["area_m2"][0] == pytest.approx(abs(area), rel=1e-5)
    assert found["perimeter_m"][0] == pytest.approx(perimeter, rel=1e-5)


def crs_ellipsoid(found: gpd.GeoDataFrame) -> str:
    return "GRS80" if "GRS" in found.crs.ellipsoid.name else "WGS84"


def test_length_and_width_are_those_of_the_smallest_rectangle() -> None:
    local = CRS.from_wkt('LOCAL_CS["nominal",UNIT["metre",1]]')
    (row,) = polygons("......\n.####.\n.####.\n......", crs=local).itertuples()
    assert (row.length_m, row.width_m, row.perimeter_m) == (40, 20, 120)


def test_terrain_attributes() -> None:
    prob = array("####")
    nan = np.nan
    (row,) = polygons(
        prob,
        dem=np.array([[10, 30, nan, 20]], np.float32),
        slope=np.array([[10, nan, 20, 30]], np.float32),
        aspect=np.array([[350, 10, 350, 10]], np.float32),
        agreement=np.array([[0, 1, 1, 1]], np.float32),
        uncertainty=np.array([[0.1, 0.1, 0.2, 0.2]], np.float32),
    ).itertuples()
    assert (row.elev_min, row.elev_max, row.relief_m) == (10, 30, 20)
    assert (row.slope_mean, row.slope_max) == (20, 30)
    assert min(row.aspect_deg, 360 - row.aspect_deg) == pytest.approx(0, abs=1e-4)
    assert (row.agreement, row.uncertainty) == pytest.approx((0.75, 1 - (prob.max() - 0.1)))


@pytest.mark.parametrize(("aspects", "mean"), [((90, 100), 95), ((200, 280), 240), ((0, 180), np.nan)])
def test_mean_aspect_is_circular(aspects: tuple[float, float], mean: float) -> None:
    (row,) = polygons("##", aspect=np.array([aspects], np.float32)).itertuples()
    assert row.aspect_deg == pytest.approx(mean, nan_ok=True)


def test_without_terrain_its_attributes_are_null() -> None:
    (row,) = polygons("#").itertuples()
    missing = ("agreement", "uncertainty", "elev_min", "relief_m", "slope_mean", "slope_max", "aspect_deg")
    assert all(np.isnan(getattr(row, name)) for name in missing)


def test_edge_looks_across_strips_and_corners() -> None:
    text = """
        ......
        .#....
        ......
        ....#.
        ...?..
        ......"""
    for cuts in ((), (3,), (4,), (1, 2, 3, 4, 5)):
        assert polygons(text, cuts)["edge"].tolist() == [False, True]


def test_nothing_found_still_has_the_full_schema() -> None:
    full, empty = polygons("#"), polygons(".")
    assert list(empty.columns) == list(full.columns) == COLUMNS
    assert empty.dtypes.tolist() == full.dtypes.tolist()
    assert empty.crs == full.crs
    assert len(empty) == 0


def test_simplified_outlines_are_valid_and_stay_apart() -> None:
    rng = np.random.default_rng(3)
    prob = ndimage.gaussian_filter(rng.random((150, 120)), 2).astype(np.float32)
    threshold = float(np.quantile(prob, 0.7))
    exact, simple = (polygons(prob, (64, 128), threshold=threshold, simplify_m=s) for s in (0, 15))
    assert len(simple) == len(exact)
    assert simple.is_valid.all()
    assert set(simple.geom_type) == {"MultiPolygon"}
    assert simple.count_coordinates().sum() < 0.6 * exact.count_coordinates().sum()
    assert simple["area_m2"].sum() == pytest.approx(exact["area_m2"].sum(), rel=0.05)
    assert simple.union_all().area == pytest.approx(simple.area.sum(), rel=1e-6)


def test_blocks_with_a_gap_are_refused() -> None:
    prob = array("#. .#")
    with pytest.raises(ValueError, match="row 3"):
        scene_polygons([Block(0, prob), Block(3, prob)], transform=TEN, crs=UTM, threshold=0.5)


@pytest.mark.parametrize("min_area_m2", [0, 1e5])
def test_memory_grows_neither_with_height_nor_with_landslides(min_area_m2: float) -> None:
    rng = np.random.default_rng(0)
    strip = rng.random((64, 60), dtype=np.float32)

    def peak(n: int) -> int:
        tracemalloc.start()
        # Noise: thousands of specks, many across the borders; all too small, or all to be written
        layers = scene_polygons(
            (Block(64 * i, strip) for i in range(n)), transform=TEN, crs=UTM, threshold=0.9, min_area_m2=min_area_m2
        )
        found = sum(map(len, layers.landslides))
        assert found == 0 if min_area_m2 else found > 100 * n
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    with patch.object(module, "PART", 100):
        peak(2)
        assert peak(16) < 1.3 * peak(4)


@needs_data
def test_real_labels_keep_their_area() -> None:
    with rasterio.open(DATA / "l4s_scenes" / "hokkaido" / "labels.tif") as raster:
        labels, transform, crs = raster.read(1), raster.transform, raster.crs
    prob = np.where(labels == 255, np.nan, labels == 1).astype(np.float32)
    found = polygons(prob, tuple(range(200, len(prob), 200)), transform=transform, crs=crs)
    assert len(found) == ndimage.label(labels == 1, EIGHT)[1]
    rows, columns = np.array(labels.shape) // 2
    _, south, east, _ = array_bounds(rows, columns, transform)
    middle = shapely.box(east, south, east + transform.a, south - transform.e)
    pixel = abs(Geod(ellps="WGS84").geometry_area_perimeter(middle)[0])
    assert found["area_m2"].sum() == pytest.approx(pixel * (labels == 1).sum(), rel=1e-3)
