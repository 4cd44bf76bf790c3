"""The whole flow: scene -> normalized patches -> ensemble -> stitched rows -> CRF -> polygons -> files.

Reading, networks, and writing overlap, and what is done is noted, so that a run can be taken up again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from l4s_geo import crf
from l4s_geo.errors import InputError
from l4s_geo.inference import Ensemble, ReadRows, Rows, choose_devices, choose_dtype, predict
from l4s_geo.journal import Journal, journal, stamp
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.models.fold import for_inference
from l4s_geo.models.registry import Model
from l4s_geo.normalize import Normalizer, RobustStats
from l4s_geo.progress import Progress
from l4s_geo.raster import WorkRaster, row_windows, sample_windows
from l4s_geo.results import (
    LAYERS,
    Clock,
    MapResult,
    check_outputs,
    file_size,
    ground_area,
    limited_cache,
    vectorize,
    versions,
    write_all,
)
from l4s_geo.scene import Scene, open_scene
from l4s_geo.settings import MapOptions, Settings, agree, decide, normalizer_for
from l4s_geo.threads import ahead
from l4s_geo.tiling import PATCH, Tiling

__all__ = ["MapOptions", "MapResult", "Plan", "map_scene", "scene_statistics", "summarize"]

#: Rows between two notes of what is done, at the least: a note waits for the disk.
NOTED = 512

#: Layer of refined probabilities until it takes the place of the others.
REFINED = "refined"


@dataclass(frozen=True)
class Plan:
    """All that decides which probabilities a scene gets; can be sent to other machines.

    Attributes:
        options: As the user gave them.
        models: Of the ensemble.
        settings: Decided from both.
        normalizer: Of the scene.
    """

    options: MapOptions
    models: tuple[Model, ...]
    settings: Settings
    normalizer: Normalizer

    def open(self) -> Scene:
        """The scene."""
        return open_for(self.options, self.models[0].card)

    def ensemble(self) -> Ensemble:
        """The networks, ready to answer on the devices that the options name."""
        devices = choose_devices(self.options.device)
        networks = [
            for_inference(registry.load_network(m, n), len(m.card.bands)) for m in self.models for n in m.card.networks
        ]
        dtype = choose_dtype(self.options.dtype, devices[0])
        return Ensemble(networks, devices, dtype, tta=self.settings.tta, workers=self.options.workers)

    def reader(self, scene: Scene) -> ReadRows:
        """Reads what the networks want to see, before it is standardized."""
        return lambda row, rows: scene.read(Window(0, row, scene.grid.width, rows), self.normalizer.bands)

    def rows(self, scene: Scene, ensemble: Ensemble, first: int = 0, end: int | None = None) -> Generator[Rows]:
        """``LAYERS`` of scene rows from ``first`` to before ``end``; they do not depend on where one begins."""
        return predict(
            self.reader(scene),
            Tiling(*scene.grid.shape, PATCH, self.settings.stride),
            ensemble,
            batch_size=self.options.batch_size,
            normalizer=self.normalizer,
            reduce=lambda members: summarize(members, self.settings.threshold),
            first=first,
            end=end,
        )


#: Gives the rows of a plan from a scene row on, in any order.
Source = Callable[[Plan, Scene, int], Generator[Rows]]


class Here:
    """Rows computed by this process, which keeps its networks for the next scene."""

    def __init__(self) -> None:
        self._loaded: tuple[object, Ensemble] | None = None

    def __call__(self, plan: Plan, scene: Scene, first: int = 0, end: int | None = None) -> Generator[Rows]:
        """Rows of a plan from ``first`` to before ``end``."""
        wanted = plan.models, plan.settings.tta, plan.options.device, plan.options.dtype, plan.options.workers
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = wanted, plan.ensemble()
        return plan.rows(scene, self._loaded[1], first, end)


def map_scene(options: MapOptions, progress: Progress, source: Source | None = None) -> MapResult:
    """Map the landslides of a scene.

    Args:
        options: What to map, and how.
        progress: Advances by rows.
        source: Where the probabilities are computed; by this process if not given.

    Raises:
        InputError: The scene or an option cannot be used, or an interrupted run was asked for something else.
        ModelError: A model cannot be used.
        OutputError: An output cannot be written; what was there before is untouched.
    """
    clock, source = Clock(), source or Here()
    check_outputs(options.out, options.prob, options.overwrite)
    models = tuple(registry.find(name) for name in options.models or (registry.DEFAULT,))
    card = agree([m.card for m in models])
    settings = decide(options, [m.card for m in models])
    with limited_cache(), open_for(options, card) as scene:
        inputs = (*scene.paths, options.dem, options.slope)
        check_outputs(options.out, options.prob, options.overwrite, scene.native_crs, inputs)
        asked = _asked(options, models, settings, scene)
        with journal(options.out, asked, resume=options.resume, overwrite=options.overwrite) as notes:
            with clock.stage("statistics"):
                plan = Plan(options, models, settings, _normalizer(options, card, scene, notes.folder))
            layers = LAYERS if settings.crf is None else (*LAYERS, REFINED)
            with WorkRaster(notes.folder / "work.raw", scene.grid, layers) as raster:
                with clock.stage("loading"):
                    rows = source(plan, scene, notes.done("networks"))
                with clock.stage("networks"):
                    _fill(raster, rows, notes, progress)
                if settings.crf is not None:
                    with clock.stage("crf"):
                        _refine(scene, plan.normalizer, raster, settings.crf, options.workers, progress)
                origin = {"model": "+".join(m.card.name for m in models), "scene": scene.name, "date": scene.date}
                with clock.stage("polygons"):
                    found = vectorize(
                        raster,
                        scene,
                        scene.native_crs,
                        origin,
                        threshold=settings.threshold,
                        min_area=settings.min_area,
                        max_hole=settings.max_hole,
                        simplify=settings.simplify,
                    )
                return write_all(
                    options.out, found, _provenance(plan, scene, found.seen_share), clock, options.prob, raster
                )


def open_for(options: MapOptions, card: Card) -> Scene:
    """The scene that the options name.

    Raises:
        InputError: It cannot be read, or lacks a band of the model.
    """
    scene = open_scene(
        options.scene,
        bands=options.bands,
        dem=options.dem,
        slope=options.slope,
        resolution=card.resolution_m,
        units=options.units,
    )
    missing = [b for b in card.bands if b not in scene.bands]
    if missing:
        scene.close()
        fitting = [c.name for c in registry.list_models() if set(c.bands) <= set(scene.bands)]
        raise InputError(
            f"{options.scene} has the bands {', '.join(scene.bands)}; model {card.name} also needs "
            f"{', '.join(missing)}. Models that would work: {', '.join(fitting) or 'none of the bundled ones'}. "
            "If the bands are there under other names, give --bands."
        )
    return scene


def scene_statistics(scene: Scene, card: Card) -> Normalizer:
    """Robust statistics of the scene itself, from windows spread over it (from all of it where these see nothing)."""
    for windows in (sample_windows(scene.grid), row_windows(scene.grid)):
        stats = RobustStats(card.bands)
        for window in windows:
            stats.update(*scene.read(window, card.bands))
        if stats.pixels:
            return stats.normalizer(card.compression, f"scene {scene.name}")
    raise InputError(f"{scene.source} has no valid pixel: all of it is nodata or masked. Check nodata and masks.")


def _asked(options: MapOptions, models: Iterable[Model], settings: Settings, scene: Scene) -> dict[str, Any]:
    """What makes the result what it is."""
    hidden = ("out", "resume", "overwrite", "workers")
    inputs = (*scene.paths, options.dem, options.slope, options.normalize)
    groups: dict[str, dict[str, Any]] = {
        "option": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k not in hidden},
        "setting": asdict(settings),
        "model": {m.card.name: [n.sha256 for n in m.card.networks] for m in models},
        "input": {str(path): stamp(path) for path in inputs if path is not None},
        "version of": versions(),
    }
    return {f"{group} {name}": value for group, values in groups.items() for name, value in values.items()}


def _normalizer(options: MapOptions, card: Card, scene: Scene, folder: Path) -> Normalizer:
    """Found once in a run, however often it is taken up."""
    kept = folder / "normalizer.json"
    if not kept.exists():
        normalizer_for(options.normalize, card, lambda: scene_statistics(scene, card)).save(kept)
    return Normalizer.load(kept)


def _fill(raster: WorkRaster, found: Generator[Rows], notes: Journal, progress: Progress) -> None:
    """Fill the raster with the ensemble's mean, agreement and spread, from where an earlier run has stopped."""
    grid = raster.grid
    first = notes.done("networks")
    progress.start("mapping", grid.height)
    progress.advance(first)

    done, beyond = first, dict[int, int]()  # written to the last row without a gap, and pieces further down

    def write(rows: Rows) -> int:
        nonlocal done
        for layer, values in zip(LAYERS, rows.values, strict=True):
            raster.write(Window(0, rows.row, grid.width, len(rows.seen)), values, layer)
        beyond[rows.row] = rows.row + len(rows.seen)
        while done in beyond:
            done = beyond.pop(done)
        if done - notes.done("networks") >= NOTED or done == grid.height:
            raster.sync()
            notes.record("networks", done)
        return len(rows.seen)

    with closing(found), closing(ahead(found, write)) as written:
        for rows in written:
            progress.advance(rows)
    progress.finish()


