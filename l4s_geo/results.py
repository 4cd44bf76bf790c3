"""From the probability raster to files: polygons, provenance, summary. Shared by ``map`` and ``polygonize``."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from numpy.typing import NDArray

from l4s_geo import outputs, qgis
from l4s_geo.before.scene import Comparison
from l4s_geo.deliverables import Outputs, check_outputs, kept_style, styles
from l4s_geo.density import Density
from l4s_geo.errors import InputError
from l4s_geo.provenance.record import written
from l4s_geo.raster import Layered, WorkRaster
from l4s_geo.scene import Grid, Scene
from l4s_geo.scene.raster import GDAL_OPTIONS
from l4s_geo.vectorize import LAYERS, Layers, Product


@dataclass(frozen=True)
class MapResult:
    """What was done, for programs and for people."""

    summary: dict[str, Any]
    message: str


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

    drawn = styles(wanted)
    kept = {path for path in drawn if qgis.is_foreign(path)}
    record = record | {"notes": [*record["notes"], *map(kept_style, sorted(kept))]}
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
            from l4s_geo.provenance.stac_item import write_items  # with pystac, which most runs can do without

            write_items(wanted.stac, made, record, raster.grid, summary, until)
        for path in drawn.keys() - kept:
            outputs.write_text(path, qgis.style_file(any(old), drawn[path]), until=until)
        check_outputs(wanted, overwrite=True)  # what has become impossible meanwhile, before the first is in place
    return MapResult(summary, _message(summary))


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
        "expected_f1": record.get("expected_f1"),
        "notes": record["notes"],
        "seconds": {**clock.seconds, "total": round(sum(clock.seconds.values()), 3)},
        "memory_mb": peak_memory(),
    }


def _message(summary: Mapping[str, Any]) -> str:
    seen = f"{summary['seen_share']:.1%} of the scene was seen"
    took = f"{summary['seconds']['total']:.0f} s"
    if summary["expected_f1"] is not None:
        seen += f", expected F1 {summary['expected_f1']:.2f}"
    notes = "".join(f"\nnote: {n}" for n in summary["notes"])
    if not summary["landslides"]:
        return f"No landslides found ({seen}, {took}); an empty layer is in {summary['out']}{notes}"
    area = summary["area_m2"] / 1e4
    return f"{summary['landslides']} landslides, {area:,.1f} ha ({seen}, {took}) in {summary['out']}{notes}"
