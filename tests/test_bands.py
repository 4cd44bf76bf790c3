from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4s_geo.scene.bands import L4S_BANDS, L4S_MEAN, S2_BANDS, TERRAIN_BANDS, parse_band


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("B4", "B4"),
        ("b04", "B4"),
        ("B10", "B10"),
        ("B01", "B1"),
        ("B8", "B8"),
        ("B08", "B8"),
        ("B8A", "B8A"),
        ("b8a", "B8A"),
        ("B08A", "B8A"),
        ("B04.tif", "B4"),
        ("post_B4.tif", "B4"),
        ("T54TWN_20180911T012659_B02.jp2", "B2"),
        ("T54TWN_20180911T012659_B8A_20m.jp2", "B8A"),
        ("S2A_MSIL2A_20170613T101031_87_48_B12.tif", "B12"),
        ("2018-09-11-00:00_2018-09-11-23:59_Sentinel-2_L1C_B03_(Raw).tiff", "B3"),
        ("/data/B11/scene_B2.tif", "B2"),
        ("C:\\data\\dem\\B2.tif", "B2"),
        ("B4 (Red)", "B4"),
        ("red", "B4"),
        ("Green", "B3"),
        ("BLUE", "B2"),
        ("nir", "B8"),
        ("slope.tif", "slope"),
        ("alos_dsm_30m.tif", "dem"),
        ("DEM", "dem"),
    ],
)
def test_names_that_are_clear(text: str, band: str) -> None:
    assert parse_band(text) == band


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Band 1",
        "B",
        "B0",
        "B13",
        "B20m",
        "B4B3",
        "rgb_B4_B3_B2.tif",
        "TCI",
        "TCI_R",
        "Red Edge 1",
        "narrow nir",
        "infrared",
        "redwood",
        "S2B_MSIL1C_20170613T101031.tif",
        "labels.tif",
        "slope_of_dem.tif",
        "/B4/scene.tif",
        "QA60",
    ],
)
def test_names_that_are_no_band_or_more_than_one(text: str) -> None:
    assert parse_band(text) is None


@given(st.sampled_from([*S2_BANDS, *TERRAIN_BANDS]), st.booleans(), st.sampled_from(["", "post_", "x/y-"]))
def test_every_name_is_its_own_whatever_the_case_or_the_folder(band: str, upper: bool, before: str) -> None:
    text = before + (band.upper() if upper else band.lower()) + ".tif"
    assert parse_band(text) == band


def test_contract_of_the_data_set() -> None:
    assert L4S_BANDS[:9] == ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9")
    assert L4S_BANDS[9:] == ("B10", "B11", "B12", "slope", "dem")
    assert "B8A" not in L4S_BANDS
    mean = dict(zip(L4S_BANDS, L4S_MEAN, strict=True))
    assert mean["B4"] == 445.17289745
    assert mean["dem"] == 772.83144788
