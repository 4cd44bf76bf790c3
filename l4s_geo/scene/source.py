"""Opening whatever a scene is kept in: rasters, folders and globs of bands, products, STAC items, L4S patches."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path

import h5py
import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile

from l4s_geo.errors import InputError, reason
from l4s_geo.paths import check_input, exists, is_remote, shorten
from l4s_geo.scene.assets import Image
from l4s_geo.scene.bands import L4S_BANDS, L4S_MEAN, S2_BANDS, TERRAIN_BANDS, parse_band
from l4s_geo.scene.grid import Grid, check_grid
from l4s_geo.scene.mosaic import mosaic
from l4s_geo.scene.raster import GDAL_OPTIONS, Raster
from l4s_geo.scene.safe import DRIVER, GDAL_ALONE, SIDE, Product, find_date, find_level, find_product
from l4s_geo.scene.stac import Item, find_item
from l4s_geo.scene.web import allow_public_buckets

#: Files of a folder that may be bands.
RASTER_SUFFIXES = {".tif", ".tiff", ".jp2", ".vrt", ".img"}

KNOWN = (*S2_BANDS, *TERRAIN_BANDS)

HOW_TO_NAME = "Name its bands in file order, for instance --bands B4,B3,B2."

_NOWHERE = CRS.from_wkt('LOCAL_CS["unknown position",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')


@dataclass(frozen=True)
class Selection:
    """Files that make a scene.

    Attributes:
        paths: In order.
        folder: Whether files without a band's name are to be passed over.
        name: Of the scene.
        date: ISO date in the metadata, or in the names of files or their folder, if any.
        level: ``L1C`` or ``L2A`` where metadata or names say so.
        product: Whose files they are, a Sentinel-2 product or a STAC item.
    """

    paths: tuple[str, ...]
    folder: bool
    name: str
    date: str | None
    level: str | None = None
    product: Product | Item | None = None


@dataclass(frozen=True)
class Source:
    """An open scene.

    Attributes:
        rasters: With spectral bands, and terrain bands within them.
        terrain: Files found beside the bands that hold ``dem`` or ``slope`` alone.
        notes: For the user.
        classification: Scene classification (SCL) of a Level-2A product or item.
    """

    rasters: tuple[Raster, ...]
    terrain: dict[str, Raster]
    notes: tuple[str, ...]
    classification: Raster | None = None


def select(path: str | Path) -> Selection:
    """What a path, URL, folder, glob, Sentinel-2 product, STAC item or list of paths with commas stands for.

    Raises:
        InputError: There is no such file, or none that could be a band.
    """
    text = str(path)
    if not text.strip():
        raise InputError("The name of the scene is empty. Give a file, a folder or an address.")
    if exists(text) or is_remote(text):
        check_input(text)
    if exists(text) and (product := find_product(text)):
        return Selection(product.files, False, product.name, product.date, product.level, product)
    if len(paths := _addresses(text)) == 1 and (item := find_item(text)):
        return Selection(item.files, False, item.name, item.date, item.level, item)
    level = find_level(text)
    if is_remote(text):
        folder = False
    elif exists(text) and Path(text).is_dir():
        paths, folder = _rasters_in(Path(text)), True
    elif exists(text):
        paths, folder = [text], False
    else:
        paths, folder = [p for part in text.split(",") for p in _matches(part.strip())], False
    stem = Path(commonprefix([Path(p).name for p in paths])).stem  # noqa: RUF071 (of names, not of folders)
    if len(paths) > 1 or folder:
        stem = re.sub(r"[_\W]*B?[01]?$", "", stem, flags=re.IGNORECASE) or Path(paths[0]).resolve().parent.name
        day = find_date(Path(paths[0]).name, Path(paths[0]).resolve().parent.name)
        return Selection(tuple(paths), folder, stem, day, level)
    return Selection(tuple(paths), folder, stem, find_date(Path(paths[0]).name), level)


def _addresses(text: str) -> list[str]:
    """The parts of a list of addresses with commas."""
    return re.split(r",(?=[a-z0-9+]+://|/vsi)", text) if is_remote(text) else [text]


def _rasters_in(folder: Path) -> list[str]:
    found = sorted(str(p) for p in folder.iterdir() if p.suffix.lower() in RASTER_SUFFIXES)
    if not found:
        raise InputError(
            f"{folder} holds no bands: none of its files ends in {', '.join(sorted(RASTER_SUFFIXES))}. "
            "Give the folder that holds the band files, or a glob such as 'SCENE/**/*_B0[234].jp2'."
        )
    return found


def _matches(path: str) -> list[str]:
    """A file, or what a glob matches, sorted."""
    if exists(path):
        return [path]
    if not glob.has_magic(path):
        check_input(path)  # says why there is none
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (absolute)
    if not found:
        raise InputError(f"No file matches {shorten(path)!r}. Check the path.")
    return found


def open_source(
    selection: Selection,
    bands: Sequence[str] | None,
    given: Sequence[str],
    stack: ExitStack,
    wanted: Sequence[str] | None = None,
) -> Source:
    """Open every file of a selection and find out what its bands are.

    Args:
        selection: From ``select``.
        bands: Names in file order, if the files are not to be asked.
        given: Terrain bands that the user gives otherwise; files with these are passed over.
        stack: Closes what is opened.
        wanted: Bands that are enough of a STAC item, each of whose files takes time to open; all if one is missing.

    Raises:
        InputError: A file cannot be read, or it is unclear which band is which.
    """
    if selection.product is not None:
        if bands is not None:
            raise InputError(f"{selection.product.source} says itself what its bands are. Leave --bands out.")
        if isinstance(selection.product, Item):
            return _open_item(selection.product, wanted, given, stack)
        return _open_product(selection.product, stack)
    rasters = [open_raster(path, stack) for path in selection.paths]
    if bands is None:
        rasters = [_named(r) for r in rasters]
    else:
        # in a folder, terrain is known by its file name and takes no part in the list
        beside = [r for r in rasters if selection.folder and parse_band(r.path) in TERRAIN_BANDS]
        rasters = _assigned([r for r in rasters if r not in beside], bands) + [_named(r) for r in beside]
    named = [r.pick([n for n in r.names if n]) for r in rasters if any(r.names)]
    left_out = [r for r in rasters if not any(r.names)]
    spectral = [r for r in named if set(r.names) - {*TERRAIN_BANDS}]
    terrain = [r for r in named if r not in spectral and not {*r.names} & {*given}]
    if not spectral or (left_out and not selection.folder):
        raise InputError(_unnamed(selection, left_out or named))
    _refuse_duplicates(spectral + terrain)
    return Source(
        tuple(spectral),
        {name: r.pick([name]) for r in terrain for name in r.names if name},
        tuple(_notes(rasters, spectral, terrain)),
    )


def _open_product(product: Product, stack: ExitStack) -> Source:
    """Open the images of a product.

    Raises:
        InputError: One cannot be read, or is not what such a product has.
    """

    def open_image(path: str) -> Raster:
        with rasterio.Env(**GDAL_ALONE):
            raster = open_raster(path, stack, driver=DRIVER)
        if len(raster.indexes) != 1 or max(raster.grid.shape) > SIDE:
            height, width = raster.grid.shape
            raise InputError(
                f"{path} has {len(raster.indexes)} bands of {width} x {height} pixels; images of Sentinel-2 have one "
                f"of {SIDE} x {SIDE} at most. Download the product again."
            )
        return raster

    rasters = [replace(open_image(path), names=(band,), zero_is_nodata=True) for band, path in product.images.items()]
    classification = None if product.classification is None else open_image(product.classification).renamed("SCL")
    return Source(tuple(rasters), {}, tuple(product.notes()), classification)


def _open_item(item: Item, wanted: Sequence[str] | None, given: Sequence[str], stack: ExitStack) -> Source:
    """Open the images of a STAC item.

    Raises:
        InputError: One cannot be read, or has not the bands that the item says.
    """

    def open_image(image: Image, name: str) -> Raster:
        address = item.addresses[image.key]
        try:
            with rasterio.Env(**GDAL_ALONE):
                raster = open_raster(address.gdal, stack, driver=image.driver)
        except InputError as e:  # a signature is for nobody else
            hint = " It may need credentials or a signed address." * address.gdal.startswith("/vsi")
            raise InputError(f"Asset {image.key!r}: {str(e).replace(address.gdal, address.shown)}{hint}") from e
        if image.index not in raster.indexes or (name in TERRAIN_BANDS and len(raster.indexes) != 1):
            raise InputError(
                f"{address.shown} has {len(raster.indexes)} bands, but {name} is to be band {image.index} of asset "
                f"{image.key!r}. Correct the item, or give the file itself with --bands."
            )
        spectral = name in S2_BANDS
        return replace(
            raster,
            path=address.shown,
            indexes=(image.index,),
            scaled=not spectral,
            names=(name,),
            zero_is_nodata=spectral,
        )

    unsigned = any(a.gdal.startswith("/vsis3/") for a in item.addresses.values()) and allow_public_buckets()
    asked = {*(wanted or ())} - {*TERRAIN_BANDS}
    enough = asked if asked and asked <= item.images.keys() else item.images.keys()
    rasters = [open_image(image, band) for band, image in item.images.items() if band in enough]
    terrain = {
        name: mosaic([open_image(tile, name) for tile in tiles], stack)
        for name, tiles in item.terrain.items()
        if name not in given
    }
    notes = [*item.notes(), *(f"{name} from the item: {raster.path}" for name, raster in terrain.items())]
    notes += ["s3 addresses are read without credentials, none are set"] * unsigned
    classification = None if item.classification is None else open_image(item.classification, "SCL")
    return Source(tuple(rasters), terrain, tuple(notes), classification)


def open_raster(path: str, stack: ExitStack, driver: str | None = None) -> Raster:
    """Open one file; its bands keep the names that the file gives them.

    Args:
        path: File, or address that GDAL understands.
        stack: Closes it.
        driver: Of GDAL, the only one to try; all if not given.

    Raises:
        InputError: There is no such file, it is none that GDAL reads, or it is not georeferenced.
    """
    if exists(path) or ":" not in path:  # else a data set in a file, as GDAL names them
        check_input(path)
    if Path(path).suffix.lower() in (".h5", ".hdf5"):
        return _open_patch(path, stack)
    try:
        with warnings.catch_warnings(), rasterio.Env(**GDAL_OPTIONS):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = stack.enter_context(rasterio.open(path, driver=driver))
    except (RasterioError, CPLE_BaseError, ValueError) as e:  # texts in a file may be in no encoding
        raise InputError(
            f"{path} cannot be opened as a raster ({reason(e)}). Is the file complete, and a raster?"
        ) from e
    _check_placed(dataset, path)
    indexes = tuple(i for i, c in enumerate(dataset.colorinterp, 1) if c != ColorInterp.alpha)
    names = tuple(parse_band(dataset.descriptions[i - 1] or "") for i in indexes)
    flags = [f for i in indexes for f in dataset.mask_flag_enums[i - 1]]
    return Raster(dataset, path, indexes, names, zero_is_nodata={*flags} == {MaskFlags.all_valid})


def _check_placed(dataset: DatasetReader, path: str) -> None:
    """Raises InputError where it is unclear what ground the pixels cover, or what they stand for."""
    if dataset.crs is None and (dataset.gcps[0] or dataset.rpcs):
        raise InputError(
            f"{path} is placed by {'ground control points' if dataset.gcps[0] else 'a camera model (RPC)'}, not by a "
            "grid. Bring it onto one with gdalwarp -t_srs EPSG:32654, with your UTM zone."
        )
    if dataset.crs is None or dataset.transform == Affine.identity():
        raise InputError(
            f"{path} has no {'coordinate system' if dataset.crs is None else 'position (geotransform)'}. "
            "Give it one, for instance with gdal_edit.py -a_srs EPSG:32654 -a_ullr LEFT TOP RIGHT BOTTOM."
        )
    check_grid(Grid(dataset.crs, dataset.transform, dataset.width, dataset.height), path)
    if any("complex" in kind for kind in dataset.dtypes):
        raise InputError(f"{path} has complex numbers, as radar images have. Give bands of Sentinel-2, or elevations.")
    if not (np.isfinite([dataset.scales, dataset.offsets]).all() and all(dataset.scales)):
        raise InputError(f"{path} has a scale of 0 or none at all. Mend it with gdal_edit.py -scale 1 -offset 0.")


def _open_patch(path: str, stack: ExitStack) -> Raster:
    """An L4S patch: HDF5 key ``img``, (128, 128, 14), digital numbers over the data set's means."""
    try:
        with h5py.File(path) as file:
            stored = file["img"]
            shape, kind = stored.shape, stored.dtype.kind
            if len(shape) != 3 or shape[2] != len(L4S_BANDS) or not 0 < max(shape) <= SIDE or kind not in "fiu":
                raise InputError(f"{path} is no Landslide4Sense patch: 'img' is {shape}, not (128, 128, 14) numbers.")
            scaled = np.asarray(stored, np.float64)
    except (OSError, KeyError, AttributeError, RuntimeError, ValueError, TypeError) as e:
        raise InputError(
            f"{path} is no Landslide4Sense patch: it cannot be read, or has no 'img' ({reason(e)})."
        ) from e
    h, w, count = scaled.shape
    file = stack.enter_context(MemoryFile())
    profile = {"driver": "GTiff", "width": w, "height": h, "count": count, "dtype": "int32", "crs": _NOWHERE}
    with file.open(**profile, transform=Affine(10, 0, 0, 0, -10, 10 * h)) as new:
        found = np.rint(scaled * np.array(L4S_MEAN)).clip(-(2**31), 2**31 - 1)
        new.write(np.where(np.isnan(found), -(2**31), found).astype(np.int32).transpose(2, 0, 1))
    return Raster(stack.enter_context(file.open()), path, tuple(range(1, count + 1)), L4S_BANDS)


