from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import reproject
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from l4s_geo.errors import InputError
from l4s_geo.scene import L4S_BANDS, L4S_MEAN, Scene, open_scene

from .conftest import DATA, UTM, UTM_10M, needs_data, write_raster

Write = Callable[..., Path]

#: Pixels of 9.98 m by 7.35 m near Iburi, like the exports of many platforms.
DEGREES, DEGREES_10M = "EPSG:4326", Affine(9e-5, 0, 141.9, 0, -9e-5, 42.75)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(200, 3000, shape).astype(np.uint16)


def whole(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return scene.read(scene.grid.window())


# --- the scene's own grid -------------------------------------------------------------------------------


def test_pixels_come_as_they_are_in_any_window_and_order(raster: Write) -> None:
    pixels = noise(3, 40, 30)
    with open_scene(raster("s.tif", pixels, names=["B4", "B3", "B2"])) as scene:
        assert scene.bands == ("B4", "B3", "B2")
        assert (scene.name, scene.units, scene.date, scene.notes[1:]) == ("s", "dn", None, [])
        assert scene.grid.shape == (40, 30)
        assert scene.grid.transform == UTM_10M
        assert_allclose(scene.grid.pixel_size_m(), 10, rtol=2e-3)
        image, valid = scene.read(Window(5, 7, 11, 13), ["B2", "B4"])
    assert (image.dtype, valid.dtype) == (np.float32, np.bool_)
    assert_array_equal(image, pixels[[2, 0], 7:20, 5:16])
    assert valid.all()


def test_what_is_not_there_is_refused(raster: Write) -> None:
    with open_scene(raster("s.tif", noise(2, 9, 9), names=["B4", "B3"])) as scene:
        with pytest.raises(InputError, match="no B8; its bands are B4, B3"):
            scene.read(Window(0, 0, 2, 2), ["B4", "B8"])
        for window in (Window(-1, 0, 3, 3), Window(7, 0, 3, 3), Window(0, 0, 3, 10)):
            with pytest.raises(ValueError, match="not inside"):
                scene.read(window)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (300, 1)])
@pytest.mark.parametrize("how", [{}, {"crs": DEGREES, "transform": DEGREES_10M}])
def test_smallest_scenes(raster: Write, shape: tuple[int, int], how: dict[str, object]) -> None:
    path = raster("s.tif", np.full((1, *shape), 700, np.uint16), names=["B4"], **how)
    dem = raster("dem.tif", np.full(shape, 50, np.int16), **how)
    with open_scene(path, dem=dem) as scene:
        image, valid = whole(scene)
    assert valid.any()
    assert_allclose(image[:, valid].T, np.tile([700, 0, 50], (valid.sum(), 1)), rtol=1e-6)


def test_valid_is_what_every_input_has(raster: Write) -> None:
    blue, green, red = (np.full((8, 8), v, np.float32) for v in (700, 800, 900))
    blue[0, 0], green[1, 1], red[2, 2] = -9999, np.nan, np.inf
    mask = np.ones((8, 8), bool)
    mask[3, 3] = False
    dem = np.full((8, 8), 100, np.int16)
    dem[4, 4], dem[5, 5] = -32768, -9999
    raster("b/B02.tif", blue, nodata=-9999)
    raster("b/B03.tif", green)
    folder = raster("b/B04.tif", red, mask=mask).parent
    with open_scene(folder, dem=raster("dem.tif", dem, nodata=-32768)) as scene:
        image, valid = scene.read(scene.grid.window(), ["B3"])
    assert_array_equal(valid, ~np.eye(8, dtype=bool) | (np.arange(8) > 5))
    assert_array_equal(image[0], np.where(valid, 800, 0))


