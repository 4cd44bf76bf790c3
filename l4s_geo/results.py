"""From the probability raster to files: polygons, provenance, summary. Shared by ``map`` and ``polygonize``."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, Self

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from l4s_geo import outputs, qgis, qml
from l4s_geo.before import Comparison
from l4s_geo.density import Density
from l4s_geo.errors import InputError, OutputError
from l4s_geo.paths import exists
from l4s_geo.polygons import Block, Old, scene_polygons
from l4s_geo.raster import STRIP, Layered, WorkRaster, row_windows
from l4s_geo.record import written
from l4s_geo.scene import Grid, Scene
from l4s_geo.scene.raster import GDAL_OPTIONS
from l4s_geo.scene.terrain import aspect_degrees
from l4s_geo.threads import prefetched

#: Pixels of a strip at most: the terrain of a strip takes a hundred bytes a pixel while it is made.
STRIP_PIXELS = 1 << 19

#: Bands of a probability raster.
LAYERS = ("probability", "agreement", "uncertainty")


@dataclass(frozen=True)
class MapResult:
    """What was done, for programs and for people."""

    summary: dict[str, Any]
    message: str


@dataclass(frozen=True)
class Outputs:
    """Files to write; the name of each is that of the option which asks for it."""

    out: Path
    prob: Path | None = None
    density: Path | None = None
    stac: Path | None = None
    report: Path | None = None
    quicklook: Path | None = None

    @classmethod
    def of(cls, options: object) -> Self:
        """Those that the options of ``map`` name."""
        given: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(cls)}
        return cls(**given)

    def asked(self) -> dict[str, Path]:
        """Those that are asked for, by option."""
        return {f"--{f.name}": path for f in fields(self) if (path := getattr(self, f.name)) is not None}

    def made(self) -> dict[str, Path]:
        """Those with a record beside, by option: all but the STAC item, which says where the records are."""
        return {option: path for option, path in self.asked().items() if option != "--stac"}

    def beside(self) -> dict[Path, str]:
        """Files that come with those, and what they are."""
        records = {outputs.record_path(path): f"the provenance of {option}" for option, path in self.made().items()}
        return records | ({} if self.stac is None else {outputs.model_path(self.stac): "the item of the model"})


#: What outputs beside the polygons may be called.
EXTENSIONS = {
    "--prob": outputs.RASTER_EXTENSIONS,
    "--density": outputs.RASTER_EXTENSIONS,
    "--stac": (".json",),
    "--report": (".html", ".htm"),
    "--quicklook": (".png", ".jpg", ".jpeg"),
}

#: What QGIS draws outputs in, or a raster that shares their style file.
RAMPS = {"--out": qml.PROBABILITY, "--prob": qml.PROBABILITY, "--density": qml.DENSITY}


class Product(Protocol):
    """A file beside the polygons that is made of them."""

    def add(self, part: gpd.GeoDataFrame) -> None:
        """Take a part of the landslides, in the CRS of the raster."""

    def write(self, record: Mapping[str, Any], summary: Mapping[str, Any], until: ExitStack) -> None:
        """Write the file from all parts, the provenance and what is said at the end.

        It appears when ``until`` is closed.
        """


@dataclass(frozen=True)
class Layers:
    """Vector layers of a result, in parts that can be taken once, and the share of pixels that were seen."""

    landslides: Iterable[gpd.GeoDataFrame]
    not_seen: Iterable[gpd.GeoDataFrame]
    seen_share: float


@dataclass
class Clock:
    """Wall seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 3)


def limited_cache() -> rasterio.Env:
    """GDAL with a block cache that does not grow with the machine, for all of a run: it can be set only once."""
    return rasterio.Env(**{k: v for k, v in GDAL_OPTIONS.items() if k != "GDAL_NUM_THREADS"})