def _named(raster: Raster) -> Raster:
    """Name a single band by its file where that says more than its description."""
    if len(raster.indexes) != 1:
        return raster
    return replace(raster, names=(parse_band(raster.path) or raster.names[0],))


def _assigned(rasters: Sequence[Raster], bands: Sequence[str]) -> list[Raster]:
    """Give the user's names to all bands in file order."""
    unknown = [b for b in bands if parse_band(b) is None]
    if unknown:
        raise InputError(f"--bands has unknown names {', '.join(unknown)}; known are {', '.join(KNOWN)}.")
    found = sum(len(r.indexes) for r in rasters)
    if found != len(bands):
        files = ", ".join(f"{Path(r.path).name} ({len(r.indexes)})" for r in rasters)
        raise InputError(f"--bands names {len(bands)} bands, but there are {found}: {files}. Name every one.")
    names = iter(bands)
    return [replace(r, names=tuple(parse_band(next(names)) for _ in r.indexes)) for r in rasters]


def _unnamed(selection: Selection, rasters: Sequence[Raster]) -> str:
    """Message for files that do not say which bands they hold."""
    files = "; ".join(f"{Path(r.path).name}: {_found(r)}" for r in rasters[:8])
    hint = HOW_TO_NAME
    if any(len(r.indexes) == len(L4S_BANDS) for r in rasters):
        hint += f" The order of Landslide4Sense is {','.join(L4S_BANDS)}."
    return f"It is unclear which Sentinel-2 bands {selection.name} has. Found {files}. {hint}"