@pytest.mark.parametrize("nodata", [None, 0])
def test_alpha_is_a_mask_and_no_band(raster: Write, nodata: int | None) -> None:
    alpha = np.full((6, 6), 65535, np.uint16)
    alpha[:2] = 0
    path = raster(
        "s.tif",
        np.stack([*noise(3, 6, 6), alpha]),
        names=["B4", "B3", "B2"],
        photometric="rgb",
        nodata=nodata,
    )
    with rasterio.open(path, "r+") as d:
        d.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    with open_scene(path) as scene:
        assert scene.bands == ("B4", "B3", "B2")
        _, valid = whole(scene)
    assert_array_equal(valid, alpha > 0)


def test_zero_in_all_bands_is_nodata_where_a_file_declares_none(raster: Write) -> None:
    pixels = noise(2, 5, 5)
    pixels[:, 0, 0] = 0
    pixels[0, 1, 1] = 0
    with open_scene(raster("s.tif", pixels, names=["B4", "B3"])) as scene:
        _, valid = whole(scene)
        assert "no nodata value declared" in scene.notes[0]
    assert not valid[0, 0]
    assert valid.sum() == 24


# --- folders, globs, lists, names -----------------------------------------------------------------------


@pytest.fixture
def product(raster: Write) -> Path:
    """A folder like Sentinel-2's, with bands of 10, 20 and 60 m."""
    name = "S2A_MSIL1C_20170613T101031_"
    for band, size in (("B02", 10), ("B03", 10), ("B8A", 20), ("B11", 20), ("B01", 60)):
        n = 240 // size
        values = np.broadcast_to(np.where(np.arange(n) < n / 2, 1000, 3000), (n, n)).astype(np.uint16)
        raster(f"p/{name}{band}.tif", values, transform=UTM_10M * Affine.scale(size / 10), nodata=0)
    raster(f"p/{name}TCI.tif", noise(3, 24, 24).astype(np.uint8))
    return raster(f"p/{name}SCL.tif", np.ones((12, 12), np.uint8)).parent


def test_bands_of_several_resolutions_share_the_finest_grid(product: Path) -> None:
    with open_scene(product) as scene:
        assert scene.bands == ("B1", "B2", "B3", "B11", "B8A")
        assert (scene.date, scene.name) == ("2017-06-13", "S2A_MSIL1C_20170613T101031")
        assert scene.grid.shape == (24, 24)
        assert any("passed over" in note and "SCL" in note and "TCI" in note for note in scene.notes)
        image, valid = whole(scene)
    assert valid.all()
    for i, size in enumerate((60, 10, 10, 20, 20)):
        near = size // 10
        # the step stays where it was; beside it, kernels reach two pixels of the band's own
        assert_allclose(image[i].mean(), 2000, atol=1)
        assert_allclose(image[i][:, : 12 - 2 * near], 1000, atol=1e-2)
        assert_allclose(image[i][:, 12 + 2 * near :], 3000, atol=1e-2)


def test_a_glob_and_a_list_choose_files(product: Path) -> None:
    with open_scene(f"{product}/*_B0[23].tif") as scene:
        assert scene.bands == ("B2", "B3")
    files = [next(product.glob(f"*{band}.tif")) for band in ("B03", "B8A")]
    with open_scene(",".join(map(str, files))) as scene:
        assert scene.bands == ("B3", "B8A")


def test_terrain_in_a_folder_is_taken_unless_given(raster: Write) -> None:
    folder = raster("f/B04.tif", noise(6, 6)).parent
    raster("f/dem.tif", np.full((6, 6), 100, np.int16))
    with open_scene(folder) as scene:
        assert scene.bands == ("B4", "slope", "dem")
        assert any("dem from dem.tif" in note for note in scene.notes)
    other = raster("other.tif", np.full((6, 6), 200, np.int16))
    with open_scene(folder, dem=other) as scene:
        assert (whole(scene)[0][2] == 200).all()
        assert not any("dem from" in note for note in scene.notes)


def test_terrain_that_is_given_replaces_that_of_the_file(raster: Write) -> None:
    inside = np.stack([np.full((6, 6), 900), np.full((6, 6), -9999)]).astype(np.int16)
    path = raster("s.tif", inside, names=["B4", "dem"])
    with open_scene(path, dem=raster("other.tif", np.full((6, 6), 200, np.int16))) as scene:
        assert scene.bands == ("B4", "slope", "dem")
        image, valid = whole(scene)
    assert valid.all()
    assert (image[2] == 200).all()


