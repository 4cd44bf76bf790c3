"""Unlabelled scenes to adapt to, copied once as training will read them: one file of the network's bands each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from l4s_geo.data.chips import IMAGES
from l4s_geo.data.l4s import open_l4s
from l4s_geo.data.patches import Patches
from l4s_geo.errors import InputError
from l4s_geo.masks import nothing_left, open_limits
from l4s_geo.outputs import writing
from l4s_geo.raster import row_windows
from l4s_geo.scene import Grid, open_scene
from l4s_geo.tiling import PATCH

#: File of a target's bands, as a labelled scene has it.
IMAGE = "image.tif"

#: What may stand behind a path.
UNITS = ("@dn", "@reflectance", "@byte")

#: Names that say nothing about a scene; its folder's is used instead.
NAMELESS = ("rgb", "image")

#: Window, pixels (C, h, w) and where they are valid (h, w).
Block = tuple[Window, NDArray[np.float32], NDArray[np.bool_]]

_NOWHERE = CRS.from_wkt('LOCAL_CS["unknown position",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')


@dataclass(frozen=True)
class Target:
    """An unlabelled scene, or a folder of unlabelled patches, which are one domain together.

    Attributes:
        path: As the user gave it, without units.
        units: Of its pixels, as ``open_scene`` takes them.
        name: Unique among the targets of a run.
        apart: It is made of separate patches.
        bands: Names of its bands in file order, where they were given.
    """

    path: str
    units: str
    name: str
    apart: bool = False
    bands: tuple[str, ...] | None = None


def find_targets(
    paths: Sequence[str], bands: Sequence[str], resolution: float, names: tuple[str, ...] | None = None
) -> list[Target]:
    """Unlabelled scenes as a user names them, opened once to see that they can be used.

    Args:
        paths: Scenes (file, folder or glob; ``PATH@UNITS`` states their units), or folders of Landslide4Sense patches.
        bands: That the networks need.
        resolution: In metres per pixel.
        names: Of the bands in file order, where the files do not say.

    Raises:
        InputError: One cannot be used.
    """
    found: list[Target] = []
    for text in paths:
        path, _, units = text.rpartition("@") if text.endswith(UNITS) else (text, "", "auto")
        if _patches(path, bands) is not None:
            name, apart = Path(path).resolve().name, True
        else:
            with open_scene(path, bands=names, resolution=resolution, units=units) as scene:
                missing = [b for b in bands if b not in scene.bands]
                if missing:
                    raise InputError(
                        f"{path} has the bands {', '.join(scene.bands)}; the recipe also needs {', '.join(missing)}. "
                        "Choose another recipe, or fewer --bands."
                    )
                name, apart = scene.name, False
                if name in NAMELESS:
                    name = Path(scene.paths[0]).resolve().parent.name
        found.append(Target(path, units, _unlike(name, {t.name for t in found}), apart, names))
    return found


def _unlike(name: str, taken: set[str]) -> str:
    """The name, with the first number that makes it another one than those taken."""
    return next(n for n in chain([name], (f"{name}-{i}" for i in count(2))) if n not in taken)


def _patches(path: str, bands: Sequence[str]) -> Patches | None:
    """Landslide4Sense patches: the test split where there are several."""
    folder = Path(path)
    if not folder.is_dir():
        return None
    found = open_l4s(folder, bands, split="test", labels=False)
    if found is None and (folder / IMAGES).is_dir():
        raise InputError(
            f"{folder} holds chips, which cannot be --unlabelled: scenes and Landslide4Sense patches can. Give the "
            "scenes that they were cut from."
        )
    return found


def copy_target(
    target: Target,
    folder: Path,
    bands: Sequence[str],
    resolution: float,
    *,
    aoi: Path | None = None,
    masks: Sequence[Path] = (),
    clouds: bool = False,
) -> Path:
    """Write ``image.tif``: whole digital numbers on the grid that networks work on; nothing is held in memory.

    Patches lie one below the other, with as much nodata between, so that no crop sees two of them.

    Args:
        target: What to copy.
        folder: Where to; made if needed.
        bands: Of the copy, in this order.
        resolution: In metres per pixel.
        aoi: Polygons; pixels outside are written as not valid.
        masks: Clouds and other ground that is not to be used, written as not valid: polygons, or rasters of one band
            in any CRS (nearest pixel), where everything but 0 and nodata is masked.
        clouds: Likewise what looks like cloud, as in ``open_scene``.

    Returns:
        Its path; a copy that is there is kept.

    Raises:
        InputError: A file is damaged or cannot be used, no valid pixel is left, or ``aoi``, ``masks`` or
            ``clouds`` are given for patches.
        OutputError: There is no space.
    """
    path = folder / IMAGE
    if path.is_file():
        return path
    if target.apart and (aoi or masks or clouds):
        raise InputError(
            f"{target.path} holds patches; an area of interest and masks go with scenes only. Leave --aoi, --mask "
            "and --clouds away, or give the scene that the patches were cut from."
        )
    part = folder / f"part-{IMAGE}"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if target.apart:
                _copy_patches(target, part, bands)
            else:
                _copy_scene(target, part, bands, resolution, aoi, masks, clouds)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _copy_patches(target: Target, path: Path, bands: Sequence[str]) -> None:
    patches = _patches(target.path, bands)
    assert patches is not None
    grid = Grid(_NOWHERE, Affine(10, 0, 0, 0, -10, 0), PATCH, 2 * PATCH * len(patches))
    blocks = ((Window(0, 2 * PATCH * i, PATCH, PATCH), p.image, p.valid) for i, p in enumerate(patches))
    _write(path, grid, bands, blocks)


def _copy_scene(
    target: Target,
    path: Path,
    bands: Sequence[str],
    resolution: float,
    aoi: Path | None,
    masks: Sequence[Path],
    clouds: bool,
) -> None:
    with (
        open_scene(target.path, bands=target.bands, resolution=resolution, units=target.units, clouds=clouds) as scene,
        open_limits(scene.grid, target.path, aoi, masks) as limits,
    ):

        def blocks() -> Iterator[Block]:
            for window in row_windows(scene.grid):
                pixels, valid = scene.read(window, bands)
                valid &= limits.inside(window) & limits.clear(window)
                yield window, np.where(valid, pixels, np.float32(0)), valid

        if not _write(path, scene.grid, bands, blocks()):
            raise nothing_left(target.path, aoi, masks)


def _write(
    path: Path,
    grid: Grid,
    bands: Sequence[str],
    blocks: Iterator[Block],
) -> int:
    """Write all blocks; gives the number of valid pixels."""
    seen = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **profile(grid), count=len(bands), dtype="uint16", predictor=2) as image,
    ):
        image.descriptions = tuple(bands)
        for window, pixels, valid in blocks:
            image.write(np.clip(np.rint(pixels), 0, 65535).astype(np.uint16), window=window)
            image.write_mask(valid, window=window)
            seen += int(np.count_nonzero(valid))
    return seen


def profile(grid: Grid) -> dict[str, object]:
    """Of a compressed GeoTIFF whose empty tiles take no space."""
    return {
        "driver": "GTiff",
        "width": grid.width,
        "height": grid.height,
        "crs": grid.crs,
        "transform": grid.transform,
        "tiled": True,
        "blockxsize": PATCH,
        "blockysize": PATCH,
        "compress": "deflate",
        "bigtiff": "if_safer",
        "sparse_ok": True,
    }


def grid_of(path: Path) -> Grid:
    """Of a file that this run has written."""
    with rasterio.open(path) as file:
        return Grid(file.crs, file.transform, file.width, file.height)


def link(image: Path, folder: Path) -> None:
    """Put an image into another folder too, without a second copy of it where the file system can do so."""
    path = folder / IMAGE
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            path.hardlink_to(image)
        except OSError:
            shutil.copyfile(image, path)