def _found(raster: Raster) -> str:
    descriptions = [raster.dataset.descriptions[i - 1] or "no name" for i in raster.indexes]
    if set(descriptions) == {"no name"}:
        return f"{len(descriptions)} band{'s'[: len(descriptions) > 1]} without names"
    return ", ".join(descriptions)


def _refuse_duplicates(rasters: Sequence[Raster]) -> None:
    """Raises InputError where a band is there more than once."""
    where: dict[str, list[str]] = {}
    for raster in rasters:
        for name in raster.names:
            where.setdefault(str(name), []).append(Path(raster.path).name)
    double = [f"{band} in {', '.join(files)}" for band, files in where.items() if len(files) > 1]
    if double:
        raise InputError(
            f"Bands are there more than once: {'; '.join(double)}. Choose the files of one scene with a glob "
            "such as 'post_B*.tif' or 'R10m/*.jp2', or name the bands of a file with --bands."
        )


def _notes(all_: Sequence[Raster], spectral: Sequence[Raster], terrain: Sequence[Raster]) -> Iterator[str]:
    """What the user should know about the choice of files and bands."""
    passed_over = [Path(r.path).name for r in all_ if r.path not in {s.path for s in (*spectral, *terrain)}]
    if passed_over:
        yield f"passed over {', '.join(passed_over)}"
    for raster in all_:
        nameless = [str(i) for i, name in zip(raster.indexes, raster.names, strict=True) if name is None]
        if nameless and any(raster.names):
            yield f"left out of {Path(raster.path).name}: band {', '.join(nameless)}, no Sentinel-2 name"
    for raster in terrain:
        yield f"{' and '.join(str(n) for n in raster.names)} from {Path(raster.path).name} beside the bands"
    if any(r.zero_is_nodata for r in spectral):
        yield "no nodata value declared: pixels that are 0 in all bands of a file count as nodata"
    if any(r.grid.is_local for r in spectral):
        yield "the scene has no position on Earth: outputs are in metres from its lower left corner"
