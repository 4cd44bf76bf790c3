"""The whole flow: scene -> normalized patches -> ensemble -> stitched rows -> CRF -> polygons -> files.

Reading, networks, and writing overlap, and what is done is noted, so that a run can be taken up again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from l4s_geo import crf
from l4s_geo.ensemble import Ensemble, choose_devices, choose_dtype
from l4s_geo.errors import InputError
from l4s_geo.inference import ReadRows, Rows, predict
from l4s_geo.journal import Journal, journal, stamp
from l4s_geo.masks import EVERYWHERE, Limits, nothing_left, open_limits
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
    check_slope,
    ground_area,
    input_files,
    limited_cache,
    slope_notes,
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

    def reader(self, scene: Scene, limits: Limits = EVERYWHERE) -> ReadRows:
        """Reads what the networks want to see, before it is standardized.

        Every patch that meets the area of interest is whole, so that inside nothing depends on where it ends.
        """

        def read(row: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
            window = Window(0, row, scene.grid.width, rows)
            wanted = limits.inside(window, PATCH - 1)
            if not wanted.any():
                return np.zeros((len(self.normalizer.bands), *wanted.shape), np.float32), wanted
            image, valid = scene.read(window, self.normalizer.bands)
            return image, valid & wanted & limits.clear(window)

        return read

    def rows(self, scene: Scene, ensemble: Ensemble, first: int = 0, end: int | None = None) -> Generator[Rows]:
        """``LAYERS`` of scene rows from ``first`` to before ``end``; they do not depend on where one begins."""
        with limits_for(self.options, scene) as limits:
            found = predict(
                self.reader(scene, limits),
                Tiling(*scene.grid.shape, PATCH, self.settings.stride),
                ensemble,
                batch_size=self.options.batch_size,
                normalizer=self.normalizer,
                reduce=lambda members: summarize(members, self.settings.threshold),
                first=first,
                end=end,
            )
            with closing(found):
                for rows in found:
                    seen = rows.seen & limits.inside(Window(0, rows.row, scene.grid.width, len(rows.seen)))
                    yield Rows(rows.row, np.where(seen, rows.values, np.float32(np.nan)), seen)


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
    check_outputs(options.out, options.overwrite, prob=options.prob, density=options.density)
    models = tuple(registry.find(name) for name in options.models or (registry.DEFAULT,))
    card = agree([m.card for m in models])
    settings = decide(options, [m.card for m in models])
    with limited_cache(), open_for(options, card) as scene, limits_for(options, scene) as limits:
        check_outputs(
            options.out,
            options.overwrite,
            prob=options.prob,
            density=options.density,
            crs=scene.native_crs,
            inputs=_inputs(options, scene),
        )
        check_slope(options.min_slope, scene.bands)
        _check_seen(options, scene, limits)
        asked = _asked(options, models, settings, scene)
        with journal(options.out, asked, resume=options.resume, overwrite=options.overwrite) as notes:
            with clock.stage("statistics"):
                plan = Plan(options, models, settings, _normalizer(options, card, scene, limits, notes.folder))
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
                        min_slope=settings.min_slope,
                        max_hole=settings.max_hole,
                        simplify=settings.simplify,
                        density=options.density is not None,
                    )
                record = _provenance(plan, scene, limits, found.seen_share)
                return write_all(options.out, found, record, clock, options.prob, raster, options.density)


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
        s2_offset=options.s2_offset,
        scl=options.scl,
        wanted=card.bands,
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


def limits_for(options: MapOptions, scene: Scene) -> AbstractContextManager[Limits]:
    """Where the options say to look in a scene."""
    return open_limits(scene.grid, scene.source, options.aoi, options.masks)


def _check_seen(options: MapOptions, scene: Scene, limits: Limits) -> None:
    """Raises InputError where no valid pixel lies within the limits."""
    for window in row_windows(scene.grid) if limits else ():
        wanted = limits.inside(window) & limits.clear(window)
        if wanted.any() and (wanted & scene.read(window)[1]).any():
            return
    if limits:
        raise nothing_left(scene.source, options.aoi, options.masks)


def scene_statistics(scene: Scene, card: Card, limits: Limits = EVERYWHERE) -> Normalizer:
    """Robust statistics of the scene itself, from windows spread over it (from all of it where these see nothing).

    Masks count, an area of interest does not: the models learnt from whole regions standardized by themselves, and a
    small area that is all landslide or all forest has other statistics than the region it lies in.
    """
    for windows in (sample_windows(scene.grid), row_windows(scene.grid)):
        stats = RobustStats(card.bands)
        for window in windows:
            image, valid = scene.read(window, card.bands)
            stats.update(image, valid & limits.clear(window))
        if stats.pixels:
            return stats.normalizer(card.compression, f"scene {scene.name}")
    raise InputError(f"{scene.source} has no valid pixel: all of it is nodata or masked. Check nodata and masks.")


def _inputs(options: MapOptions, scene: Scene) -> tuple[str | None, ...]:
    """Files that the result depends on."""
    return *scene.paths, options.dem, options.slope, options.aoi, *options.masks


def _asked(options: MapOptions, models: Iterable[Model], settings: Settings, scene: Scene) -> dict[str, Any]:
    """What makes the result what it is."""
    hidden = ("out", "resume", "overwrite", "workers")
    inputs = (options.scene, *_inputs(options, scene), options.normalize)
    groups: dict[str, dict[str, Any]] = {
        "option": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k not in hidden},
        "setting": asdict(settings),
        "model": {m.card.name: [n.sha256 for n in m.card.networks] for m in models},
        "input": {str(path): stamp(path) for path in inputs if path is not None},
        "version of": versions(),
    }
    return {f"{group} {name}": value for group, values in groups.items() for name, value in values.items()}


def _normalizer(options: MapOptions, card: Card, scene: Scene, limits: Limits, folder: Path) -> Normalizer:
    """Found once in a run, however often it is taken up."""
    kept = folder / "normalizer.json"
    if not kept.exists():
        normalizer_for(options.normalize, card, lambda: scene_statistics(scene, card, limits)).save(kept)
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


def _provenance(plan: Plan, scene: Scene, limits: Limits, seen: float) -> dict[str, Any]:
    options, settings = plan.options, plan.settings
    return {
        "versions": versions(),
        "inputs": input_files(
            scene=options.scene, dem=options.dem, slope=options.slope, aoi=options.aoi, masks=options.masks
        ),
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
        "notes": [*scene.notes, *limits.notes, *settings.notes, *slope_notes(settings.min_slope, scene)],
    }