def test_names_given_by_hand(raster: Write) -> None:
    path = raster("s.tif", noise(3, 5, 5))
    with open_scene(path, bands=["B04", "b3", "B2"]) as scene:
        assert scene.bands == ("B4", "B3", "B2")
    raster("f/one.tif", noise(5, 5))
    with open_scene(raster("f/two.tif", noise(5, 5)).parent, bands=["B8", "B8A"]) as scene:
        assert scene.bands == ("B8", "B8A")
    with pytest.raises(InputError, match=r"names 2 bands, but there are 3: s.tif \(3\)"):
        open_scene(path, bands=["B4", "B3"])
    with pytest.raises(InputError, match="unknown names cirrus"):
        open_scene(path, bands=["B4", "B3", "cirrus"])
    with pytest.raises(InputError, match=r"B4 in s.tif, s.tif"):
        open_scene(path, bands=["B4", "B3", "B4"])


def test_bands_inside_a_file_that_have_no_name_are_left_out(raster: Write) -> None:
    with open_scene(raster("s.tif", noise(3, 5, 5), names=["B4", "QA60", "B2"])) as scene:
        assert scene.bands == ("B4", "B2")
        assert any("left out of s.tif: band 2" in note for note in scene.notes)


def test_unclear_names_are_refused_with_what_was_found(raster: Write) -> None:
    with pytest.raises(InputError, match=r"14 bands without names.*--bands.*B12,slope,dem"):
        open_scene(raster("nameless.tif", noise(14, 5, 5)))
    with pytest.raises(InputError, match=r"Found single.tif: landslide"):
        open_scene(raster("single.tif", noise(5, 5), names=["landslide"]))
    with pytest.raises(InputError, match="unclear"):
        open_scene(raster("dem.tif", noise(5, 5)))
    raster("f/post_B4.tif", noise(5, 5))
    folder = raster("f/pre_B4.tif", noise(5, 5)).parent
    with pytest.raises(InputError, match=r"B4 in post_B4.tif, pre_B4.tif.*'post_B\*.tif'"):
        open_scene(folder)


def test_inputs_that_are_not_there(tmp_path: Path, raster: Write) -> None:
    with pytest.raises(InputError, match=r"There is no file.*lost.tif"):
        open_scene(tmp_path / "lost.tif")
    with pytest.raises(InputError, match=r"No file matches.*B\*.tif"):
        open_scene(f"{tmp_path}/B*.tif")
    with pytest.raises(InputError, match="holds no bands"):
        open_scene(tmp_path)
    with pytest.raises(InputError, match=r"There is no file.*lost.tif"):
        open_scene(raster("B4.tif", noise(4, 4)), dem=tmp_path / "lost.tif")
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(InputError, match=r"text.tif cannot be opened"):
        open_scene(tmp_path / "text.tif")


# --- warping --------------------------------------------------------------------------------------------


def test_degrees_are_warped_to_metres_in_the_right_place(raster: Write) -> None:
    """A ramp of longitude and one of latitude must come out as those of each pixel's own position."""
    cols, rows = np.meshgrid(np.arange(300) + 0.5, np.arange(200) + 0.5)
    ramps = np.stack([1000 + 10 * cols, 1000 + 10 * rows]).astype(np.float32)
    path = raster("s.tif", ramps, names=["B4", "B3"], crs=DEGREES, transform=DEGREES_10M)
    with open_scene(path) as scene:
        assert scene.grid.crs == CRS.from_epsg(32654)
        assert scene.native_crs == CRS.from_epsg(4326)
        assert scene.grid.transform.a == -scene.grid.transform.e == 10
        assert scene.notes[-1] == "warped from EPSG:4326 to EPSG:32654 at 10 m"
        image, valid = whole(scene)
        at = np.flatnonzero(valid.ravel())
        y, x = np.divmod(at, scene.grid.width)
        lon, lat = transform_points(scene.grid.crs, CRS.from_epsg(4326), *scene.grid.at(x + 0.5, y + 0.5))
    col, row = (np.array(lon) - 141.9) / 9e-5, (42.75 - np.array(lat)) / 9e-5
    inner = (col > 3) & (col < 297) & (row > 3) & (row < 197)
    assert inner.mean() > 0.9
    expected = np.stack([1000 + 10 * col, 1000 + 10 * row])
    assert_allclose(image.reshape(2, -1)[:, at][:, inner], expected[:, inner], atol=10 * 0.05)
    assert valid.mean() > 0.9