def check_outputs(
    wanted: Outputs,
    overwrite: bool,
    *,
    crs: CRS | None = None,
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Check all outputs before any work.

    Raises:
        OutputError: One exists and may not be replaced, is an input or another output, or cannot be written.
    """
    asked = wanted.asked()
    for option, path in asked.items():
        outputs.check_output(path, EXTENSIONS.get(option, tuple(outputs.VECTOR_DRIVERS)), crs=crs)
    for path in asked.values():
        same = [other for other, p in asked.items() if p.resolve() == path.resolve()]
        if len(same) > 1:
            raise OutputError(f"{' and '.join(same)} are both {path}. Give one of them another name.")
    for path, what in wanted.beside().items():
        if path.is_dir():
            raise OutputError(f"{path} is a folder where {what} goes. Rename it, or give another name.")
        same = [option for option, p in asked.items() if p.absolute() == path.absolute()]
        if same:
            raise OutputError(f"{same[0]} is {path}, where {what} goes. Give it another name.")
    given = [path for path in inputs if path is not None]
    for option, path in asked.items():
        for file in (path, outputs.record_path(path)):
            if file.exists() and any(exists(p) and file.samefile(p) for p in given):
                raise OutputError(f"{file} is an input and would be lost. Give {option} another name.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists. Give --overwrite to replace it, or another name.")
    if wanted.stac is not None and (model := outputs.model_path(wanted.stac)).exists() and not overwrite:
        raise OutputError(f"{model} exists, where the item of the model goes. Give --overwrite, or another --stac.")
    rasters = [asked[option] for option in ("--prob", "--density") if option in asked]
    if len({qgis.style_path(path) for path in rasters}) < len(rasters):
        shared = qgis.style_path(rasters[0])
        raise OutputError(f"--prob and --density would share their colours in {shared}. Give one another name.")


def products_for(
    wanted: Outputs, raster: Layered, scene: Scene | None = None, before: Scene | None = None
) -> Iterator[Product]:
    """What makes the files beside the polygons that are wanted.

    Args:
        wanted: All outputs.
        raster: Of probabilities.
        scene: Whose image is shown.
        before: Likewise before the event.
    """
    if wanted.density is not None:
        yield Density(wanted.density, raster, LAYERS[0])
    if wanted.report is not None or wanted.quicklook is not None:
        from l4s_geo.report.product import Report

        yield Report(raster, LAYERS[0], page=wanted.report, quicklook=wanted.quicklook, scene=scene, before=before)


def check_slope(min_slope: float | None, bands: Container[str]) -> None:
    """Raises InputError where ``--min-slope`` was given and nothing says how steep the ground is."""
    if min_slope and "slope" not in bands:
        raise InputError("--min-slope needs the slope of the ground. Give --dem or --slope too, or leave it away.")


def slope_notes(min_slope: float, scene: Scene | None) -> list[str]:
    """What the user should know about landslides that are left out because the ground is flat."""
    if not min_slope or scene is None or "slope" not in scene.bands:
        return []
    return [
        f"landslides on ground flatter than {min_slope:g} degrees on average are left out (--min-slope 0 keeps them)"
    ]


def pre_notes(compared: Comparison | None, action: str) -> list[str]:
    """What the user should know about the comparison with a scene from before."""
    if compared is None:
        return []
    told = "are left out (--pre-action flag keeps them)" if action == "drop" else "have `no` in `new`"
    return [*compared.notes(), f"--pre: landslides that were bare ground before {told}"]


def vectorize(
    raster: Layered,
    scene: Scene | None,
    crs: CRS,
    origin: Mapping[str, str | None],
    *,
    threshold: float,
    min_area: float,
    min_slope: float,
    max_hole: float,
    simplify: float,
    products: Sequence[Product] = (),
    compared: Comparison | None = None,
    old: Old = None,
) -> Layers:
    """Polygons of a probability raster, which is read before this returns.

    Args:
        raster: Of probabilities.
        scene: Gives the terrain attributes where it has terrain.
        crs: Of the polygons.
        origin: Attributes that all landslides share.
        threshold: As all below in ``landslide_polygons``.
        min_area: In m2.
        min_slope: In degrees.
        max_hole: In m2.
        simplify: In metres.
        products: Get the landslides too, as they are taken.
        compared: With what was there before.
        old: As in ``scene_polygons``.

    Raises:
        OutputError: The disk is full.
    """
    grid = raster.grid
    found = scene_polygons(
        prefetched(_blocks(raster, scene, compared), depth=1),
        transform=grid.transform,
        crs=grid.crs,
        threshold=threshold,
        min_area_m2=min_area,
        min_slope_deg=min_slope,
        max_hole_m2=max_hole,
        simplify_m=simplify,
        old=None if compared is None else old,
    )

    def landslides() -> Iterator[gpd.GeoDataFrame]:
        for part in found.landslides:
            for product in products:
                product.add(part)
            yield _reproject(part, grid, crs).assign(**origin)

    return Layers(
        landslides(),
        (_reproject(part, grid, crs) for part in found.not_seen),
        found.seen / (grid.width * grid.height),
    )


def _reproject(layer: gpd.GeoDataFrame, grid: Grid, crs: CRS) -> gpd.GeoDataFrame:
    """Polygons in another CRS; across the date line longitudes go on beyond 180, else they would span the globe."""
    if crs == grid.crs:
        return layer
    moved = layer.to_crs(crs.to_wkt())
    if crs.is_geographic and np.ptp(grid.lattice(crs)[0]) > 180:
        beyond = shapely.transform(moved.geometry.values, lambda xy: xy + (xy[:, :1] < 0) * [360, 0])
        moved = moved.set_geometry(gpd.GeoSeries(beyond, index=moved.index, crs=moved.crs))
    return moved


def _blocks(raster: Layered, scene: Scene | None, compared: Comparison | None) -> Iterator[Block]:
    rows = max(16, min(STRIP, STRIP_PIXELS // raster.grid.width))
    for window in row_windows(raster.grid, rows):
        p, agreement, uncertainty = (raster.read(window, layer) for layer in LAYERS)
        terrain = {} if scene is None else _terrain(scene, window)
        now, before = (None, None) if compared is None else compared.contrasts(window)
        yield Block(int(window.row_off), p, agreement, uncertainty, **terrain, now=now, before=before)


def _terrain(scene: Scene, window: Window) -> dict[str, NDArray[np.float32]]:
    """Elevation, slope and aspect of a strip, NaN where unknown; a row more on each side for the aspect."""
    bands = [b for b in ("dem", "slope") if b in scene.bands]
    if not bands:
        return {}
    top = max(0, int(window.row_off) - 1)
    bottom = min(scene.grid.height, int(window.row_off + window.height) + 1)
    outer = Window(0, top, scene.grid.width, bottom - top)
    x, valid = scene.read(outer, bands)
    layers = dict(zip(bands, np.where(valid, x, np.float32(np.nan)), strict=True))
    if "dem" in layers:
        layers["aspect"] = aspect_degrees(x[0], valid, scene.grid.part(outer))
    first = int(window.row_off) - top
    inner = np.s_[first : first + int(window.height)]
    return {name: layer[inner] for name, layer in layers.items()}


def ground_area(grid: Grid) -> float:
    """Area of a grid in m2, from the size of its centre pixel."""
    x, y = grid.pixel_size_m()
    return round(x * y * grid.width * grid.height, 1)


def peak_memory() -> dict[str, float]:
    """Most memory that this process has held so far, in MB: its own (where Linux tells), and that of GPUs."""
    torch = sys.modules.get("torch")  # takes seconds to load, and where no network runs there is nothing to tell
    found: dict[str, float] = {}
    with suppress(OSError):  # not from getrusage, which begins with the peak of the program that has started this one
        most = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        found |= {"process": round(int(most[1]) / 1e3)} if most else {}
    if torch is not None and torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        found["devices"] = round(sum(torch.cuda.max_memory_allocated(d) for d in devices) / 1e6)
    return found


def write_all(
    wanted: Outputs,
    layers: Layers,
    record: dict[str, Any],
    clock: Clock,
    *,
    raster: WorkRaster | None = None,
    products: Sequence[Product] = (),
) -> MapResult:
    """Write every output, its provenance and its colours for QGIS, and say what was found.

    Args:
        wanted: What to write.
        layers: Go into the vector file.
        record: Provenance.
        clock: Stages so far.
        raster: Its ``LAYERS`` go into the probability raster.
        products: Made of the landslides in ``layers``.

    Raises:
        OutputError: One cannot be written; all are then as they were before.
    """
    areas, old = [np.empty(0)], [False]

    def measured() -> Iterator[gpd.GeoDataFrame]:
        for part in layers.landslides:
            areas.append(part["area_m2"].to_numpy())
            old.append(qgis.has_old(part))
            yield part

    styles = _styles(wanted)
    kept = {path for path in styles if qgis.is_foreign(path)}
    record = record | {"notes": [*record["notes"], *map(_kept_style, sorted(kept))]}
    with ExitStack() as until:
        with clock.stage("writing"):
            if wanted.prob is not None and raster is not None:
                tags = {"PROVENANCE": json.dumps(record), "THRESHOLD": str(record["settings"]["threshold"])}
                outputs.write_cog(raster.finish(LAYERS), wanted.prob, tags, until=until)
            outputs.write_vector(wanted.out, measured(), layers.not_seen, until=until)
            for product in products:
                product.write(record, _summary(np.concatenate(areas), record, wanted.out, clock), until)
        summary = _summary(np.concatenate(areas), record, wanted.out, clock)
        made = wanted.made()
        for path in made.values():
            content = record | written(path) | {"result": summary}
            outputs.write_provenance(outputs.record_path(path), content, until=until)
        if wanted.stac is not None and raster is not None:
            from l4s_geo.stac_item import write_items  # with pystac, which most runs can do without

            write_items(wanted.stac, made, record, raster.grid, summary, until)
        for path in styles.keys() - kept:
            outputs.write_text(path, qgis.style_file(any(old), styles[path]), until=until)
    return MapResult(summary, _message(summary))


def _styles(wanted: Outputs) -> dict[Path, Sequence[qml.Stop]]:
    """Style files to write, and how each draws a raster; a GeoPackage has its styles inside."""
    return {
        qgis.style_path(path): RAMPS[option]
        for option, path in wanted.asked().items()
        if option in RAMPS and path.suffix.lower() != ".gpkg"
    }


def _kept_style(path: Path) -> str:
    return f"QGIS takes the colours from {path}, which l4s-map has not written and leaves as it is"


def _summary(areas: NDArray[np.float64], record: Mapping[str, Any], out: Path, clock: Clock) -> dict[str, Any]:
    seen_m2 = record["seen_share"] * record["area_m2"]
    return {
        "out": str(out),
        "landslides": len(areas),
        "area_m2": round(float(areas.sum()), 1),
        "largest_m2": round(float(areas.max()), 1) if len(areas) else 0.0,
        "seen_share": record["seen_share"],
        "landslide_share": round(float(areas.sum()) / seen_m2, 6) if seen_m2 else 0.0,
        "threshold": record["settings"]["threshold"],
        "notes": record["notes"],
        "seconds": {**clock.seconds, "total": round(sum(clock.seconds.values()), 3)},
        "memory_mb": peak_memory(),
    }


def _message(summary: Mapping[str, Any]) -> str:
    seen = f"{summary['seen_share']:.1%} of the scene was seen"
    took = f"{summary['seconds']['total']:.0f} s"
    notes = "".join(f"\nnote: {n}" for n in summary["notes"])
    if not summary["landslides"]:
        return f"No landslides found ({seen}, {took}); an empty layer is in {summary['out']}{notes}"
    area = summary["area_m2"] / 1e4
    return f"{summary['landslides']} landslides, {area:,.1f} ha ({seen}, {took}) in {summary['out']}{notes}"
