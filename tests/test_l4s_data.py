"""Landslide4Sense folders, chips, mosaics, synthetic patches and the download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import huggingface_hub
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner, Result
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from l4s_geo.cli import main
from l4s_geo.data import download
from l4s_geo.data.crops import load_area
from l4s_geo.data.folders import open_patches
from l4s_geo.data.l4s import COUNTS, LAYOUTS, encode, encode_image, encode_mask, number_of, read_image
from l4s_geo.data.mosaic import REGIONS, mosaic, place
from l4s_geo.errors import InputError
from l4s_geo.normalize import l4s_contract
from l4s_geo.progress import Silent
from l4s_geo.scene import L4S_BANDS, open_scene
from tests.conftest import DATA, needs_data, write_raster

RGB = ("B4", "B3", "B2")


def run(*args: str) -> Result:
    return CliRunner().invoke(main, [*args, "-q"])


def refused(done: Result, *said: str) -> None:
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not [word for word in said if word not in done.stderr], done.stderr


def raw(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Whole numbers in all 14 bands; the land is flat in places, and below the sea."""
    image = np.random.default_rng(seed).integers(1, 4000, (14, 128, 128)).astype(np.float32)
    image[12] %= 90  # degrees
    image[12, :64] = 0
    image[13] -= 100
    return image


def put(folder: Path, number: int, image: Any = None, mask: Any = None, split: str = "train") -> None:
    """A patch and, if given, its mask, as the original download has them."""
    images, masks = (folder / part for part in LAYOUTS["traindata"][split])
    images.mkdir(parents=True, exist_ok=True)
    (images / f"image_{number}.h5").write_bytes(encode_image(raw(number) if image is None else image))
    if mask is not None:
        masks.mkdir(parents=True, exist_ok=True)
        (masks / f"mask_{number}.h5").write_bytes(encode_mask(mask))