def summarize(members: Tensor, threshold: float) -> Tensor:
    """Members (M, h, w) to probability, agreement and uncertainty (3, h, w).

    Agreement is the share of members at or over the threshold, uncertainty their standard deviation.
    """
    mean, agreement = members.mean(0), (members >= threshold).float().mean(0)
    spread = (members - mean).square_().mean(0).sqrt_()  # torch's std takes fifty times as long along this axis
    return torch.stack([mean, agreement, spread])


def _refine(
    scene: Scene,
    normalizer: Normalizer,
    raster: WorkRaster,
    params: crf.CrfParams,
    workers: int | None,
    progress: Progress,
) -> None:
    """Put refined probabilities in place of those of the networks, which stay: blocks are read around themselves."""
    h, w = scene.grid.shape

    def image(window: Window) -> NDArray[np.uint8]:
        x, valid = scene.read(window, normalizer.bands)
        return crf.to_uint8(normalizer(x, valid)[:3])

    def prob(window: Window) -> NDArray[np.float32]:
        return raster.read(window, LAYERS[0])

    progress.start("refining", h * w)
    with closing(crf.refine_blocks(h, w, prob, image, params, workers=workers)) as blocks:
        for window, values in blocks:
            raster.write(window, values, REFINED)
            progress.advance(values.size)
    raster.rename(REFINED, LAYERS[0])
    progress.finish()


def _provenance(plan: Plan, scene: Scene, seen: float) -> dict[str, Any]:
    options, settings = plan.options, plan.settings
    inputs = {"scene": options.scene, "dem": options.dem, "slope": options.slope}
    return {
        "versions": versions(),
        "inputs": {k: {"path": v, "bytes": file_size(v)} for k, v in inputs.items() if v is not None},
        "scene": {
            "name": scene.name,
            "date": scene.date,
            "bands": list(scene.bands),
            "units": scene.units,
            "crs": scene.grid.crs.to_string(),
            "transform": list(scene.grid.transform)[:6],
            "size": [scene.grid.width, scene.grid.height],
        },
        "models": [
            {
                "name": m.card.name,
                "version": m.card.version,
                "sha256": {n.name: n.sha256 for n in m.card.networks},
            }
            for m in plan.models
        ],
        "normalization": plan.normalizer.to_dict(),
        "settings": asdict(settings) | {"device": options.device, "dtype": options.dtype},
        "seen_share": round(seen, 6),
        "area_m2": ground_area(scene.grid),
        "notes": [*scene.notes, *settings.notes],
    }
