"""Areas on disk give what areas in memory give, without being read whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from l4s_geo.data.crops import STRIP, Area, CropSampler, crops_of_step, cut, make_area
from l4s_geo.data.ondisk import OnDisk, open_area
from l4s_geo.data.patches import UNKNOWN
from l4s_geo.errors import InputError
from l4s_geo.scene import Grid
from l4s_geo.train.targets import profile
from tests.conftest import UTM_10M, write_raster

BANDS = ("B4", "B3", "B2")
HEIGHT, WIDTH = 1100, 150  # strips and tiles do not go into it evenly


def write_area(folder, area, bands=BANDS):
    """As self-training has it: tiles, an internal mask, and no tile where there is nothing."""
    folder.mkdir()
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate", "sparse_ok": True}
    write_raster(folder / "image.tif", area.image, names=bands, mask=area.valid, predictor=2, **tiles)
    write_raster(folder / "labels.tif", area.truth, nodata=UNKNOWN, **tiles)
    return folder


@pytest.fixture(scope="module")
def memory() -> Area:
    rng = np.random.default_rng(0)
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[:, -30:] = valid[300:460] = False
    truth = np.full((HEIGHT, WIDTH), UNKNOWN, np.uint8)
    for row, column in rng.integers(0, (HEIGHT, WIDTH), (12, 2)):
        truth[row : row + 9, column : column + 9] = rng.integers(0, 2)
    truth[~valid] = UNKNOWN
    image = rng.integers(0, 65536, (3, HEIGHT, WIDTH)).astype(np.uint16) * valid
    return replace(make_area("valley", BANDS, image, truth, valid, "asinh"), domain=1)


@pytest.fixture(scope="module")
def folder(memory, tmp_path_factory):
    return write_area(tmp_path_factory.mktemp("areas") / "valley", memory)


@pytest.fixture(scope="module")
def disk(memory, folder) -> Area:
    return open_area(folder, BANDS, normalizer=memory.normalizer, name="valley", domain=1)


def same(a, b):
    return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("image", "truth", "valid")) and (
        a.domain == b.domain
    )


@given(st.integers(-300, HEIGHT + 50), st.integers(-300, WIDTH + 50), st.integers(1, 300))
def test_crops_are_those_of_the_area_in_memory(memory, disk, row, column, size):
    assert same(cut(memory, row, column, size), cut(disk, row, column, size))


@given(st.lists(st.integers(0, HEIGHT), min_size=2, max_size=2, unique=True))
def test_rows_are_those_of_the_area_in_memory(memory, disk, ends):
    start, stop = sorted(ends)
    assert same(memory.rows(start, stop), disk.rows(start, stop))
    pairs = zip(*(a.standardized_rows(start, stop - start) for a in (memory, disk)), strict=True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def test_a_step_draws_the_same_crops(memory, disk):
    assert disk.labelled == (memory.truth != UNKNOWN).sum()
    cells = {(r // 32 * 32, c // 32 * 32) for r, c in np.argwhere(memory.truth != UNKNOWN)}
    whole = {(r, c) for r, c in cells if r + 32 <= HEIGHT and c + 32 <= WIDTH}
    assert {tuple(c) for c in disk.labelled_cells} == whole
    mine, theirs = (crops_of_step(CropSampler([a], [], 0.0, 56), 3, 8, seed=1) for a in (memory, disk))
    assert all(same(a, b) for a, b in zip(mine, theirs, strict=True))


def test_bands_are_found_by_name_and_held_out_rows_are_blank(memory, folder):
    area = open_area(folder, ("B2", "B4"), normalizer=memory.normalizer, name="valley")
    assert np.array_equal(area.image[:, 7:40, 3:9], memory.image[[2, 0], 7:40, 3:9])
    assert area.normalizer.center == tuple(memory.normalizer.center[i] for i in (2, 0))
    left = area.without_rows([(0, 600)], "asinh")
    assert not left.valid[:600].any()
    assert np.array_equal(left.truth[600:], memory.truth[600:])
    assert left.normalizer.pixels == memory.valid[600:].sum()


def test_no_read_is_larger_than_a_strip_and_labels_are_counted_once(memory, folder, monkeypatch):
    read, seen = OnDisk.__getitem__, []

    def counted(self, at):
        found = read(self, at)
        seen.append((self.path.name, found.shape[-2:]))
        return found

    monkeypatch.setattr(OnDisk, "__getitem__", counted)
    area = open_area(folder, BANDS, normalizer=memory.normalizer, name="valley")
    assert {name for name, _ in seen} == {"image.tif", "labels.tif"}
    sampler = CropSampler([area], [], 0.0, 56)
    assert max(rows for _, (rows, _) in seen) <= STRIP < HEIGHT
    seen.clear()
    assert area.labelled
    CropSampler([area], [], 0.0, 56)
    assert not seen
    crops_of_step(sampler, 0, 8, seed=1)
    assert seen
    assert all(max(shape) <= 56 for _, shape in seen)


def test_patches_that_were_never_written_are_unknown(tmp_path, memory):
    """Targets made of patches leave tiles between them away."""
    tall = Grid(rasterio.CRS.from_epsg(32654), UTM_10M, 128, 512)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "image.tif", "w", **profile(tall), count=3, dtype="uint16") as image,
        rasterio.open(tmp_path / "labels.tif", "w", **profile(tall), count=1, dtype="uint8", nodata=UNKNOWN) as labels,
    ):
        image.descriptions = BANDS
        part = rasterio.windows.Window(0, 128, 128, 128)
        image.write(np.full((3, 128, 128), 400, np.uint16), window=part)
        image.write_mask(np.ones((128, 128), bool), window=part)
        labels.write(np.ones((1, 128, 128), np.uint8), window=part)
    area = open_area(tmp_path, BANDS, normalizer=memory.normalizer, name="patches")
    assert area.labelled == 128 * 128
    assert {r // 128 for r, _ in area.labelled_cells} == {1}
    assert np.array_equal(area.valid[:], area.truth[:] == 1)


def no_image(folder, memory):
    (folder / "image.tif").unlink()


def no_labels(folder, memory):
    (folder / "labels.tif").unlink()


def not_a_raster(folder, memory):
    (folder / "labels.tif").write_text("nothing")


def cut_off(folder, memory):
    path = folder / "labels.tif"
    path.write_bytes(path.read_bytes()[:-60])


def other_type(folder, memory):
    write_raster(folder / "image.tif", memory.image.astype(np.float32), names=BANDS, mask=memory.valid)


def other_bands(folder, memory):
    write_raster(folder / "image.tif", memory.image, names=("B8", "B3", None), mask=memory.valid)


def no_mask(folder, memory):
    write_raster(folder / "image.tif", memory.image, names=BANDS)


def smaller_labels(folder, memory):
    write_raster(folder / "labels.tif", memory.truth[:-1])


def labels_elsewhere(folder, memory):
    write_raster(folder / "labels.tif", memory.truth, transform=UTM_10M.translation(1, 0) * UTM_10M)


def labels_of_nodata(folder, memory):
    truth = memory.truth.copy()
    truth[310, 5] = 0
    write_raster(folder / "labels.tif", truth)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_image, "There is no file .*image.tif"),
        (no_labels, "There is no file .*labels.tif"),
        (not_a_raster, "labels.tif cannot be read"),
        (cut_off, "labels.tif cannot be read"),
        (other_type, "float32, not uint16"),
        (other_bands, "has no B4, B2; its bands are B8, B3, no name"),
        (no_mask, "no mask"),
        (smaller_labels, "grid"),
        (labels_elsewhere, "grid"),
        (labels_of_nodata, "classes where .* is not valid, from row 256 on"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(tmp_path, memory, spoil, message):
    folder = write_area(tmp_path / "spoilt", memory)
    spoil(folder, memory)
    with pytest.raises(InputError, match=message):
        open_area(folder, BANDS, normalizer=memory.normalizer, name="spoilt")


def test_damage_that_shows_later_is_one_message_too(tmp_path, memory):
    folder = write_area(tmp_path / "spoilt", memory)
    path = folder / "image.tif"
    with rasterio.open(path) as file:
        at = file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1)
    data = bytearray(path.read_bytes())
    data[int(at) : int(at) + 64] = bytes(64)
    path.write_bytes(data)
    area = open_area(folder, BANDS, normalizer=memory.normalizer, name="spoilt")
    with pytest.raises(InputError, match=r"image.tif cannot be read .*complete"):
        cut(area, 0, 0, 64)
    assert cut(area, 600, 0, 64).valid.any()


def test_a_band_without_statistics_is_refused(folder, memory):
    with pytest.raises(InputError, match="B4"):
        open_area(folder, BANDS, normalizer=memory.normalizer.select(("B2", "B3")), name="valley")
