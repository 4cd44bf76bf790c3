"""Sentinel-2 products, written true to format: names, folders, metadata and JPEG 2000 as ESA gives them out."""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from rasterio.windows import Window

from l4s_geo.cli import main
from l4s_geo.errors import InputError
from l4s_geo.pipeline import map_scene
from l4s_geo.progress import Silent
from l4s_geo.scene import S2_BANDS, Scene, archive, open_scene, source
from l4s_geo.scene.archive import parse_xml
from l4s_geo.scene.safe import IMAGE, UNSEEN
from l4s_geo.scene.units import Radiometry

from .conftest import write_raster
from .test_pipeline import model, options  # noqa: F401 (a fixture)

#: Pixels along a side at 10 m. All resolutions divide it.
SIZE = 120

#: Every band has a level of its own, so that one in place of another shows.
LEVELS = {band: 1400 + 100 * i for i, band in enumerate(S2_BANDS)}

#: Resolutions that IMG_DATA holds, in metres: one a band in Level-1C, several in Level-2A since baseline 04.00.
METRES = dict.fromkeys(("B2", "B3", "B4", "B8"), 10)
METRES |= dict.fromkeys(("B5", "B6", "B7", "B8A", "B11", "B12"), 20) | dict.fromkeys(("B1", "B9", "B10"), 60)
TRUE_METRES = METRES
COPIES = {10: ("B2", "B3", "B4", "B8"), 20: ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B11", "B12")}
COPIES[60] = (*COPIES[20], "B9")

CORNER = Affine(10, 0, 499980, 0, -10, 4800000)


@dataclass
class Recipe:
    """What to write; the rest follows from it."""

    level: str = "L1C"
    baseline: str = "02.06"
    offsets: Mapping[str, float] | None = None
    quantification: float = 10000
    images: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    scl: NDArray[np.uint8] | None = None

    @property
    def name(self) -> str:
        number = self.baseline.replace(".", "")
        return f"S2A_MSI{self.level}_20180911T012701_N{number}_R074_T54TWN_20180911T031213.SAFE"


def newer(level: str, **changes: Any) -> Recipe:
    """A product of baseline 05.09, whose numbers have the offset."""
    return Recipe(level, "05.09", dict.fromkeys(S2_BANDS, -1000.0), **changes)


def older(level: str, **changes: Any) -> Recipe:
    return Recipe(level, "02.06", **changes)


def write_jp2(path: Path, values: NDArray[np.generic], metres: int) -> None:
    """Lossless JPEG 2000, georeferenced like that of a tile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES", crs="EPSG:32654",
        transform=CORNER * Affine.scale(metres / 10), count=1, width=width, height=height, dtype=values.dtype,
    ) as image:  # fmt: skip
        image.write(values, 1)


def metadata(recipe: Recipe) -> str:
    """The parts of MTD_MSI*.xml that matter, where they are in real ones."""
    offset, listed = {
        "L1C": ("RADIO_ADD_OFFSET", "Radiometric_Offset_List"),
        "L2A": ("BOA_ADD_OFFSET", "BOA_ADD_OFFSET_VALUES_LIST"),
    }[recipe.level]
    entries = "".join(
        f'<{offset} band_id="{S2_BANDS.index(band)}">{value:g}</{offset}>'
        for band, value in (recipe.offsets or {}).items()
    )
    q = recipe.quantification
    quantification = f'<QUANTIFICATION_VALUE unit="none">{q:g}</QUANTIFICATION_VALUE>'
    if recipe.level == "L2A":
        tag = "BOA_QUANTIFICATION_VALUE" if recipe.baseline >= "02.07" else "L2A_BOA_QUANTIFICATION_VALUE"
        quantification = f'<QUANTIFICATION_VALUES_LIST><{tag} unit="none">{q:g}</{tag}>'
        quantification += '<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>'
        quantification += "</QUANTIFICATION_VALUES_LIST>"
    number = recipe.level[1:]
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{number}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{number}.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>2018-09-11T01:27:01.024Z</PRODUCT_START_TIME>
      <PRODUCT_STOP_TIME>2018-09-11T01:27:01.024Z</PRODUCT_STOP_TIME>
      <PRODUCT_URI>{recipe.name}</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-{number}</PROCESSING_LEVEL>
      <PROCESSING_BASELINE>{recipe.baseline}</PROCESSING_BASELINE>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
      {quantification}
      {f"<{listed}>{entries}</{listed}>" if entries else ""}
    </Product_Image_Characteristics>
  </n1:General_Info>
</n1:Level-{number}_User_Product>
"""


def write_safe(folder: Path, recipe: Recipe) -> Path:
    """A SAFE folder with all that it has in reality, as far as a reader could stumble over it."""
    root = folder / recipe.name
    granule = root / "GRANULE" / f"{recipe.level}_T54TWN_A016819_20180911T012659"
    tile = "T54TWN_20180911T012701"
    two_digits = {band: f"B{band[1:]:0>2}" for band in S2_BANDS}
    picture = np.full((SIZE // 2, SIZE // 2), 77, np.uint8)

    def image(band: str, metres: int) -> NDArray[np.generic]:
        n = SIZE * 10 // metres
        # in copies at other resolutions the level is another one, so that it shows which was read
        base = LEVELS[band] + 3 * metres if metres != TRUE_METRES[band] else LEVELS[band]
        return (
            recipe.images.get(band, np.full((n, n), base, np.uint16))
            if metres == TRUE_METRES[band]
            else np.full((n, n), base, np.uint16)
        )

    if recipe.level == "L1C":
        for band, metres in METRES.items():
            write_jp2(granule / f"IMG_DATA/{tile}_{two_digits[band]}.jp2", image(band, metres), metres)
        write_jp2(granule / f"IMG_DATA/{tile}_TCI.jp2", picture, 20)
    else:
        old = recipe.baseline < "02.07"
        before = "L2A_" if old else ""
        for metres, bands in COPIES.items():
            where = granule / f"IMG_DATA/R{metres}m"
            for band in bands:
                if not (old and band == "B1" and metres == 20):  # from baseline 04.00 on
                    path = where / f"{before}{tile}_{two_digits[band]}_{metres}m.jp2"
                    write_jp2(path, image(band, metres), metres)
            for what in ("TCI", "AOT", "WVP"):
                write_jp2(where / f"{before}{tile}_{what}_{metres}m.jp2", picture, metres)
            if metres > 10:
                n = SIZE * 10 // metres
                wrong = np.full((n, n), 9, np.uint8)
                clear = np.full((n, n), 5, np.uint8) if recipe.scl is None else recipe.scl
                write_jp2(where / f"{before}{tile}_SCL_{metres}m.jp2", clear if metres == 20 else wrong, metres)
        write_jp2(granule / "QI_DATA/MSK_CLDPRB_20m.jp2", picture, 20)
    write_jp2(granule / f"QI_DATA/{tile}_PVI.jp2", picture, 20)
    (granule / "MTD_TL.xml").write_text("<n1:Tile_ID/>")
    (root / "DATASTRIP/DS_SGS__20180911T031213_S20180911T012659").mkdir(parents=True)
    (root / "DATASTRIP/DS_SGS__20180911T031213_S20180911T012659/MTD_DS.xml").write_text("<n1:Datastrip_ID/>")
    for name in (
        "manifest.safe",
        "INSPIRE.xml",
        "HTML/UserProduct_index.html",
        "rep_info/x.xsd",
        "AUX_DATA/AUX_ECMWFT",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("<xfdu/>")
    (root / f"MTD_MSI{recipe.level}.xml").write_text(metadata(recipe))
    return root


def zipped(root: Path, to: Path | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """The folder in a zip, folders as members of their own, as downloads have them."""
    path = to or root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member in [root, *sorted(root.rglob("*"))]:
            archive.write(member, member.relative_to(root.parent).as_posix())
    return path


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One product of each kind; nobody writes to them."""
    kinds = {"old L1C": older("L1C"), "new L1C": newer("L1C"), "old L2A": older("L2A"), "new L2A": newer("L2A")}
    return {kind: write_safe(tmp_path_factory.mktemp("safe"), recipe) for kind, recipe in kinds.items()}


@pytest.fixture
def product(tmp_path: Path) -> Callable[..., Path]:
    """Writes a product into the test's own folder."""
    return lambda recipe: write_safe(tmp_path, recipe)


def changed(path: Path, **texts: str) -> Path:
    """The same product with ``_old`` replaced by ``_new`` in its metadata."""
    file = next(path.glob("MTD_MSI*.xml"))
    text = file.read_text()
    assert texts["old"] in text
    file.write_text(text.replace(texts["old"], texts["new"]))
    return path


def copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copytree(path, folder / path.name))


def band(path: Path, what: str) -> Path:
    return next(path.glob(f"GRANULE/*/IMG_DATA/**/*_{what}*.jp2"))


def whole(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return scene.read(scene.grid.window())


def spectral(scene: Scene) -> dict[str, float]:
    """Level of every band, which has to be the same all over."""
    image, valid = whole(scene)
    assert valid.all()
    for values in image:
        assert_allclose(values, values[0, 0], atol=0.5)
    return {name: round(float(values[0, 0])) for name, values in zip(scene.bands, image, strict=True)}


# --- right bands, in the right resolution, with the right numbers ---------------------------------------


@pytest.mark.parametrize("kind", ["old L1C", "new L1C", "old L2A", "new L2A"])
@pytest.mark.parametrize("how", ["folder", "metadata", "zip", "deflated zip"])
def test_products_are_read_where_they_are(kind: str, how: str, products: dict[str, Path], tmp_path: Path) -> None:
    root, level = products[kind], kind[-3:]
    odd = tmp_path / "folder.zip"
    odd.mkdir()
    path = {
        "folder": lambda: root,
        "metadata": lambda: root / f"MTD_MSI{level}.xml",
        "zip": lambda: zipped(root, odd / "any name, {really}.zip"),
        "deflated zip": lambda: zipped(root, tmp_path / "d.zip", zipfile.ZIP_DEFLATED),
    }[how]()
    before = sorted(root.rglob("*")), sorted(tmp_path.rglob("*"))
    with open_scene(path) as scene:
        offset = 1000 if kind.startswith("new") else 0
        assert spectral(scene) == {b: v - offset for b, v in LEVELS.items() if b in scene.bands} | _coarse(kind, offset)
        assert scene.bands == tuple(b for b in S2_BANDS if b != "B10" or level == "L1C")
        assert (scene.grid.shape, scene.grid.transform) == ((SIZE, SIZE), CORNER)
        assert (scene.name, scene.date, scene.level) == (root.stem, "2018-09-11", level)
        assert f"Sentinel-2 {level} product, processing baseline {'05.09' if offset else '02.06'}" in scene.notes
        assert any("-1000 added" in note for note in scene.notes) is bool(offset)
        assert not any("not in the product" in note for note in scene.notes)
        assert scene.paths
        assert all(Path(p).is_file() for p in scene.paths)
        if "zip" in how:
            assert scene.paths == (str(path),)
        else:
            assert str(root / f"MTD_MSI{level}.xml") in scene.paths
    assert (sorted(root.rglob("*")), sorted(tmp_path.rglob("*"))) == before


def _coarse(kind: str, offset: int) -> dict[str, float]:
    """Level-2A has had B1 at 20 m since baseline 04.00, a copy by the levels of these tests."""
    return {"B1": LEVELS["B1"] + 60 - offset} if kind == "new L2A" else {}


def test_pixels_stay_in_their_places(product: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    fine = rng.integers(1001, 5000, (SIZE, SIZE)).astype(np.uint16)
    coarse = np.repeat(np.where(np.arange(SIZE // 2) < 30, 2000, 4000)[None], SIZE // 2, axis=0).astype(np.uint16)
    with open_scene(product(newer("L2A", images={"B4": fine, "B11": coarse}))) as scene:
        image, valid = scene.read(Window(7, 11, 60, 50), ["B4", "B11"])
    assert valid.all()
    assert_array_equal(image[0], fine[11:61, 7:67] - 1000.0)
    assert_allclose(image[1][:, : 60 - 7 - 4], 1000, atol=1)
    assert_allclose(image[1][:, 60 - 7 + 4 :], 3000, atol=1)


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_offsets_go_by_band_and_only_once(level: str, product: Callable[..., Path]) -> None:
    offsets = {b: -1000.0 - i for i, b in enumerate(S2_BANDS)}
    root = product(Recipe(level, "05.09", offsets, quantification=5000))
    with open_scene(root) as scene:
        image, _ = whole(scene)
        stored = {b: LEVELS[b] + (60 if (level, b) == ("L2A", "B1") else 0) for b in scene.bands}
        assert_allclose(image[:, 3, 3], [2 * (stored[b] + offsets[b]) for b in scene.bands], atol=0.01)
        assert any("-1003 in B4" in note for note in scene.notes)
        # read again, it is the same
        assert_array_equal(whole(scene)[0], image)


def test_zero_is_nodata_before_the_offset_and_saturated_is_valid(product: Callable[..., Path]) -> None:
    red = np.full((SIZE, SIZE), 1500, np.uint16)
    red[0, :6] = 0, 1, 999, 1000, 1001, 65535
    with open_scene(product(newer("L1C", images={"B4": red})), wanted=["B4"]) as scene:
        image, valid = whole(scene)
    assert_array_equal(valid[0, :6], [False, True, True, True, True, True])
    assert_array_equal(image[0, 0, :6], [0, 0, 0, 0, 1, 64535])
    assert valid.sum() == SIZE * SIZE - 1


@given(
    stored=st.floats(0, 65535, width=32),
    offset=st.floats(-2000, 2000, width=16),
    quantification=st.sampled_from([1.0, 5000.0, 10000.0]),
)
def test_radiometry_is_what_the_specification_says(stored: float, offset: float, quantification: float) -> None:
    found = Radiometry(quantification, {"B4": offset})("B4", np.full((1, 1), stored, np.float32))
    expected = (stored + offset) / quantification * 10000
    assert found.dtype == np.float32
    assert_allclose(found, max(expected, 0) if offset else expected, rtol=1e-5, atol=1e-2)
    other = np.full((1, 1), stored, np.float32)
    assert_array_equal(Radiometry(10000.0, {"B4": offset})("B3", other), other)


# --- --s2-offset ----------------------------------------------------------------------------------------


def test_an_offset_can_be_left_in(products: dict[str, Path]) -> None:
    with open_scene(products["new L1C"], s2_offset="0") as scene:
        assert spectral(scene)["B4"] == LEVELS["B4"]
        assert any("--s2-offset 0" in note and "-1000" in note for note in scene.notes)


def test_asked_for_the_offset_of_the_metadata_is_still_added_once(products: dict[str, Path]) -> None:
    with open_scene(products["new L1C"], s2_offset="-1000") as scene:
        assert spectral(scene)["B4"] == LEVELS["B4"] - 1000


def test_files_without_metadata(tmp_path: Path, products: dict[str, Path]) -> None:
    pixels = np.random.default_rng(0).integers(1050, 4000, (3, 50, 50)).astype(np.uint16)
    pixels[:, 0, 0] = 0
    path = write_raster(tmp_path / "s.tif", pixels, names=["B4", "B3", "B2"])
    dem = write_raster(tmp_path / "dem.tif", np.full((50, 50), 300, np.int16))
    with open_scene(path) as scene:
        assert_array_equal(whole(scene)[0], pixels)
    with open_scene(path, dem=dem, s2_offset="-1000") as scene:
        image, valid = whole(scene)
        assert valid.sum() == 2499
        assert_array_equal(image[:3, valid], pixels[:, valid] - 1000.0)
        assert (image[4, valid] == 300).all()
        assert any("-1000 added" in note for note in scene.notes)
    with open_scene(band(products["new L2A"], "B02_10m").parent, s2_offset="-1000") as scene:
        assert spectral(scene)["B4"] == LEVELS["B4"] - 1000


def test_an_offset_that_is_not_in_the_numbers_is_refused(tmp_path: Path, products: dict[str, Path]) -> None:
    dark = np.random.default_rng(0).integers(300, 900, (3, 200, 200)).astype(np.uint16)
    dark[:, :70, :70] = 6000  # a cloud, in what is looked at first
    path = write_raster(tmp_path / "s.tif", dark, names=["B4", "B3", "B2"])
    with pytest.raises(InputError, match=r"medians are .* in B2.*taken off already.*Leave --s2-offset out"):
        open_scene(path, s2_offset="-1000")
    share = write_raster(tmp_path / "r.tif", dark / 10000, names=["B4", "B3", "B2"])
    with pytest.raises(InputError, match="taken as reflectance"):
        open_scene(share, units="reflectance", s2_offset="-1000")
    with pytest.raises(InputError, match="taken as byte"):
        open_scene(products["new L1C"], units="byte")
    with pytest.raises(InputError, match=r"Unknown offset '1000'"):
        open_scene(path, s2_offset="1000")


def test_metadata_that_should_have_an_offset_but_do_not(product: Callable[..., Path]) -> None:
    root = product(Recipe("L1C", "04.00"))
    with pytest.raises(InputError, match=r"baseline 04.00.*RADIO_ADD_OFFSET.*--s2-offset"):
        open_scene(root)
    for asked, level in (("0", LEVELS["B4"]), ("-1000", LEVELS["B4"] - 1000)):
        with open_scene(root, s2_offset=asked) as scene:
            assert spectral(scene)["B4"] == level
    with open_scene(changed(root, old=">04.00<", new=">99.99<")) as scene:  # made with Sen2Cor at home
        assert spectral(scene)["B4"] == LEVELS["B4"]


# --- scene classification -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["folder", "zip"])
def test_clouds_and_shadows_are_not_valid(how: str, product: Callable[..., Path]) -> None:
    """Twelve classes in columns of five 20 m pixels; the copy at 60 m says cloud everywhere."""
    classes = np.repeat(np.repeat(np.arange(12, dtype=np.uint8), 5)[None], SIZE // 2, axis=0)
    root = product(newer("L2A", scl=classes))
    path = zipped(root) if how == "zip" else root
    seen = np.repeat(~np.isin(np.arange(12), (0, 1, 3, 8, 9, 10, 11)), 10)
    with open_scene(path) as scene:
        image, valid = scene.read(scene.grid.window(), ["B4"])
        assert_array_equal(valid, np.broadcast_to(seen, (SIZE, SIZE)))
        assert_array_equal(image[0], np.where(valid, LEVELS["B4"] - 1000, 0))
        assert_array_equal(scene.read(Window(13, 30, 50, 21))[1], valid[30:51, 13:63])
        assert any("scene classification" in note for note in scene.notes)
        assert "SCL" not in scene.bands
    with open_scene(path, scl=False) as scene:
        assert whole(scene)[1].all()
        assert not any("scene classification" in note for note in scene.notes)
    assert set(UNSEEN) == {0, 1, 3, 8, 9, 10, 11}


def test_a_product_that_is_all_cloud_is_refused(product: Callable[..., Path]) -> None:
    root = product(newer("L2A", scl=np.full((SIZE // 2, SIZE // 2), 9, np.uint8)))
    with pytest.raises(InputError, match=r"no pixel that is valid"):
        open_scene(root)


# --- parts of products ----------------------------------------------------------------------------------


def test_only_the_bands_that_are_wanted_are_read(product: Callable[..., Path]) -> None:
    """A damaged band, or one without data, does no harm to a model that does not see it."""
    empty = np.zeros((SIZE // 6, SIZE // 6), np.uint16)
    root = product(newer("L1C", images={"B10": empty}))
    with pytest.raises(InputError, match="no pixel that is valid"):
        open_scene(root)
    with open_scene(root, wanted=["B4", "B3", "B2"]) as scene:
        assert spectral(scene) == {b: LEVELS[b] - 1000 for b in ("B2", "B3", "B4")}
    with open_scene(root, wanted=["B11"]) as scene:  # and the grid is still that of 10 m
        assert scene.grid.shape == (SIZE, SIZE)
    with pytest.raises(InputError, match="no pixel that is valid"):  # with one that there is not, all
        open_scene(root, wanted=["B4", "dem2"])


def test_terrain_is_read_whatever_is_wanted(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(300, 900, (4, 20, 20)).astype(np.int16)
    bands[3] %= 90
    path = write_raster(tmp_path / "s.tif", bands, names=["B4", "B8", "dem", "slope"])
    with open_scene(path, wanted=["B4"]) as scene:
        assert scene.bands == ("B4", "slope", "dem")
        assert_array_equal(whole(scene)[0], bands[[0, 3, 2]])


def test_bands_that_were_not_downloaded_are_said(products: dict[str, Path], tmp_path: Path) -> None:
    root = copied(products["new L2A"], tmp_path)
    for metres in (20, 60):
        shutil.rmtree(next(root.glob(f"GRANULE/*/IMG_DATA/R{metres}m")))
    with open_scene(root) as scene:
        assert scene.bands == ("B2", "B3", "B4", "B8")
        assert any("not in the product: B1, B5" in note and "B10" not in note for note in scene.notes)
    root = copied(products["new L1C"], tmp_path)
    band(root, "B10").unlink()
    with open_scene(root) as scene:
        assert any("not in the product: B10;" in note for note in scene.notes)


def test_bands_are_not_to_be_named(products: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="Leave --bands out"):
        open_scene(products["old L1C"], bands=["B4", "B3", "B2"])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("IMG_DATA/T54TWN_20180911T012701_B8A.jp2", "B8A"),
        ("IMG_DATA/R10m/T54TWN_20180911T012701_B02_10m.jp2", "B02"),
        ("IMG_DATA/R20m/L2A_T54TWN_20180911T012701_SCL_20m.jp2", "SCL"),
        ("IMG_DATA/T54TWN_20180911T012701_TCI.jp2", None),
        ("IMG_DATA/R10m/T54TWN_20180911T012701_AOT_10m.jp2", None),
        ("IMG_DATA/R10m/T54TWN_20180911T012701_WVP_10m.jp2", None),
        ("QI_DATA/T54TWN_20180911T012701_PVI.jp2", None),
        ("QI_DATA/T54TWN_20180911T012701_B02.jp2", None),
        ("IMG_DATA/T54TWN_20180911T012701_B02.jp2.aux.xml", None),
    ],
)
def test_which_images_are_bands(name: str, what: str | None) -> None:
    found = IMAGE.fullmatch(f"GRANULE/L1C_T54TWN_A016819_20180911T012659/{name}")
    assert (found and found["what"]) == what


# --- products that cannot be used -----------------------------------------------------------------------


def test_products_that_lack_what_they_need(products: dict[str, Path], tmp_path: Path) -> None:
    root = copied(products["new L1C"], tmp_path)
    other = root.parent / "other"
    shutil.copytree(next(root.glob("GRANULE/*")), root / "GRANULE/L1C_T54TWP_A016819_20180911T012659")
    with pytest.raises(InputError, match=r"2 granules \(L1C_T54TWN.*L1C_T54TWP.*the folder"):
        open_scene(root)
    shutil.rmtree(root / "GRANULE")
    with pytest.raises(InputError, match=r"holds no bands.*downloaded completely"):
        open_scene(root)
    (root / "MTD_MSIL2A.xml").write_text("<a/>")
    with pytest.raises(InputError, match=r"MTD_MSIL1C.xml and MTD_MSIL2A.xml|MTD_MSIL2A.xml and MTD_MSIL1C.xml"):
        open_scene(root)
    for file in root.glob("MTD*"):
        file.unlink()
    with pytest.raises(InputError, match=r"no MTD_MSIL1C.xml or MTD_MSIL2A.xml.*--s2-offset"):
        open_scene(root)
    assert not other.exists()


def test_images_that_are_damaged_or_none(products: dict[str, Path], tmp_path: Path) -> None:
    root = copied(products["new L1C"], tmp_path)
    red = band(root, "B04")
    content = red.read_bytes()
    red.write_bytes(content[:40])
    with pytest.raises(InputError, match=r"B04.jp2 cannot be opened.*complete"):
        open_scene(root)
    red.write_bytes(b"")
    with pytest.raises(InputError, match=r"B04.jp2 cannot be opened.*complete"):
        open_scene(root)
    red.write_bytes(content[: len(content) // 2] + b"\0" * (len(content) // 2))
    with pytest.raises(InputError, match=r"B04.jp2 cannot be (read|opened)"), open_scene(root, wanted=["B4"]) as scene:
        whole(scene)


def test_images_larger_than_any_tile_are_refused(products: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "SIDE", SIZE - 1)
    with pytest.raises(InputError, match=rf"1 bands of {SIZE} x {SIZE} pixels"):
        open_scene(products["old L1C"])


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_zip_cut_short(keep: float, products: dict[str, Path], tmp_path: Path) -> None:
    path = zipped(products["new L1C"], tmp_path / "p.zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(InputError, match=r"p.zip is damaged or was not downloaded completely.*again"):
        open_scene(path)


# --- products that are made to do harm ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../evil.jp2", "a/../../evil.jp2", "/etc/evil.jp2", "C:/evil.jp2", "..\\evil.jp2", "a\nb.jp2", "a\x1b[31m.jp2"],
)
def test_members_that_lead_out_of_the_zip(name: str, products: dict[str, Path], tmp_path: Path) -> None:
    path = zipped(products["new L1C"], tmp_path / "p.zip")
    with zipfile.ZipFile(path, "a") as zip_file:
        info = zipfile.ZipInfo("x")
        info.filename = info.orig_filename = name
        zip_file.writestr(info, b"evil")
    with pytest.raises(InputError, match=r"member named .*leads out of its folder or is no file name") as error:
        open_scene(path)
    assert str(error.value).isprintable()


def test_zips_that_are_no_product(products: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        zip_file.writestr("scene.tif", b"x")
    with pytest.raises(InputError, match=r"no MTD_MSIL1C.xml or MTD_MSIL2A.xml.*Unpack"):
        open_scene(path)
    zipped(products["new L1C"], path)
    with zipfile.ZipFile(path, "a") as zip_file:
        zip_file.writestr("S2B_second.SAFE/MTD_MSIL1C.xml", "<a/>")
    with pytest.raises(InputError, match=r"2 products \(S2A.*S2B_second.SAFE"):
        open_scene(path)
    zipped(products["new L1C"], path)
    with zipfile.ZipFile(path, "a") as zip_file, warnings.catch_warnings(action="ignore"):
        zip_file.writestr(f"{products['new L1C'].name}/MTD_MSIL1C.xml", "<other/>")
    with pytest.raises(InputError, match="members of the same name"):
        open_scene(path)
    zipped(products["new L1C"], path)
    monkeypatch.setattr(archive, "MEMBERS", 20)
    with pytest.raises(InputError, match=r"\d+ members, as no"):
        open_scene(path)


def test_an_encrypted_zip(products: dict[str, Path], tmp_path: Path) -> None:
    path = zipped(products["new L1C"], tmp_path / "p.zip")
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 8] |= 1
        at = content.find(b"PK\x01\x02", at + 1)
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"encrypted.*Unpack"):
        open_scene(path)


def test_metadata_that_unpack_to_gigabytes_are_never_unpacked(products: dict[str, Path], tmp_path: Path) -> None:
    """A bomb that says in the zip's directory that it is small: 16 MB of spaces, in 16 KB."""
    root = copied(products["new L1C"], tmp_path)
    (root / "MTD_MSIL1C.xml").write_bytes(b"<a>" + b" " * (16 << 20))
    path = zipped(root, tmp_path / "p.zip", zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="larger than 2 MB"):
        open_scene(path)
    with pytest.raises(InputError, match="larger than 2 MB"):
        open_scene(root)
    content = path.read_bytes()
    size = ((16 << 20) + 3).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(InputError):
        open_scene(path)


def test_images_that_would_unpack_to_gigabytes(
    products: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(products["new L1C"], tmp_path / "p.zip")
    monkeypatch.setattr(archive, "FILE_MAX", 1000)
    with pytest.raises(InputError, match=r"more than any file of a Sentinel-2 product"):
        open_scene(path)


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><a>&b;</a>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "document type declaration"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "document type declaration"),
        ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><a/>', "document type declaration"),
        ("<a>&x;</a>", "no XML"),
        ("<a>", "no XML"),
        ("", "no XML"),
        ("PK\x03\x04", "no XML"),
        ("<a/>", "no QUANTIFICATION_VALUE"),
        ("<a>" * 30_000 + "</a>" * 30_000, "no QUANTIFICATION_VALUE"),
    ],
)
def test_metadata_that_cannot_be_read(text: str, said: str, products: dict[str, Path], tmp_path: Path) -> None:
    root = copied(products["new L1C"], tmp_path)
    (root / "MTD_MSIL1C.xml").write_text(text)
    for path in (root, zipped(root, tmp_path / "p.zip")):
        with pytest.raises(InputError, match=said):
            open_scene(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('band_id="3"', 'band_id="13"', "band_id '13'"),
        ('band_id="3"', 'band_id="B4"', "band_id 'B4'"),
        ('<RADIO_ADD_OFFSET band_id="3">-1000</RADIO_ADD_OFFSET>', "", "not for B4"),
        ('band_id="3">-1000<', 'band_id="3">nan<', "RADIO_ADD_OFFSET 'nan'"),
        ('band_id="3">-1000<', 'band_id="3">1e30<', "RADIO_ADD_OFFSET '1e30'"),
        ('band_id="3">-1000<', 'band_id="3"><', "RADIO_ADD_OFFSET None"),
        (">10000<", ">0<", "QUANTIFICATION_VALUE 0"),
        (">10000<", ">many<", "QUANTIFICATION_VALUE 'many'"),
    ],
)
def test_numbers_that_cannot_be(old: str, new: str, said: str, products: dict[str, Path], tmp_path: Path) -> None:
    root = changed(copied(products["new L1C"], tmp_path), old=old, new=new)
    with pytest.raises(InputError, match=said):
        open_scene(root)


def test_an_image_that_is_no_jpeg_2000_is_not_opened(products: dict[str, Path], tmp_path: Path) -> None:
    """A VRT could read any file of this machine, or of others."""
    root = copied(products["new L1C"], tmp_path)
    secret = write_raster(tmp_path / "secret.tif", np.full((SIZE, SIZE), 4242, np.uint16), transform=CORNER)
    text = (
        f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>EPSG:32654</SRS>'
        "<GeoTransform>499980,10,0,4800000,0,-10</GeoTransform>"
        f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    red = band(root, "B04")
    original = red.read_bytes()
    red.write_text(text)
    with rasterio.open(red) as vrt:  # GDAL left to itself does
        assert vrt.read(1)[0, 0] == 4242
    for path in (root, zipped(root, tmp_path / "p.zip")):
        with pytest.raises(InputError, match=r"B04.jp2 cannot be opened"):
            open_scene(path)
    red.write_bytes(original)
    # nor are masks of any format beside it, or metadata
    write_raster(secret, np.zeros((SIZE, SIZE), np.uint8), transform=CORNER)
    red.with_name(red.name + ".msk").write_text(
        text.replace("<SRS>", '<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata><SRS>')
    )
    with rasterio.open(red) as left_to_itself:
        assert not left_to_itself.dataset_mask().any()
    red.with_name(red.name + ".aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>1700</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    with rasterio.open(red) as left_to_itself:
        assert left_to_itself.nodata == 1700
    for path in (root, zipped(root, tmp_path / "p.zip")):
        with open_scene(path) as scene:
            assert spectral(scene)["B4"] == LEVELS["B4"] - 1000 == 700


@given(st.binary(max_size=60) | st.text("<>!/&;ab\" =?'[]", max_size=40).map(str.encode))
def test_any_bytes_are_xml_or_refused(data: bytes) -> None:
    with suppress(InputError):
        assert parse_xml(data, "here").tag


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_zip_is_read_or_refused(data: st.DataObject, products: dict[str, Path], tmp_path: Path) -> None:
    """Whatever is wrong in the directory of a zip, it ends in a message for the user."""
    content = bytearray(small_zip(products))
    directory = content.find(b"PK\x01\x02")
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(directory, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "p.zip"
    path.write_bytes(bytes(content))
    with suppress(InputError):
        open_scene(path).close()


def small_zip(products: dict[str, Path]) -> bytes:
    """Metadata and three bands."""
    root, memory = products["new L1C"], io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as zip_file:
        for path in [root / "MTD_MSIL1C.xml", *(band(root, b) for b in ("B02", "B03", "B04"))]:
            zip_file.write(path, path.relative_to(root.parent).as_posix())
    return memory.getvalue()


# --- the commands ---------------------------------------------------------------------------------------


@pytest.fixture
def landslide(product: Callable[..., Path]) -> Path:
    """A Level-2A product with two landslides, one of them under a cloud."""
    rng = np.random.default_rng(1)
    images: dict[str, NDArray[np.generic]] = {}
    for name in ("B4", "B3", "B2"):
        image = rng.normal(1500, 50, (SIZE, SIZE)).clip(1300, 1640)
        image[20:40, 30:60] = image[80:100, 80:100] = 2200
        images[name] = image.astype(np.uint16)
    classes = np.full((SIZE // 2, SIZE // 2), 4, np.uint8)
    classes[38:52, 38:52] = 8
    return product(newer("L2A", images=images, scl=classes))


def test_a_product_is_mapped_from_folder_and_zip(landslide: Path, model: str, tmp_path: Path) -> None:  # noqa: F811
    for path in (landslide, zipped(landslide)):
        map_scene(options(path, model, tmp_path, overwrite=True), Silent())
        (found,) = gpd.read_file(tmp_path / "out.gpkg", layer="landslides").itertuples()
        assert found.geometry.bounds == (499980 + 300, 4800000 - 400, 499980 + 600, 4800000 - 200)
        assert (found.date, found.scene) == ("2018-09-11", landslide.stem)
        unseen = gpd.read_file(tmp_path / "out.gpkg", layer="not_seen")
        assert unseen.area_m2.sum() == pytest.approx(14 * 14 * 400, rel=1e-2)
        record = json.loads((tmp_path / "out.gpkg.json").read_text())
        assert any("-1000 added" in note for note in record["notes"])
        assert record["normalization"]["center"][0] == pytest.approx(500, abs=30)
    result = map_scene(options(landslide, model, tmp_path, overwrite=True, scl=False, s2_offset="0"), Silent())
    assert result.summary["landslides"] == 2
    assert any("--s2-offset 0" in note for note in result.summary["notes"])


def test_a_changed_zip_is_another_input(landslide: Path, model: str, tmp_path: Path) -> None:  # noqa: F811
    """What ``--resume`` compares is the zip on disk, not a name inside it."""
    from l4s_geo.journal import stamp

    path = zipped(landslide)
    with open_scene(path) as scene:
        before = [stamp(p) for p in scene.paths]
        zipped(landslide, path, zipfile.ZIP_DEFLATED)
        assert [stamp(p) for p in scene.paths] != before


def test_check_says_what_a_product_is(products: dict[str, Path], tmp_path: Path) -> None:
    path = zipped(products["new L2A"], tmp_path / "product.zip")
    done = CliRunner().invoke(main, ["check", str(path), "--json", "-q"])
    report = json.loads(done.stdout)
    assert (report["level"], report["date"], report["name"]) == ("L2A", "2018-09-11", products["new L2A"].stem)
    assert report["bands"] == [b for b in S2_BANDS if b != "B10"]
    assert any("-1000 added" in note for note in report["notes"])
    medians = {r["band"]: r["median"] for r in report["ranges"]}
    done = CliRunner().invoke(main, ["check", str(path), "--json", "-q", "--s2-offset", "0", "--no-scl"])
    report = json.loads(done.stdout)
    assert {r["band"]: r["median"] - 1000 for r in report["ranges"]} == medians
    assert not any("scene classification" in note for note in report["notes"])


def test_a_hostile_zip_ends_in_one_message(products: dict[str, Path], tmp_path: Path) -> None:
    root = copied(products["new L1C"], tmp_path)
    (root / "MTD_MSIL1C.xml").write_text(LAUGHS)
    path, out = zipped(root, tmp_path / "p.zip"), tmp_path / "out"
    out.mkdir()
    done = CliRunner().invoke(main, ["map", str(path), "--out", str(out / "o.gpkg"), "-q"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert "document type declaration" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.iterdir())