@pytest.fixture(scope="module")
def warped(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A warped scene of several tiles with holes, a coarse DEM and the slope of it."""
    folder = tmp_path_factory.mktemp("warped")
    pixels = noise(2, 330, 700)
    pixels[:, 100:140, 200:300] = 0
    how = {"crs": DEGREES, "nodata": 0}
    path = write_raster(folder / "s.tif", pixels, names=["B4", "B3"], transform=DEGREES_10M, **how)  # type: ignore[arg-type]
    dem = noise(120, 250, seed=1).astype(np.float32)
    around = DEGREES_10M * Affine.translation(-10, -10) * Affine.scale(3)
    return open_scene(path, dem=write_raster(folder / "dem.tif", dem, crs=DEGREES, transform=around))


@settings(max_examples=25)
@given(data=st.data())
def test_a_window_is_the_same_part_of_the_whole(warped: Scene, data: st.DataObject) -> None:
    image, valid = whole(warped)
    h, w = warped.grid.shape
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    height, width = data.draw(st.integers(1, h - top)), data.draw(st.integers(1, w - left))
    part, seen = warped.read(Window(left, top, width, height))
    assert_array_equal(seen, valid[top : top + height, left : left + width])
    assert_array_equal(part, image[:, top : top + height, left : left + width])


@pytest.mark.parametrize("pixel", [20, 5])
def test_tiles_leave_no_seams(raster: Write, pixel: float) -> None:
    """Between tiles, pixels are what warping the raster as a whole gives."""
    shape = int(1500 / pixel), int(5500 / pixel)
    own, shift = noise(*shape), UTM_10M * Affine.translation(0.3, 0.4)
    path = raster("B04.tif", own, transform=shift * Affine.scale(pixel / 10))
    with open_scene(path) as scene:
        image, valid = whole(scene)
        grid = scene.grid
    expected = np.zeros(grid.shape, np.float32)
    place = {"src_transform": shift * Affine.scale(pixel / 10), "src_crs": grid.crs}
    place |= {"dst_transform": grid.transform, "dst_crs": grid.crs}
    reproject(own.astype(np.float32), expected, resampling=Resampling.cubic, **place)
    assert valid[5:-5, 5:-5].all()
    assert_allclose(image[0][5:-5, 5:-5], expected[5:-5, 5:-5], rtol=1e-3)


def test_slope_on_the_scenes_own_grid_does_not_depend_on_the_window(raster: Write) -> None:
    path, dem = raster("B04.tif", noise(20, 30)), raster("dem.tif", noise(20, 30, seed=1))
    with open_scene(path, dem=dem) as scene:
        image, _ = whole(scene)
        assert_array_equal(scene.read(Window(10, 5, 7, 6))[0], image[:, 5:11, 10:17])


def test_strips_in_sequence_warp_every_tile_once(warped: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of 100 rows with 40 rows of overlap: the memory holds what they share."""
    from l4s_geo.scene import layer

    done: list[object] = []
    real = layer.resample

    def counted(*args: object) -> object:
        done.append(args)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(layer, "resample", counted)
    for one in warped._layers:
        one._tiles.clear()
    h, w = warped.grid.shape
    for row in range(0, h, 60):
        warped.read(Window(0, row, w, min(100, h - row)))
    assert len(done) == len(warped._layers) * math.ceil(h / layer.TILE_ROWS) * math.ceil(w / layer.TILE_COLS)


@pytest.mark.parametrize("nodata", [0, 65535])
def test_nodata_gives_nothing_to_its_neighbours(raster: Write, nodata: int) -> None:
    pixels = np.full((1, 150, 300), 1000, np.uint16)
    holes = [
        (slice(40, 60), slice(30, 60)),
        (slice(100, 101), slice(0, 300)),
        (slice(20, 21), slice(200, 201)),
    ]
    for hole in holes:
        pixels[:, *hole] = nodata
    pixels[:, :, 270:] = nodata
    dem = np.full((50, 100), 300, np.int16)
    dem[30:] = -32768
    coarse = DEGREES_10M * Affine.scale(3)
    path = raster("s.tif", pixels, names=["B4"], nodata=nodata, crs=DEGREES, transform=DEGREES_10M)
    dem_path = raster("dem.tif", dem, nodata=-32768, crs=DEGREES, transform=coarse)
    with open_scene(path, dem=dem_path) as scene:
        image, valid = whole(scene)
    assert valid.any()
    assert_allclose(image[0][valid], 1000, rtol=1e-5)
    assert_allclose(image[1][valid], 0, atol=1e-3)
    assert_allclose(image[2][valid], 300, rtol=1e-5)
    assert (image[:, ~valid] == 0).all()
    ground = (pixels[0] != nodata) & np.repeat(np.repeat(dem > 0, 3, 0), 3, 1)
    pixel = 9e-5**2 * 111_000**2 * math.cos(math.radians(42.74))
    # single lines and pixels may go, but holes neither grow nor shrink
    assert_allclose(valid.sum() * 100, ground.sum() * pixel, rtol=0.02)


def test_coarser_pixels_are_means_not_picks(raster: Write) -> None:
    """Warped from 2.5 m, a checkerboard is grey."""
    board = np.indices((80, 80)).sum(axis=0) % 2 * 2000 + 1
    path = raster("s.tif", board.astype(np.uint16), names=["B4"], transform=UTM_10M * Affine.scale(0.25))
    with open_scene(path) as scene:
        assert scene.grid.shape == (20, 20)
        assert_allclose(whole(scene)[0], 1001, atol=60)


def test_a_turned_raster_is_warped_upright(raster: Write) -> None:
    turned = UTM_10M * Affine.rotation(30)
    path = raster("s.tif", np.full((60, 60), 900, np.uint16), names=["B4"], transform=turned, nodata=0)
    with open_scene(path) as scene:
        assert scene.grid.is_north_up
        image, valid = whole(scene)
    assert_allclose(image[0][valid], 900, rtol=1e-5)
    assert_allclose(valid.sum(), 3600, rtol=0.02)


def test_a_scene_on_the_date_line(raster: Write) -> None:
    transform = Affine(9e-5, 0, 179.99, 0, -9e-5, -17)
    path = raster("s.tif", np.full((100, 220), 900, np.uint16), names=["B4"], crs=DEGREES, transform=transform)
    dem = raster("dem.tif", np.full((40, 80), 70, np.int16), crs=DEGREES, transform=transform * Affine.scale(3))
    with open_scene(path, dem=dem) as scene:
        assert scene.grid.width < 300
        image, valid = whole(scene)
    assert valid.mean() > 0.9
    assert_allclose(image[2][valid], 70, rtol=1e-5)


@pytest.mark.parametrize(("pixel", "resolution", "kept"), [(11, 10, True), (20, 10, False), (20, None, True)])
def test_the_scenes_grid_is_kept_where_it_fits(
    raster: Write, pixel: float, resolution: float | None, kept: bool
) -> None:
    own = UTM_10M * Affine.scale(pixel / 10)
    with open_scene(raster("B04.tif", noise(20, 20), transform=own), resolution=resolution) as scene:
        assert (scene.grid.transform == own) is kept
        assert scene.grid.crs == CRS.from_string(UTM)


def test_web_mercator_is_no_grid_in_metres(raster: Write) -> None:
    """Its 10 m are 7.3 m on the ground at 43 degrees."""
    transform = Affine(10, 0, 15796000, 0, -10, 5260000)
    with open_scene(raster("B04.tif", noise(40, 40), crs="EPSG:3857", transform=transform)) as scene:
        assert scene.grid.crs == CRS.from_epsg(32654)
        assert_allclose(scene.grid.width, 40 * math.cos(math.radians(42.67)), atol=2)


# --- units ----------------------------------------------------------------------------------------------


def test_reflectance_is_read_as_digital_numbers_when_said_so(raster: Write) -> None:
    path = raster("B04.tif", np.full((9, 9), 0.25, np.float32))
    dem = raster("dem.tif", np.full((9, 9), 250, np.int16))
    with pytest.raises(InputError, match=r"from 0.25 to 0.25.*--units reflectance"):
        open_scene(path)
    with open_scene(path, dem=dem, units="reflectance") as scene:
        assert scene.units == "reflectance"
        assert_allclose(whole(scene)[0][:, 0, 0], [2500, 0, 250])


def test_bytes_are_taken_only_when_said_so(raster: Write) -> None:
    path = raster("s.tif", noise(3, 9, 9).astype(np.uint8), names=["B4", "B3", "B2"])
    with pytest.raises(InputError, match="--units byte"):
        open_scene(path)
    with open_scene(path, units="byte") as scene:
        assert scene.units == "byte"


def test_digital_numbers_are_no_reflectance(raster: Write) -> None:
    for kind in (np.uint16, np.float32):
        with pytest.raises(InputError, match="--units dn"):
            open_scene(raster("B04.tif", noise(9, 9).astype(kind)), units="reflectance")


def test_digital_numbers_may_be_floats(raster: Write) -> None:
    with open_scene(raster("B04.tif", noise(9, 9).astype(np.float32))) as scene:
        assert scene.units == "dn"


# --- inputs that cannot be used -------------------------------------------------------------------------


def test_a_scene_without_a_valid_pixel_is_refused(raster: Write) -> None:
    pixels = np.zeros((1, 400, 400), np.uint16)
    with pytest.raises(InputError, match="no pixel that is valid"):
        open_scene(raster("s.tif", pixels, names=["B4"], nodata=0))
    pixels[0, 70, 240] = 500  # between all the windows of the sample
    with open_scene(raster("t.tif", pixels, names=["B4"], nodata=0)) as scene:
        assert whole(scene)[1].sum() == 1


def test_no_coordinate_system_or_no_position(raster: Write) -> None:
    with pytest.raises(InputError, match="no coordinate system"):
        open_scene(raster("s.tif", noise(1, 9, 9), names=["B4"], crs=None))
    with pytest.warns(NotGeoreferencedWarning):
        path = raster("s.tif", noise(1, 9, 9), names=["B4"], transform=None)
    with pytest.raises(InputError, match="no position"):
        open_scene(path)


@pytest.mark.parametrize("keep", [0.1, 0.6])
def test_a_file_cut_short_is_named(raster: Write, keep: float) -> None:
    path = raster("s.tif", noise(1, 400, 400), names=["B4"])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with (
        pytest.raises(InputError, match=r"s.tif cannot be (read|opened).*complete"),
        open_scene(path) as scene,
    ):
        whole(scene)


def test_terrain_elsewhere_or_of_several_bands(raster: Write) -> None:
    path = raster("B04.tif", noise(9, 9))
    far = raster("far.tif", np.ones((9, 9), np.int16), transform=UTM_10M * Affine.translation(5000, 0))
    with pytest.raises(InputError, match=r"far.tif does not overlap the scene: it covers 620000..620090"):
        open_scene(path, dem=far)
    with pytest.raises(InputError, match=r"two.tif has 2 bands; --slope"):
        open_scene(path, slope=raster("two.tif", np.ones((2, 9, 9), np.float32)))


def test_partial_terrain_is_said(raster: Write) -> None:
    path = raster("B04.tif", noise(20, 20))
    dem = raster("dem.tif", np.ones((30, 10), np.int16), transform=UTM_10M * Affine.translation(0, -5))
    with open_scene(path, dem=dem) as scene:
        assert any(note.startswith("slope and dem: 5") for note in scene.notes)
        assert_array_equal(whole(scene)[1], np.arange(20)[None] < np.full((20, 1), 10))


# --- Landslide4Sense patches ----------------------------------------------------------------------------


def test_a_patch_is_brought_back_to_digital_numbers(tmp_path: Path, raster: Write) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (128, 128, 14))
    values[..., L4S_BANDS.index("slope")] %= 90
    path = tmp_path / "image_7.h5"
    with h5py.File(path, "w") as file:
        file["img"] = values / np.array(L4S_MEAN)
    with open_scene(path) as scene:
        assert scene.bands == L4S_BANDS
        assert (scene.name, scene.grid.is_local, scene.grid.pixel_size_m()) == ("image_7", True, (10, 10))
        assert any("no position" in note for note in scene.notes)
        image, valid = whole(scene)
    assert_array_equal(image, values.transpose(2, 0, 1))
    assert valid.all()
    with pytest.raises(InputError, match="tied to the Earth"):
        open_scene(path, dem=raster("dem.tif", np.ones((9, 9), np.int16)))


