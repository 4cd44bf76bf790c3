"""Polygons again from a probability raster, with other thresholds and without any network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from l4s_geo.before.scene import BANDS, Before, open_before
from l4s_geo.deliverables import Outputs, check_outputs
from l4s_geo.errors import InputError, reason
from l4s_geo.expectation import doubts
from l4s_geo.masks import Limited, Limits, nothing_left, open_limits
from l4s_geo.progress import Progress
from l4s_geo.provenance.command import command_line
from l4s_geo.provenance.record import calibrated, inputs_of, origin, versions
from l4s_geo.results import (
    Clock,
    MapResult,
    check_slope,
    ground_area,
    limited_cache,
    pre_notes,
    products_for,
    slope_notes,
    write_all,
)
from l4s_geo.scene import Grid, open_scene, open_terrain
from l4s_geo.settings import PRESETS
from l4s_geo.vectorize import LAYERS, Layers, vectorize


@dataclass(frozen=True)
class PolygonizeOptions:
    """What ``polygonize`` takes; fields as in ``MapOptions``.

    Without a threshold the raster's own one is used, and without a ``scene``, which only ``pre`` needs, the one that
    the raster says it was made of.
    """

    prob: Path
    out: Path
    threshold: float | None = None
    min_area: float | None = None
    min_slope: float | None = None
    max_hole: float | None = None
    simplify: float = 0.0
    dem: str | None = None
    slope: str | None = None
    aoi: str | None = None
    masks: tuple[str, ...] = ()
    pre: str | None = None
    pre_action: str = "drop"
    scene: str | None = None
    density: Path | None = None
    report: Path | None = None
    quicklook: Path | None = None
    overwrite: bool = False


class ProbabilityRaster:
    """A probability raster that ``map --prob`` wrote, or any single-band one with values from 0 to 1.

    Args:
        path: Of the raster.

    Raises:
        InputError: It is no such raster.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = rasterio.open(path, num_threads="all_cpus")  # to decompress
        except RasterioError as e:
            raise InputError(
                f"{path} cannot be read as a raster: {reason(e)}. Give one that `l4s-map --prob` wrote."
            ) from e
        f = self._file
        if f.descriptions[: len(LAYERS)] != LAYERS and f.count != 1:
            bands = ", ".join(str(d) for d in f.descriptions)
            f.close()
            raise InputError(f"{path} has the bands {bands}, not {', '.join(LAYERS)}: it is no probability raster.")
        if f.crs is None or np.dtype(f.dtypes[0]).kind != "f":
            f.close()
            raise InputError(f"{path} is no probability raster: it needs a CRS and floating-point values from 0 to 1.")
        self.grid = Grid(f.crs, f.transform, f.width, f.height)
        self.tags: dict[str, str] = f.tags()
        self._nan = f.mask_flag_enums[0] == [MaskFlags.nodata] and bool(np.isnan(f.nodata))

    def read(self, window: Window, layer: str) -> NDArray[np.float32]:
        """One layer (h, w), NaN where not seen; a single-band raster has no agreement and uncertainty (NaN)."""
        index = LAYERS.index(layer) + 1
        if index > self._file.count:
            return np.full((int(window.height), int(window.width)), np.nan, np.float32)
        try:
            # A mask costs time and says nothing new where nodata is NaN, as in what `--prob` writes
            read = self._file.read(index, window=window, masked=not self._nan)
        except RasterioError as e:
            raise InputError(f"{self.path} is damaged: {reason(e)}. Make it again with `l4s-map --prob`.") from e
        values: NDArray[np.float32] = np.ma.filled(read, np.nan).astype(np.float32, copy=False)
        if (values < 0).any() or (values > 1).any():
            raise InputError(
                f"{self.path} has values from {np.nanmin(values):g} to {np.nanmax(values):g}; "
                "probabilities lie in 0..1."
            )
        return values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def polygonize(options: PolygonizeOptions, progress: Progress) -> MapResult:
    """Make polygons of a probability raster.

    Raises:
        InputError: It is no probability raster, or has no threshold of its own and none was given.
        OutputError: The output cannot be written.
    """
    clock = Clock()
    wanted = Outputs(options.out, density=options.density, report=options.report, quicklook=options.quicklook)
    check_outputs(wanted, options.overwrite)
    with (
        limited_cache(),
        ProbabilityRaster(options.prob) as raster,
        open_limits(raster.grid, str(options.prob), options.aoi, options.masks) as limits,
        ExitStack() as stack,
    ):
        made = json.loads(raster.tags.get("PROVENANCE", "{}"))
        before = stack.enter_context(_before(options, raster, limits, made)) if options.pre else None
        both = (*before.scene.paths, *before.earlier.paths) if before else ()
        described = stack.enter_context(_described(options, before))
        inputs = (options.prob, *both, options.dem, options.slope, options.aoi, *options.masks)
        check_outputs(wanted, options.overwrite, crs=raster.grid.crs, inputs=inputs)
        terrain = None
        if options.dem or options.slope:
            terrain = stack.enter_context(open_terrain(raster.grid, dem=options.dem, slope=options.slope))
        check_slope(options.min_slope, terrain.bands if terrain else ())
        settings = {"threshold": _threshold(options, raster)} | _filters(options)
        scene = made.get("scene", {})
        model = "+".join(m["name"] for m in made.get("models", [])) or None
        shared = {"model": model, "scene": scene.get("name", options.prob.stem), "date": scene.get("date")}
        progress.start("polygons", 1)
        with clock.stage("polygons"):
            seen = Limited(raster, limits) if limits else raster
            shown = (before.scene, before.earlier) if before else (terrain, None)
            products = [*products_for(wanted, seen, *shown)]
            compared = before.comparison(seen, LAYERS[0], settings["threshold"]) if before else None
            layers = vectorize(
                seen,
                terrain,
                raster.grid.crs,
                shared,
                **settings,
                products=products,
                compared=compared,
                old="flag" if options.pre_action == "flag" else "drop",
            )
        progress.finish()
        if limits and not layers.seen_share:
            raise nothing_left(str(options.prob), options.aoi, options.masks)
        record = _provenance(options, raster, settings, made, layers) | {"inputs": described.result()}
        if compared:
            record["pre"] = compared.record() | {"action": options.pre_action}
        notes = [*limits.notes, *slope_notes(settings["min_slope"], terrain), *pre_notes(compared, options.pre_action)]
        notes += doubts(record["expected_f1"])
        if "pre" in made and compared is None:
            notes.append("the map was compared with a scene from before; these polygons are not, without --pre")
        return write_all(wanted, layers, record | {"notes": notes}, clock, products=products)


