"""Putting the Landslide4Sense training patches back into the four scenes that they were cut from.

The 3,799 training patches are four complete scenes cut row by row without overlap: neighbouring patches continue each
other to the pixel. Put together they can be held out by region and by block instead of by neighbouring patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from l4s_geo.data.l4s import COUNTS, LAYOUTS, find_items, number_of, read_image, read_mask
from l4s_geo.data.new_folder import check_new_folder, new_folder
from l4s_geo.data.patches import UNKNOWN, Item
from l4s_geo.errors import InputError
from l4s_geo.progress import Progress
from l4s_geo.scene import L4S_BANDS
from l4s_geo.tiling import PATCH

#: Said of scenes whose position is not known.
NOMINAL = "nominal: right UTM zone and pixel size, wrong place"


@dataclass(frozen=True)
class Region:
    """A scene of the training set.

    Attributes:
        name: As the competition's papers call it.
        first: Number of its upper left patch.
        rows: Of patches.
        columns: Of patches; numbers run along the rows.
        epsg: Of the coordinate system.
        transform: From pixel corners to coordinates.
        position: How well the position is known.
    """

    name: str
    first: int
    rows: int
    columns: int
    epsg: int
    transform: Affine
    position: str = NOMINAL

    @property
    def size(self) -> int:
        """Patches."""
        return self.rows * self.columns


#: In the order of patch numbers. The position of hokkaido was fitted to the original Sentinel-2 scene.
REGIONS = (
    Region("taitung", 1, 74, 41, 32651, Affine(10, 0, 250000, 0, -10, 2600000)),
    Region(
        "hokkaido",
        3035,
        10,
        15,
        4326,
        Affine(0.00012945494007078, 0, 141.859197453511, 0, -0.00012945494007078, 42.87032792132094),
        "fitted to the original Sentinel-2 scene",
    ),
    Region("rasuwa", 3185, 11, 11, 32645, Affine(10, 0, 320000, 0, -10, 3130000)),
    Region("kodagu", 3306, 19, 26, 32643, Affine(10, 0, 560000, 0, -10, 1400000)),
)


@dataclass(frozen=True)
class Place:
    """Where a patch belongs: its region, and its row and column among the region's patches."""

    region: Region
    row: int
    column: int


@dataclass(frozen=True)
class Mosaic:
    """What was written for a region: patches of how many, those with a mask, and the files."""

    patches: int
    of: int
    labelled: int
    image: str
    labels: str
    position: str


def place(number: int) -> Place:
    """Where training patch ``image_NUMBER`` belongs.

    Raises:
        InputError: The number is none of 1..3799.
    """
    for region in REGIONS:
        if region.first <= number < region.first + region.size:
            return Place(region, *divmod(number - region.first, region.columns))
    raise InputError(
        f"image_{number}.h5 is none of the {COUNTS['train']} training patches, and only these come from known places. "
        "Give the folder of the training patches."
    )


def mosaic(folder: Path, out: Path, progress: Progress) -> dict[str, Mosaic]:
    """Write ``OUT/REGION/image.tif`` and ``labels.tif`` of every region that the folder has patches of.

    ``image.tif`` holds the 14 bands as whole numbers (int32: elevations may be negative) in tiles that are the patches.
    Pixels of missing patches are masked by the file's own mask, for 0 is a slope. ``labels.tif`` is 255 where a patch
    or its mask is missing. Memory does not depend on the number of patches.

    Args:
        folder: Official layout, or any of the training patches in a flat folder.
        out: Folder to make.
        progress: Advances by patches.

    Returns:
        What was written, by region.

    Raises:
        InputError: There are no training patches, or one cannot be used.
        OutputError: The folder exists and is not empty, or cannot be written.
    """
    check_new_folder(out)
    regions = _by_region(folder, _training_items(folder))
    progress.start("mosaic", sum(len(items) for items in regions.values()))
    made: dict[str, Mosaic] = {}
    with new_folder(out) as work:
        for name, items in regions.items():
            (work / name).mkdir()
            region = place(number_of(items[0])).region
            _write(region, items, work / name, progress)
            labelled = sum(i.truth is not None for i in items)
            image, labels = (str(out / name / file) for file in ("image.tif", "labels.tif"))
            made[name] = Mosaic(len(items), region.size, labelled, image, labels, region.position)
    progress.finish()
    return made


def _training_items(folder: Path) -> list[Item]:
    """Raises InputError where the folder holds none, or those of another split: their numbers mean other places."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}. Check the path.")
    for split, images in ((s, i) for layout in LAYOUTS.values() for s, (i, _) in layout.items() if s != "train"):
        if any(folder.resolve().match(name) for name in (images, images.removesuffix("/img"))):
            raise InputError(f"{folder} holds the {split} patches; only training patches come from known places.")
    items = find_items(folder, "train", labels=False)
    if not items:
        raise InputError(
            f"{folder} holds no Landslide4Sense training patches (image_N.h5 in TrainData/img, images/train or itself)."
        )
    return items


def _by_region(folder: Path, items: Sequence[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(place(number_of(item)).region.name, []).append(item)
    return found


def _write(region: Region, items: Sequence[Item], folder: Path, progress: Progress) -> None:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": region.columns * PATCH,
        "height": region.rows * PATCH,
        "crs": CRS.from_epsg(region.epsg),
        "transform": region.transform,
        "tiled": True,
        "blockxsize": PATCH,
        "blockysize": PATCH,
        "interleave": "band",
        "compress": "deflate",
        "bigtiff": "if_safer",
        "sparse_ok": True,  # tiles of missing patches take no space
    }
    bands = {"count": len(L4S_BANDS), "dtype": "int32", "predictor": 2}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(folder / "image.tif", "w", **profile, **bands) as image,
        rasterio.open(folder / "labels.tif", "w", **profile, count=1, dtype="uint8", nodata=UNKNOWN) as labels,
    ):
        image.descriptions, labels.descriptions = L4S_BANDS, ("landslide",)
        for raster in (image, labels):
            raster.update_tags(SOURCE=f"Landslide4Sense, {region.name}", POSITION=region.position)
        for item in items:
            where = place(number_of(item))
            window = Window(where.column * PATCH, where.row * PATCH, PATCH, PATCH)
            pixels, valid = read_image(item.image)
            image.write(pixels.astype(np.int32), window=window)
            image.write_mask(valid, window=window)
            if item.truth is not None:
                labels.write(np.where(valid, read_mask(item.truth), np.uint8(UNKNOWN)), 1, window=window)
            progress.advance()


def summary(made: dict[str, Mosaic]) -> dict[str, Any]:
    """As plain types."""
    return {name: asdict(m) for name, m in made.items()}


def describe(made: dict[str, Mosaic]) -> str:
    """For people, one line a region."""
    return "\n".join(
        f"{name}: {m.patches} of {m.of} patches, {m.labelled} with a mask, in {Path(m.image).parent}; "
        f"position {m.position}"
        for name, m in made.items()
    )