def test_other_hdf5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask_7.h5"
    with h5py.File(path, "w") as file:
        file["mask"] = np.zeros((128, 128))
    with pytest.raises(InputError, match="no 'img'"):
        open_scene(path)
    path.write_bytes(b"cut")
    with pytest.raises(InputError, match="no Landslide4Sense patch"):
        open_scene(path)


# --- real data ------------------------------------------------------------------------------------------


@needs_data
def test_an_original_scene_with_its_terrain() -> None:
    folder = DATA / "hokkaido_s2"
    with open_scene(f"{folder}/post_B*.tif", dem=folder / "dem.tif") as scene:
        assert scene.bands == ("B2", "B3", "B4", "slope", "dem")
        assert scene.grid.crs == CRS.from_epsg(32654)
        image, valid = scene.read(Window(200, 200, 500, 300))
    assert valid.all()
    low, high = image.reshape(5, -1).min(axis=1), image.reshape(5, -1).max(axis=1)
    assert (low > [500, 300, 100, -0.01, 0]).all()
    assert (high < [20000, 20000, 20000, 75, 700]).all()
    with pytest.raises(InputError, match=r"B2 in post_B2.tif, pre_B2.tif"):
        open_scene(folder)


@needs_data
@pytest.mark.parametrize("region", ["hokkaido", "rasuwa", "taitung"])
def test_labelled_scenes(region: str) -> None:
    with open_scene(DATA / "l4s_scenes" / region / "rgb.tif") as scene:
        assert scene.bands == ("B4", "B3", "B2")
        assert any("warped" in note for note in scene.notes) is (region == "hokkaido")
        _, valid = scene.read(Window(0, 0, scene.grid.width, 256))
    assert 0.1 < valid.mean() < 1


@needs_data
def test_real_band_folders() -> None:
    folders = sorted(p for p in (DATA / "bigearthnet").glob("*/*") if p.is_dir())
    assert len(folders) == 6
    for folder in folders:
        with open_scene(folder) as scene:
            assert len(scene.bands) == 12
            assert "B8A" in scene.bands
            assert scene.date is not None
            assert scene.grid.shape == (120, 120)
            image, valid = whole(scene)
        assert valid.all()
        names = dict(zip(scene.bands, image, strict=True))
        # broad and narrow near infrared see the same ground, the blue band does not
        assert np.corrcoef(names["B8"].ravel(), names["B8A"].ravel())[0, 1] > 0.9


@needs_data
def test_real_patches() -> None:
    for path in sorted((DATA / "l4s_h5").glob("*.h5")):
        with open_scene(path) as scene:
            image, valid = whole(scene)
        assert valid.all()
        slope = image[scene.bands.index("slope")]
        assert 0 <= slope.min() < slope.max() < 90
