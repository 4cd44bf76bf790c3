"""Where a Level-1C scene, which brings no classification, shows clouds: by brightness and by the cirrus band.

The test is that of the cloud masks inside Level-1C products (ESA, "Sentinel-2 MSI Technical Guide", Level-1C cloud
masks): what is bright in the blue is opaque cloud unless the short-wave infrared says snow, what is bright in B10 is
cirrus, and both masks are opened and widened. Their thresholds are those that Sen2Cor has by default (``T2_B02`` and
``T1_B10`` of its ``L2A_GIPP.xml``), for those of the products are not given out. Opaque clouds also have to be white,
by the whiteness of Zhu and Woodcock (2012, doi:10.1016/j.rse.2011.10.028), because fresh scars are bright too, but
yellow to red.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from l4s_geo.errors import InputError
from l4s_geo.scene.grid import Grid
from l4s_geo.scene.units import FULL
from l4s_geo.scene.warp import Pixels, clip

#: Bands that the test can use: for opaque clouds all three, for cirrus, and against snow.
VISIBLE, CIRRUS, SWIR = ("B4", "B3", "B2"), "B10", "B11"
BANDS = (*VISIBLE, CIRRUS, SWIR)

#: Reflectance in B2 from which on white ground is opaque cloud, and in B10 from which on there is cirrus.
OPAQUE, HIGH = 0.22, 0.012

#: Mean deviation of the visible bands from their mean, as a share of it and summed, that still is white. Zhu and
#: Woodcock's 0.7 calls most bare ground white. With 0.2 and the rim, none of the labelled landslide pixels of Hokkaido
#: and Rasuwa are hidden, and 1.2 % of those of Taitung, whose scars are the brightest.
WHITE = 0.2

#: Normalized difference snow index of B3 and B11 from which on there is snow (Dozier 1989,
#: doi:10.1016/0034-4257(89)90101-6).
SNOW = 0.4

#: Metres around clouds that are hidden too: a pixel of B10. Rims of clouds are thin.
RIM_M = 60.0

#: Pixels of the square that has to fit into a cloud: roofs and single boulders do not count.
SMALLEST = 3

#: Reflectance in B10 that some ground of every scene lies below: water vapour lets hardly any light from the ground
#: through.
GROUND = 0.05


class Readable(Protocol):
    """A scene."""

    grid: Grid
    bands: tuple[str, ...]

    def read(self, window: Window, bands: Sequence[str] | None = None) -> Pixels:
        """Digital numbers (C, h, w), and where they are valid (h, w)."""


class Cloudless:
    """Where no cloud hides the ground: a layer without bands, which says only what is valid.

    Args:
        scene: Of what the test needs, in digital numbers; where it is not valid there is no cloud.
    """

    names: tuple[str, ...] = ()

    def __init__(self, scene: Readable) -> None:
        self._scene, self._bands = scene, [b for b in BANDS if b in scene.bands]
        across = sum(scene.grid.pixel_size_m()) / 2
        self._rim = max(1, round(RIM_M / across))

    def read(self, window: Window) -> Pixels:
        """No bands (0, h, w), and where there is no cloud (h, w); the same whatever window a pixel is read in."""
        from scipy.ndimage import binary_opening, maximum_filter  # which most runs do without

        wide = clip(window, self._scene.grid, self._rim + SMALLEST - 1)
        image, valid = self._scene.read(wide, self._bands)
        found = valid & clouds(dict(zip(self._bands, image, strict=True)))
        hidden = maximum_filter(binary_opening(found, np.ones((SMALLEST, SMALLEST))), 2 * self._rim + 1)
        row, col = int(window.row_off - wide.row_off), int(window.col_off - wide.col_off)
        clear = ~hidden[row : row + int(window.height), col : col + int(window.width)]
        return np.empty((0, *clear.shape), np.float32), clear


def clouds(image: dict[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Pixels that look like cloud by themselves.

    Args:
        image: Digital numbers (h, w) of the bands in ``BANDS`` that are there: the visible ones, or B10, or both.

    Returns:
        (h, w) bool.
    """
    found = np.zeros(next(iter(image.values())).shape, np.bool_)
    if CIRRUS in image:
        found |= image[CIRRUS] > HIGH * FULL
    if {*VISIBLE} <= {*image}:
        visible = np.stack([image[b] for b in VISIBLE])
        mean = np.maximum(visible.mean(axis=0), 1)
        white = abs(visible - mean).sum(axis=0) < WHITE * mean
        found |= (image["B2"] > OPAQUE * FULL) & white & ~_snow(image)
    return found


def _snow(image: dict[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Where there is snow; nowhere if the short-wave infrared is missing."""
    green, swir = image["B3"], image.get(SWIR, image["B3"])
    snow: NDArray[np.bool_] = green - swir > SNOW * (green + swir)
    return snow


def usable(names: Collection[str | None], source: str, units: str) -> list[str]:
    """Bands of a scene that the test uses.

    Raises:
        InputError: They or their units do not do.
    """
    if units == "byte":
        raise InputError(f"--clouds needs reflectances, but {source} is a rendering in bytes. Give the original bands.")
    visible = [b for b in VISIBLE if b in names]
    if CIRRUS not in names and len(visible) < len(VISIBLE):
        raise InputError(
            f"--clouds needs B10, or B2, B3 and B4, and {source} has neither. Add these bands, or mask clouds with "
            "--mask."
        )
    kept = visible if len(visible) == len(VISIBLE) else []
    return kept + [b for b in (CIRRUS, SWIR) if b in names and (kept or b == CIRRUS)]


def check_offset(cirrus: NDArray[np.float32], source: str) -> None:
    """Raises InputError where nothing of a sample of B10, in digital numbers, is as dark as ground is."""
    if cirrus.size and cirrus.min() > GROUND * FULL:
        raise InputError(
            f"Even the darkest pixels of B10 in {source} are {cirrus.min():.0f}, so --clouds would hide all of it. If "
            "that is the offset of processing baseline 04.00, say --s2-offset -1000; if all is cloud, choose another "
            "scene."
        )


def notes(bands: Collection[str]) -> Iterator[str]:
    """What the user should know about the test with these bands."""
    kinds = ["bright and white (B2, B3, B4)"] * ("B2" in bands) + ["cirrus (B10)"] * (CIRRUS in bands)
    yield f"--clouds: {' and '.join(kinds)}, and {RIM_M:g} m around, is not mapped; shadows of clouds are"
    if "B2" not in bands:
        yield "--clouds: without B2, B3 and B4 only cirrus and high clouds are found"
    if CIRRUS not in bands:
        yield "--clouds: without B10 thin cirrus is not found"
    if "B2" in bands and SWIR not in bands:
        yield "--clouds: without B11 snow counts as cloud"
