"""A scene: one grid, named bands, one valid mask, read window by window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.windows import Window

from l4s_geo.errors import InputError
from l4s_geo.scene import clouds as cloud_test
from l4s_geo.scene.bands import TERRAIN_BANDS
from l4s_geo.scene.clouds import Cloudless
from l4s_geo.scene.grid import Grid, model_grid
from l4s_geo.scene.layer import Layer, band_layers, terrain_layers
from l4s_geo.scene.raster import Raster, is_scaled
from l4s_geo.scene.safe import ClearSky, Product
from l4s_geo.scene.source import Selection, open_raster, open_source, select
from l4s_geo.scene.stac import Item
from l4s_geo.scene.units import (
    FULL,
    OFFSETS,
    REFLECTANCE_MAX,
    Radiometry,
    refuse_below_zero,
    settle_offset,
    settle_units,
)
from l4s_geo.scene.warp import share_covered

__all__ = ["Grid", "Scene", "open_scene", "open_terrain"]

#: Side of the windows that are looked at on opening, their number along each axis, and rows of a strip.
SAMPLE, SAMPLES, STRIP = 64, 5, 128

#: Said of a scene classification that masks.
CLEAR_SKY = "cloud, cirrus, cloud shadow, snow and defective pixels of the scene classification are not mapped"


class Scene:
    """Named bands on one grid. For one thread at a time: GDAL's datasets are not safe to share.

    Attributes:
        name: Short name, from file names.
        source: As the user gave it.
        paths: Of its files or addresses.
        grid: That windows refer to.
        native_crs: CRS of the input.
        bands: Spectral ones in file order, then ``slope`` and ``dem`` where there.
        units: ``dn``, ``reflectance`` or ``byte``, of the input's spectral bands.
        radiometry: Makes digital numbers of what is stored.
        date: ISO date in the metadata or the names of the files, if any.
        level: ``L1C`` or ``L2A`` where metadata or names say so.
        notes: What a user should know about how the scene is read.
    """

    def __init__(
        self,
        layers: Sequence[Layer | ClearSky],
        grid: Grid,
        bands: Sequence[str],
        *,
        source: str,
        selection: Selection,
        native_crs: CRS,
        units: str,
        notes: Sequence[str],
        stack: ExitStack,
    ) -> None:
        self.name, self.source, self.date = selection.name, source, selection.date
        self.paths, self.level = selection.paths, selection.level
        self.radiometry = Radiometry(1.0 if units == "reflectance" else FULL)
        self.grid, self.native_crs, self.units, self.bands = grid, native_crs, units, tuple(bands)
        self.notes = list(notes)
        self._layers: tuple[Layer | ClearSky | Cloudless, ...] = tuple(layers)
        self._stack = stack

    def read(self, window: Window, bands: Sequence[str] | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Pixels of a window.

        Args:
            window: Inside ``grid``.
            bands: Which, in this order; all if not given.

        Returns:
            Image (C, h, w), float32: digital numbers without offset (bytes for byte scenes), degrees and metres, 0
            where invalid; and (h, w) where every input of the scene is valid, asked for or not.

        Raises:
            InputError: The scene lacks a band, or a file is damaged.
            ValueError: The window is not inside the grid.
        """
        wanted = self.bands if bands is None else tuple(bands)
        missing = [b for b in wanted if b not in self.bands]
        if missing:
            raise InputError(f"{self.source} has no {', '.join(missing)}; its bands are {', '.join(self.bands)}.")
        return self._read(window, wanted, self._layers)

    def read_terrain(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Those of ``slope`` and ``dem`` that are there, as ``read`` gives them, but valid where these are valid.

        Nothing else is read, and under clouds the ground is known.
        """
        bands = [b for b in TERRAIN_BANDS if b in self.bands]
        return self._read(window, bands, [layer for layer in self._layers if {*layer.names} & {*bands}])

    def _read(
        self, window: Window, wanted: Sequence[str], layers: Iterable[Layer | ClearSky | Cloudless]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        self._check(window)
        h, w = int(window.height), int(window.width)
        image = np.zeros((len(wanted), h, w), np.float32)
        valid = np.ones((h, w), bool)
        for layer in layers:
            pixels, seen = layer.read(window)
            valid &= seen
            for name, band in zip(layer.names, pixels, strict=True):
                for i in (i for i, b in enumerate(wanted) if b == name):
                    image[i] = band if name in TERRAIN_BANDS else self.radiometry(name, band)
        image[:, ~valid] = 0
        return image, valid

    def _check(self, window: Window) -> None:
        right, bottom = window.col_off + window.width, window.row_off + window.height
        if min(window.col_off, window.row_off) < 0 or right > self.grid.width or bottom > self.grid.height:
            raise ValueError(f"{window} is not inside the scene's {self.grid.width} x {self.grid.height} pixels.")

    def hide(self, layer: Cloudless, scene: Scene) -> None:
        """Let what a layer does not see be invalid; it reads from a scene that is closed with this one."""
        self._layers = (*self._layers, layer)
        self._stack.enter_context(scene)

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_scene(
    path: str | Path,
    *,
    bands: Sequence[str] | None = None,
    dem: str | Path | None = None,
    slope: str | Path | None = None,
    resolution: float | None = 10.0,
    units: str = "auto",
    s2_offset: str = "auto",
    scl: bool = True,
    clouds: bool = False,
    wanted: Sequence[str] | None = None,
    grid: Grid | None = None,
) -> Scene:
    """Open a scene for reading window by window; nothing is read whole.

    Args:
        path: GeoTIFF, VRT, COG, any URL that GDAL reads, a folder or glob of single-band files, paths joined
            by commas, a Sentinel-2 product (``.SAFE``, a zip of it, or its ``MTD_MSIL1C.xml`` or
            ``MTD_MSIL2A.xml``), a STAC item (file or address), or a Landslide4Sense patch (``.h5``).
        bands: Names in file order, where files do not say.
        dem: Elevation raster in metres, in any CRS; slope is derived from it if not given.
        slope: Slope raster in degrees, in any CRS.
        resolution: Of the models, in metres. The scene keeps its own grid where that fits (see
            ``model_grid``), else it is warped lazily to UTM. None keeps its own grid always.
        units: Of spectral pixels: ``dn``, ``reflectance`` (times 10000 when read), ``byte``, or ``auto``,
            which takes integers of 16 bits or more and floats beyond 2 as digital numbers and refuses others, but
            for files that declare a scale and offset which make reflectance. ``dn`` and ``byte`` are what is stored.
        s2_offset: To be added to digital numbers: ``auto``, as the metadata of a product or item say, none for other
            files; ``0``, none; ``-1000``, that of processing baseline 04.00 and newer for files without metadata.
        scl: Whether what the scene classification of a Level-2A product calls cloud, shadow or snow is not valid.
        clouds: Whether what ``l4s_geo.scene.clouds`` takes for cloud is not valid; it reads the bands that it needs.
        wanted: Spectral bands to read. The others are left alone, also in what is valid; so terrain is always there.
            All of them are read if not given, or if one is missing.
        grid: To lay the scene on, instead of one that fits it; what the scene does not cover is not valid.

    Raises:
        InputError: The input cannot be used; the message says what, where and what to do.
    """
    if s2_offset not in OFFSETS:
        raise InputError(f"Unknown offset {s2_offset!r}; --s2-offset takes {', '.join(OFFSETS)}.")
    with ExitStack() as stack:
        selection = select(path)
        given = [name for name, raster in (("dem", dem), ("slope", slope)) if raster is not None]
        source = open_source(selection, bands, given, stack, None if clouds else wanted)
        if units in ("dn", "byte"):  # what is stored, whatever the files declare
            source = replace(source, rasters=tuple(replace(r, scaled=False) for r in source.rasters))
        native = min((r.grid for r in source.rasters), key=lambda g: math.prod(g.pixel_size_m()))
        grid = model_grid(native, resolution) if grid is None else grid
        terrain = source.terrain | _terrain_rasters({"dem": dem, "slope": slope}, stack)
        rasters = _picked(source.rasters, wanted)
        inside = [n for r in rasters for n in r.names if n]
        layers = [*band_layers(rasters, grid, {*terrain}), *terrain_layers(terrain, inside, grid)]
        clear = [*_clear_sky(source.classification if scl else None, grid)]
        scene = Scene(
            [*layers, *clear],
            grid,
            _band_order(inside, layers),
            source=str(path),
            selection=selection,
            native_crs=native.crs,
            units=units,
            notes=[*source.notes, *_notes(layers, native, grid), *([CLEAR_SKY] if clear else [])],
            stack=stack.pop_all(),
        )
    try:
        _settle_numbers(scene, rasters, units, s2_offset, selection.product)
        if clouds:
            names = [n for r in source.rasters for n in r.names]
            tested = cloud_test.usable(names, scene.source, scene.units)
            own = open_scene(path, bands=bands, units=units, s2_offset=s2_offset, scl=False, wanted=tested, grid=grid)
            _hide_clouds(scene, own, tested)
    except BaseException:
        scene.close()
        raise
    return scene


def open_terrain(grid: Grid, *, dem: str | Path | None, slope: str | Path | None) -> Scene:
    """Elevation and slope alone on a given grid, read like a scene.

    Args:
        grid: To lay them on.
        dem: Elevation raster in metres, in any CRS; slope is derived from it if not given.
        slope: Slope raster in degrees, in any CRS.

    Raises:
        InputError: A raster cannot be used or does not overlap the grid.
    """
    with ExitStack() as stack:
        rasters = _terrain_rasters({"dem": dem, "slope": slope}, stack)
        layers = [*terrain_layers(rasters, (), grid)]
        paths = tuple(str(p) for p in (dem, slope) if p is not None)
        return Scene(
            layers,
            grid,
            _band_order((), layers),
            source=", ".join(paths),
            selection=Selection(paths, False, "terrain", None),
            native_crs=grid.crs,
            units="dn",
            notes=[*_notes(layers, grid, grid)],
            stack=stack.pop_all(),
        )


def _picked(rasters: Sequence[Raster], wanted: Sequence[str] | None) -> list[Raster]:
    """Rasters with terrain and these of their bands only; as they are if one is missing."""
    if wanted is None or not {*wanted} <= {n for r in rasters for n in r.names} | {*TERRAIN_BANDS}:
        return list(rasters)
    kept = {*wanted, *TERRAIN_BANDS}
    return [r.pick(names) for r in rasters if (names := [n for n in r.names if n in kept])]


def _clear_sky(classification: Raster | None, grid: Grid) -> Iterator[ClearSky]:
    """The mask of a scene classification, if there is one."""
    if classification is not None:
        yield ClearSky(Layer([classification], ("SCL",), grid, Resampling.nearest))


def _hide_clouds(scene: Scene, own: Scene, bands: Sequence[str]) -> None:
    """Take clouds out of a scene, which are looked for in another one, of the bands of the test."""
    scene.hide(Cloudless(own), own)
    if cloud_test.CIRRUS in bands:
        found = [own.read(window, [cloud_test.CIRRUS]) for window in _spread(own.grid)]
        cloud_test.check_offset(np.concatenate([image[0][valid] for image, valid in found]), scene.source)
    scene.notes += cloud_test.notes(bands)


def _settle_numbers(
    scene: Scene, rasters: Sequence[Raster], units: str, s2_offset: str, product: Product | Item | None
) -> None:
    """Find out what the numbers of a scene are, from what is said of them and from a look at some."""
    kinds = {kind for r in rasters for kind in r.kinds}
    doubtful = s2_offset == "-1000" or (s2_offset == "auto" and product and product.offsets and not product.certain)
    values = _sample(scene, thorough=bool(doubtful) or any("float" in kind for kind in kinds))
    if units == "auto" and any(map(is_scaled, rasters)) and np.median(values) <= REFLECTANCE_MAX:
        units, scene.radiometry = "reflectance", Radiometry(1.0)
        scene.notes.append("the files declare a scale and offset that make reflectance of their numbers")
    scene.units = settle_units(units, kinds, values, scene.source)
    _settle_radiometry(scene, s2_offset, values, product)


def _settle_radiometry(scene: Scene, asked: str, values: NDArray[np.float32], product: Product | Item | None) -> None:
    """Let the scene give digital numbers without an offset, and note how."""
    if product is not None and asked == "auto":
        product.check_offset()
    sample = dict(zip((b for b in scene.bands if b not in TERRAIN_BANDS), values, strict=True))
    own = {band: product.offsets[band] for band in sample if band in product.offsets} if product else {}
    offsets, note = settle_offset(asked, own, scene.units, sample, scene.source)
    if asked == "auto" and product is not None and not product.certain:
        refuse_below_zero(own, sample, scene.source)
    quantification = (product and product.quantification) or scene.radiometry.quantification
    scene.radiometry = Radiometry(quantification, offsets)
    scene.notes += [note] if note else []


def _terrain_rasters(paths: dict[str, str | Path | None], stack: ExitStack) -> dict[str, Raster]:
    """Open the files of ``--dem`` and ``--slope``."""
    opened = {name: open_raster(str(path), stack) for name, path in paths.items() if path is not None}
    for name, raster in opened.items():
        if len(raster.indexes) != 1:
            raise InputError(f"{raster.path} has {len(raster.indexes)} bands; --{name} takes a raster with one.")
    return {name: raster.renamed(name) for name, raster in opened.items()}


def _band_order(inside: Sequence[str], layers: Sequence[Layer]) -> list[str]:
    """Spectral bands in the order of files, then terrain."""
    there = {name for layer in layers for name in layer.names}
    return [n for n in inside if n not in TERRAIN_BANDS] + [n for n in TERRAIN_BANDS if n in there]


def _notes(layers: Sequence[Layer], native: Grid, grid: Grid) -> Iterator[str]:
    """How the rasters come onto the grid."""
    if not native.same_pixels(grid):
        yield f"warped from {native.crs} to {grid.crs} at {grid.transform.a:g} m"
    if any(layer.derived for layer in layers):
        yield "slope derived from the DEM"
    for layer in layers:
        share = share_covered(layer.native, native)
        if share < 1:
            names = " and ".join(layer.names)
            yield f"{names}: {share:.0%} of the scene covered, nothing is mapped elsewhere"


def _sample(scene: Scene, thorough: bool) -> NDArray[np.float32]:
    """Valid spectral values of windows spread over the scene; of the first with any if not ``thorough``.

    Raises:
        InputError: No pixel of the scene is valid, wherever one looks.
    """
    spread, strips = _valid_values(scene, _spread(scene.grid)), _valid_values(scene, _strips(scene.grid))
    found = [*spread] if thorough else [*islice(spread, 1)]
    found = found or [*islice(strips, 1)]
    if not found:
        raise InputError(
            f"{scene.source} has no pixel that is valid in all of its inputs ({', '.join(scene.bands)}). "
            "Check their nodata values, and that the files overlap."
        )
    return np.concatenate(found, axis=1)


def _valid_values(scene: Scene, windows: Iterable[Window]) -> Iterator[NDArray[np.float32]]:
    """Spectral values (C, n) of the valid pixels of each window that has any."""
    spectral = [b for b in scene.bands if b not in TERRAIN_BANDS]
    for window in windows:
        image, valid = scene.read(window, spectral)
        if valid.any():
            yield image[:, valid]


def _spread(grid: Grid) -> Iterator[Window]:
    """Small windows all over the grid."""
    rows, cols = (np.unique(np.linspace(0, max(n - SAMPLE, 0), SAMPLES).astype(int)) for n in grid.shape)
    for row, col in product(rows, cols):
        yield Window(int(col), int(row), min(SAMPLE, grid.width), min(SAMPLE, grid.height))


def _strips(grid: Grid) -> Iterator[Window]:
    """All of the grid."""
    for row in range(0, grid.height, STRIP):
        yield Window(0, row, grid.width, min(STRIP, grid.height - row))