def half(value: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = value
    return mask


# --- patches ------------------------------------------------------------------------------------------------


def test_a_patch_gives_back_digital_numbers_and_truth(tmp_path: Path) -> None:
    put(tmp_path, 10, mask=half())
    put(tmp_path, 9, mask=half())
    patches = open_patches(tmp_path)
    assert [number_of(i) for i in patches.items] == [9, 10]
    patch = patches[1]
    assert patch.bands == L4S_BANDS
    assert patch.image.dtype == np.float32
    assert np.array_equal(patch.image, raw(10))
    assert patch.valid.all()
    assert np.array_equal(patch.truth, half())
    assert np.array_equal(open_patches(tmp_path, RGB)[1].image, raw(10)[[3, 2, 1]])


def test_a_file_holds_what_the_data_set_holds(tmp_path: Path) -> None:
    put(tmp_path, 1, mask=half())
    with h5py.File(tmp_path / "TrainData/img/image_1.h5") as file:
        assert (list(file), file["img"].dtype, file["img"].shape) == (["img"], np.float64, (128, 128, 14))
        scaled = l4s_contract()(raw(1), np.ones((128, 128), bool))
        assert np.allclose(file["img"][()].transpose(2, 0, 1), scaled, rtol=1e-6)
    with h5py.File(tmp_path / "TrainData/mask/mask_1.h5") as file:
        assert (list(file), file["mask"].dtype, file["mask"].shape) == (["mask"], np.uint8, (128, 128))


@needs_data
def test_real_patches_are_digital_numbers() -> None:
    patches = open_patches(DATA / "l4s_h5", labels=False)
    assert [p.name for p in patches] == [f"image_{n}" for n in (31, 37, 39, 52, 55, 59)]
    first = patches[0]
    with open_scene(DATA / "l4s_h5" / "image_31.h5") as scene:
        assert np.array_equal(first.image, scene.read(Window(0, 0, 128, 128))[0])
    assert (first.truth == 255).all()


def test_both_layouts_a_split_and_a_flat_folder_hold_the_same(tmp_path: Path) -> None:
    put(tmp_path / "a", 3, mask=half())
    put(tmp_path / "a", 7, split="test")
    for old, new in (("TrainData/img", "images/train"), ("TrainData/mask", "annotations/train")):
        shutil.copytree(tmp_path / "a" / old, tmp_path / "b" / new)
        shutil.copytree(tmp_path / "a" / old, tmp_path / "flat", dirs_exist_ok=True)
    for folder in ("a", "a/TrainData", "b", "flat"):
        (patch,) = open_patches(tmp_path / folder)
        assert np.array_equal(patch.image, raw(3)), folder
        assert np.array_equal(patch.truth, half()), folder
    assert open_patches(tmp_path / "a", split="test", labels=False)[0].name == "image_7"
    with pytest.raises(InputError, match=r"no validation images .* train, test"):
        open_patches(tmp_path / "a", split="validation")


def test_opening_reads_no_image(tmp_path: Path) -> None:
    put(tmp_path, 1, mask=half())
    (tmp_path / "TrainData/img/image_1.h5").write_bytes(b"damaged")
    patches = open_patches(tmp_path)
    assert len(patches[:1]) == len(patches.keep(lambda i: number_of(i) == 1)) == 1
    with pytest.raises(InputError, match=r"image_1\.h5 cannot be read"):
        patches[0]


def test_pixels_without_data_are_unknown(tmp_path: Path) -> None:
    image = raw(1)
    image[:12, :10] = 0
    put(tmp_path, 1, image, half())
    patch = open_patches(tmp_path)[0]
    assert (patch.truth[:10] == 255).all()
    assert not patch.valid[:10].any()
    assert (patch.image[:, :10] == 0).all()


def truncated(folder: Path) -> None:
    put(folder, 1, mask=half())
    path = folder / "TrainData/img/image_1.h5"
    path.write_bytes(path.read_bytes()[:900_000])


def wrong(key: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        put(folder, 1, mask=half())
        (folder / "TrainData/img/image_1.h5").write_bytes(encode(key, np.ones(shape)))

    return make


def without(path: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for number in (1, 2):
            put(folder, number, mask=half())
        (folder / path).unlink()

    return make


def masked(mask: Any) -> Callable[[Path], None]:
    return lambda folder: put(folder, 1, mask=mask)


BAD: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "mask without image": (without("TrainData/img/image_2.h5"), ("mask_2.h5 without image",)),
    "image without mask": (without("TrainData/mask/mask_2.h5"), ("image_2.h5 without mask",)),
    "truncated": (truncated, ("image_1.h5", "cannot be read")),
    "wrong key": (wrong("image", (128, 128, 14)), ("image_1.h5", "no array 'img'", "image")),
    "wrong shape": (wrong("img", (64, 64, 14)), ("image_1.h5", "(64, 64, 14)", "(128, 128, 14)")),
    "fewer bands": (wrong("img", (128, 128, 3)), ("image_1.h5", "(128, 128, 3)")),
    "more bands": (wrong("img", (128, 128, 15)), ("image_1.h5", "15 bands", "slope")),
    "mask of another size": (masked(np.zeros((64, 64))), ("mask_1.h5", "(64, 64)")),
    "all unknown": (masked(np.full((128, 128), 255)), ("all 255",)),
    "255 for landslide": (masked(half(255)), ("no 1", "255 means unknown")),
    "other values": (masked(half(7)), ("mask_1.h5", "holds 7")),
    "empty": (lambda folder: None, ("nothing at all",)),
    "something else": (lambda folder: (folder / "notes.txt").touch(), ("1 file .txt", "image_N.h5")),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_cannot_be_learnt_from_is_refused(case: str, tmp_path: Path) -> None:
    make, said = BAD[case]
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        list(open_patches(tmp_path))
    assert not [word for word in said if word not in str(caught.value)], caught.value
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        open_patches(tmp_path / "none")


# --- chips --------------------------------------------------------------------------------------------------


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Two GeoTIFF chips of different sizes, one with a corner of nodata; masks as PNG and as GeoTIFF."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, size in (("a", (40, 70)), ("b", (33, 20))):
        image = rng.integers(300, 900, (3, *size), dtype=np.uint16)
        if name == "b":
            image[:, :5, :5] = 0
        write_raster(tmp_path / "images" / f"{name}.tif", image, names=("Red", "B03", "B2"), nodata=0)
    with rasterio.open(
        tmp_path / "masks" / "a.png", "w", driver="PNG", count=1, width=70, height=40, dtype="uint8"
    ) as f:
        f.write(np.eye(40, 70, dtype=np.uint8), 1)
    write_raster(tmp_path / "masks" / "b.tif", np.zeros((33, 20), np.uint8))
    return tmp_path


def test_chips_are_read_by_name_at_any_size(chips: Path) -> None:
    a, b = open_patches(chips, ("B2", "B4"))
    with rasterio.open(chips / "images" / "a.tif") as f:
        assert np.array_equal(a.image, f.read([3, 1]))
    assert (a.name, a.bands, a.image.dtype) == ("a", ("B2", "B4"), np.float32)
    assert np.array_equal(a.truth, np.eye(40, 70))
    assert b.image.shape == (2, 33, 20)
    assert (b.truth[:5, :5] == 255).all()
    assert (b.truth == 0).sum() == 33 * 20 - 25
    assert open_patches(chips).bands == ("B4", "B3", "B2")


def test_chips_without_names_and_bytes_need_to_be_told(tmp_path: Path) -> None:
    for folder, count, value in (("images", 3, 90), ("masks", 1, 1)):
        (tmp_path / folder).mkdir()
        write_raster(tmp_path / folder / "x.png", np.full((count, 8, 8), value, np.uint8), crs=None, transform=None)
    with pytest.raises(InputError, match="does not say which bands"):
        open_patches(tmp_path)
    with pytest.raises(InputError, match=r"x\.png has 3 bands, but --bands names 2"):
        open_patches(tmp_path, names=("B4", "B3"))
    with pytest.raises(InputError, match="no band B40"):
        open_patches(tmp_path, names=("B40", "B3", "B2"))
    with pytest.raises(InputError, match="--units byte"):
        open_patches(tmp_path, names=RGB)[0]
    assert open_patches(tmp_path, names=RGB, units="byte")[0].image.max() == 90


def test_reflectance_chips_become_digital_numbers(chips: Path) -> None:
    write_raster(chips / "images" / "a.tif", np.full((3, 40, 70), 0.05, np.float32), names=RGB)
    with pytest.raises(InputError, match="--units reflectance"):
        open_patches(chips)[0]
    assert open_patches(chips, units="reflectance")[0].image[0, 0, 0] == pytest.approx(500)


def test_chips_that_do_not_fit_are_refused(chips: Path) -> None:
    with pytest.raises(InputError, match=r"a\.tif has no B8; its bands are B4, B3, B2"):
        open_patches(chips, ("B8",))[0]
    write_raster(chips / "masks" / "b.tif", np.zeros((20, 33), np.uint8))
    with pytest.raises(InputError, match=r"b\.tif has 33 x 20 pixels, its image b\.tif has 20 x 33"):
        open_patches(chips)[1]
    (chips / "masks" / "b.tif").unlink()
    with pytest.raises(InputError, match=r"b\.tif without mask"):
        open_patches(chips)
    write_raster(chips / "images" / "a.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match=r"both a\.png and a\.tif"):
        open_patches(chips)


# --- mosaic -------------------------------------------------------------------------------------------------


@given(st.integers(1, COUNTS["train"]))
def test_every_training_patch_has_its_own_place(number: int) -> None:
    where = place(number)
    region = where.region
    assert 0 <= where.row < region.rows
    assert 0 <= where.column < region.columns
    assert region.first + where.row * region.columns + where.column == number


def test_regions_are_the_whole_training_set() -> None:
    assert [(r.name, r.first, r.first + r.size - 1) for r in REGIONS] == [
        ("taitung", 1, 3034),
        ("hokkaido", 3035, 3184),
        ("rasuwa", 3185, 3305),
        ("kodagu", 3306, 3799),
    ]


def test_mosaic_puts_patches_and_masks_in_their_place(tmp_path: Path) -> None:
    put(tmp_path / "in", 3306, mask=half())
    put(tmp_path / "in", 3306 + 26 + 2)
    put(tmp_path / "in", 3035, mask=half())
    made = mosaic(tmp_path / "in", tmp_path / "out", Silent())
    assert {n: (m.patches, m.labelled) for n, m in made.items()} == {"hokkaido": (1, 1), "kodagu": (2, 1)}
    with (
        rasterio.open(tmp_path / "out/kodagu/image.tif") as image,
        rasterio.open(tmp_path / "out/kodagu/labels.tif") as labels,
    ):
        assert image.shape == labels.shape == (19 * 128, 26 * 128)
        assert image.descriptions == L4S_BANDS
        assert "nominal" in image.tags()["POSITION"]
        assert np.array_equal(image.read(window=Window(0, 0, 128, 128)), raw(3306))
        assert np.array_equal(image.read(window=Window(256, 128, 128, 128)), raw(3306 + 28))
        assert image.dataset_mask().astype(bool).sum() == 2 * 128 * 128
        assert np.array_equal(labels.read(1, window=Window(0, 0, 128, 128)), half())
        assert (labels.read(1) != 255).sum() == 128 * 128
    assert (tmp_path / "out/kodagu/image.tif").stat().st_size < 2e6  # holes take no space
    with rasterio.open(tmp_path / "out/hokkaido/image.tif") as image:
        assert "fitted" in image.tags()["POSITION"]


def test_training_reads_a_mosaic_with_its_slope(tmp_path: Path) -> None:
    put(tmp_path / "in", 3185, mask=half())
    mosaic(tmp_path / "in", tmp_path / "out", Silent())
    area = load_area(str(tmp_path / "out/rasuwa"), ("B4", "slope"), compression="asinh", resolution=10.0)
    assert area.name == "rasuwa"
    assert area.valid.sum() == area.labelled == 128 * 128  # flat land is no hole
    assert np.array_equal(area.image[:, :128, :128], raw(3185)[[3, 12]])
    assert np.array_equal(area.truth[:128, :128], half())


@needs_data
def test_mosaic_of_real_patches_is_the_scene_that_they_came_from(tmp_path: Path) -> None:
    numbers = (1, 2, 42, 3050, 3190)
    for number in numbers:
        where = place(number)
        window = Window(where.column * 128, where.row * 128, 128, 128)
        image = np.ones((14, 128, 128), np.float32)
        with rasterio.open(DATA / "l4s_scenes" / where.region.name / "rgb.tif") as f:
            image[[3, 2, 1]] = f.read(window=window)
        with rasterio.open(DATA / "l4s_scenes" / where.region.name / "labels.tif") as f:
            put(tmp_path / "in", number, image, f.read(1, window=window))
    made = mosaic(tmp_path / "in", tmp_path / "out", Silent())
    assert {n: m.patches for n, m in made.items()} == {"taitung": 3, "hokkaido": 1, "rasuwa": 1}
    for number in numbers:
        where = place(number)
        window = Window(where.column * 128, where.row * 128, 128, 128)
        for file, bands in (("image.tif", [4, 3, 2]), ("labels.tif", [1])):
            old = DATA / "l4s_scenes" / where.region.name / file.replace("image", "rgb")
            with rasterio.open(tmp_path / "out" / where.region.name / file) as a, rasterio.open(old) as b:
                assert (a.crs, a.transform) == (b.crs, b.transform)
                assert np.array_equal(a.read(bands, window=window), b.read(window=window))


def test_mosaic_command(tmp_path: Path) -> None:
    put(tmp_path / "in", 3185, mask=half())
    done = run("data", "mosaic", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rasuwa"]["patches"] == 1
    again = run("data", "mosaic", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    refused(again, "out", "not empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: put(f, 3800), ("image_3800.h5", "3799 training")),
        (lambda f: (put(f, 3190), truncated(f)), ("image_1.h5", "cannot be read")),
        (lambda f: put(f, 1, split="test"), ("no train images",)),
        (lambda f: None, ("no folder",)),
        (lambda f: f.mkdir(), ("no Landslide4Sense training patches",)),
    ],
)
def test_a_mosaic_that_fails_leaves_nothing(make: Callable[[Path], Any], said: tuple[str, ...], tmp_path: Path) -> None:
    make(tmp_path / "in")
    refused(run("data", "mosaic", str(tmp_path / "in"), "--out", str(tmp_path / "out")), *said)
    assert {p.name for p in tmp_path.iterdir()} <= {"in"}


def test_patches_of_other_splits_are_no_mosaic(tmp_path: Path) -> None:
    put(tmp_path, 1, split="validation")
    for folder in ("ValidData", "ValidData/img"):
        refused(run("data", "mosaic", str(tmp_path / folder), "--out", str(tmp_path / "out")), "validation patches")


# --- synthetic ----------------------------------------------------------------------------------------------


def test_synthetic_patches_are_a_data_set(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        done = run("data", "synth", "--out", str(tmp_path / layout), "--count", "2", "--layout", layout, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["patches"] == {"train": 2, "validation": 1, "test": 1}
    old, new = (tmp_path / layout for layout in ("traindata", "images"))
    for split in COUNTS:
        images, masks = (LAYOUTS["images"][split][i] for i in (0, 1))
        one = (new / images / "image_1.h5").read_bytes()
        assert one == (old / LAYOUTS["traindata"][split][0] / "image_1.h5").read_bytes()  # equal seeds
        assert (new / masks / "mask_1.h5").is_file()
        assert (old / LAYOUTS["traindata"][split][1]).is_dir() == (split == "train")
    patches = open_patches(new)
    assert len(patches) == 2
    assert all(p.valid.all() for p in patches)
    assert not any(np.array_equal(p.image, open_patches(new, split="test")[0].image) for p in patches)


# --- download -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a small data set that a hub at hand would give; checksums are compared as for the real one."""
    folder = tmp_path / "hub"
    for split in COUNTS:
        images, masks = (folder / part for part in LAYOUTS["images"][split])
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number in (1, 2):
            (images / f"image_{number}.h5").write_bytes(encode_image(raw(number)))
            (masks / f"mask_{number}.h5").write_bytes(encode_mask(half()))

    class Api(huggingface_hub.HfApi):
        def dataset_info(self, *args: Any, **how: Any) -> Any:
            return SimpleNamespace(sha="0" * 40)

        def list_repo_tree(self, *args: Any, **how: Any) -> Iterator[RepoFile]:
            for path in (p for p in folder.rglob("*") if p.is_file()):
                data = path.read_bytes()
                name = path.relative_to(folder).as_posix()
                yield RepoFile(path=name, size=len(data), oid=git_hash(data), type="file")

    def snapshot_download(repo_id: str, *, repo_type: str, revision: str, local_dir: Path, etag_timeout: float) -> str:
        assert (repo_id, repo_type) == ("ibm-nasa-geospatial/Landslide4sense", "dataset")
        return str(shutil.copytree(folder, local_dir, dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(download, "COUNTS", dict.fromkeys(COUNTS, 2))
    return folder


def test_download_gets_checks_and_counts(hub: Path, tmp_path: Path) -> None:
    done = run("data", "l4s", "--out", str(tmp_path / "out"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["splits"] == {split: {"images": 2, "masks": 2} for split in COUNTS}
    assert len(open_patches(tmp_path / "out")) == 2


def test_a_download_that_lacks_patches_is_refused(hub: Path, tmp_path: Path) -> None:
    for path in ("images/test/image_2.h5", "annotations/test/mask_2.h5"):
        (hub / path).unlink()
    refused(run("data", "l4s", "--out", str(tmp_path / "out")), "1 of 2 test")


def test_a_damaged_file_is_found_by_its_checksum(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(*args: Any, local_dir: Path, **how: Any) -> None:
        shutil.copytree(hub, local_dir)
        (local_dir / "images/train/image_2.h5").write_bytes(b"damaged")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", damage)
    refused(run("data", "l4s", "--out", str(tmp_path / "out")), "checksum", "images/train/image_2.h5")


def test_without_connection_it_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **how: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    refused(run("data", "l4s", "--out", str(tmp_path / "out")), "no route to the hub", "By hand", "same command again")
    assert not list(tmp_path.iterdir())


def test_read_image_refuses_text(tmp_path: Path) -> None:
    (tmp_path / "image_1.h5").write_bytes(encode("img", np.full((128, 128, 14), b"x")))
    with pytest.raises(InputError, match="not numbers"):
        read_image(tmp_path / "image_1.h5")