@contextmanager
def _before(
    options: PolygonizeOptions, raster: ProbabilityRaster, limits: Limits, made: dict[str, Any]
) -> Iterator[Before]:
    """The scene of the raster and the one from before."""
    path = options.scene or made.get("inputs", {}).get("scene", {}).get("path")
    if not path:
        raise InputError(
            f"--pre compares with the scene that {options.prob} was made of, and it does not say which that was. Give "
            "--scene too."
        )
    clouds = bool(made.get("settings", {}).get("clouds"))
    units = made.get("scene", {}).get("units", "auto")
    try:
        scene = open_scene(path, units=units, clouds=clouds, wanted=BANDS, grid=raster.grid)
    except InputError as e:
        raise InputError(f"--pre compares with the scene that {options.prob} was made of: {e}") from e
    with scene, open_before(str(options.pre), scene, limits, wanted=scene.bands, units=units, clouds=clouds) as before:
        yield before


def _described(options: PolygonizeOptions, before: Before | None) -> AbstractContextManager[Future[dict[str, Any]]]:
    """The inputs as the record has them, by the names of options."""
    return inputs_of(
        {"scene": before.scene.paths, "pre": before.earlier.paths} if before else {},
        prob=options.prob,
        scene=options.scene,
        pre=options.pre,
        dem=options.dem,
        slope=options.slope,
        aoi=options.aoi,
        masks=options.masks,
    )


def _filters(options: PolygonizeOptions) -> dict[str, float]:
    """What makes polygons, where it is not given as in the preset ``balanced``."""
    balanced = PRESETS["balanced"]
    return {
        "min_area": balanced.min_area if options.min_area is None else options.min_area,
        "min_slope": balanced.min_slope if options.min_slope is None else options.min_slope,
        "max_hole": balanced.max_hole if options.max_hole is None else options.max_hole,
        "simplify": options.simplify,
    }


def _threshold(options: PolygonizeOptions, raster: ProbabilityRaster) -> float:
    if options.threshold is not None:
        return options.threshold
    try:
        return float(raster.tags["THRESHOLD"])
    except (KeyError, ValueError) as e:
        raise InputError(f"{raster.path} does not say which threshold fits it. Give --threshold.") from e


def _provenance(
    options: PolygonizeOptions,
    raster: ProbabilityRaster,
    settings: dict[str, float],
    made: dict[str, Any],
    found: Layers,
) -> dict[str, Any]:
    return {
        "record": origin("polygonize"),
        "versions": versions(),
        "command": command_line("polygonize", "prob", options),
        "settings": settings,
        "area_m2": ground_area(raster.grid),
        "seen_share": round(found.seen_share, 6),
        "expected_f1": round(found.expected_f1, 3) if calibrated(made.get("models", [])) else None,
        "probabilities": made,
    }
