"""The whole flow: scene -> normalized patches -> ensemble -> stitched rows -> CRF -> polygons -> files.

Reading, networks, and writing overlap, and what is done is noted, so that a run can be taken up again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from l4s_geo import crf
from l4s_geo.before.scene import Before, Comparison, open_before
from l4s_geo.deliverables import Outputs, check_outputs
from l4s_geo.expectation import doubts
from l4s_geo.inference import Rows
from l4s_geo.journal import Journal, journal, stamp
from l4s_geo.masks import Limits, nothing_left
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.models.registry import Model
from l4s_geo.normalize import Normalizer
from l4s_geo.plan import Here, Plan, Source, computed_on, limits_for, open_for, scene_statistics
from l4s_geo.progress import Progress
from l4s_geo.provenance.command import command_line
from l4s_geo.provenance.record import calibrated, inputs_of, models_used, origin, versions
from l4s_geo.raster import WorkRaster, row_windows
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
from l4s_geo.scene import Scene
from l4s_geo.settings import MapOptions, Settings, agree, decide, normalizer_for
from l4s_geo.threads import ahead
from l4s_geo.vectorize import LAYERS, Layers, vectorize

__all__ = ["MapOptions", "MapResult", "map_scene"]

#: Rows between two notes of what is done, at the least: a note waits for the disk.
NOTED = 512

#: Layer of refined probabilities until it takes the place of the others.
REFINED = "refined"


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
    wanted = Outputs.of(options)
    check_outputs(wanted, options.overwrite)
    models = tuple(registry.find(name) for name in options.models or (registry.DEFAULT,))
    card = agree([m.card for m in models])
    settings = decide(options, [m.card for m in models])
    with (
        limited_cache(),
        open_for(options, card) as scene,
        limits_for(options, scene) as limits,
        _before(options, card, scene, limits) as before,
        _described(options, scene, before) as described,
    ):
        inputs = _inputs(options, scene, before)
        check_outputs(wanted, options.overwrite, crs=scene.native_crs, inputs=inputs)
        check_slope(options.min_slope, scene.bands)
        _check_seen(options, scene, limits)
        asked = _asked(options, models, settings, inputs)
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
                        _refine(scene, plan, raster, settings.crf, notes, progress)
                products = [*products_for(wanted, raster, scene, before.earlier if before else None)]
                shared = {"model": "+".join(m.card.name for m in models), "scene": scene.name, "date": scene.date}
                with clock.stage("polygons"):
                    compared = before.comparison(raster, LAYERS[0], settings.threshold) if before else None
                    found = vectorize(
                        raster,
                        scene,
                        scene.native_crs,
                        shared,
                        threshold=settings.threshold,
                        min_area=settings.min_area,
                        min_slope=settings.min_slope,
                        max_hole=settings.max_hole,
                        simplify=settings.simplify,
                        products=products,
                        compared=compared,
                        old="flag" if options.pre_action == "flag" else "drop",
                    )
                record = _provenance(plan, scene, limits, compared, found) | {"inputs": described.result()}
                if isinstance(source, Here):  # else other machines have computed
                    record["computed"] = computed_on(options)
                return write_all(wanted, found, record, clock, raster=raster, products=products)


def _check_seen(options: MapOptions, scene: Scene, limits: Limits) -> None:
    """Raises InputError where no valid pixel lies within the limits."""
    for window in row_windows(scene.grid) if limits else ():
        wanted = limits.inside(window) & limits.clear(window)
        if wanted.any() and (wanted & scene.read(window)[1]).any():
            return
    if limits:
        raise nothing_left(scene.source, options.aoi, options.masks)


def _before(options: MapOptions, card: Card, scene: Scene, limits: Limits) -> AbstractContextManager[Before | None]:
    """What to compare the scene with, if anything."""
    if options.pre is None:
        return nullcontext()
    return open_before(
        options.pre,
        scene,
        limits,
        wanted=card.bands,
        bands=options.bands,
        units=options.units,
        scl=options.scl,
        clouds=options.clouds,
    )


def _inputs(options: MapOptions, scene: Scene, before: Before | None) -> tuple[str | None, ...]:
    """What the result depends on: files, or where statistics come from."""
    earlier = before.earlier.paths if before else ()
    return *scene.paths, *earlier, options.dem, options.slope, options.aoi, *options.masks, options.normalize


def _described(
    options: MapOptions, scene: Scene, before: Before | None
) -> AbstractContextManager[Future[dict[str, Any]]]:
    """The inputs as the record has them, by the names of options."""
    return inputs_of(
        {"scene": scene.paths, "pre": before.earlier.paths if before else ()},
        scene=options.scene,
        pre=options.pre,
        dem=options.dem,
        slope=options.slope,
        aoi=options.aoi,
        masks=options.masks,
    )


def _asked(
    options: MapOptions, models: Iterable[Model], settings: Settings, files: Iterable[str | None]
) -> dict[str, Any]:
    """What makes the result what it is."""
    hidden = ("out", "resume", "overwrite", "workers")
    inputs = (options.scene, options.pre, *files)
    groups: dict[str, dict[str, Any]] = {
        "option": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k not in hidden},
        "setting": asdict(settings),
        "model": {m.card.name: [n.sha256 for n in m.card.networks] for m in models},
        "calibration of": {m.card.name: m.card.calibration for m in models},
        "input": {str(path): stamp(path) for path in inputs if path is not None},
        "version of": versions(),
    }
    return {f"{group} {name}": value for group, values in groups.items() for name, value in values.items()}


def _normalizer(options: MapOptions, card: Card, scene: Scene, limits: Limits, folder: Path) -> Normalizer:
    """Found once in a run, however often it is taken up."""
    kept = folder / "normalizer.json"
    if not kept.exists():
        known = options.decided.normalizer
        found = known or normalizer_for(options.normalize, card, lambda: scene_statistics(scene, card, limits))
        found.select(card.bands).save(kept)
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


def _refine(
    scene: Scene,
    plan: Plan,
    raster: WorkRaster,
    params: crf.CrfParams,
    notes: Journal,
    progress: Progress,
) -> None:
    """Put refined probabilities in place of those of the networks, which stay: blocks are read around themselves.

    The CRF weighs what the image says against what the networks say, so it gets that, and its answer is calibrated.
    """
    h, w = scene.grid.shape
    first = notes.done("crf")
    normalizer, calibrations = plan.normalizer, plan.calibrations

    def image(window: Window) -> NDArray[np.uint8]:
        x, valid = scene.read(window, normalizer.bands)
        return crf.to_uint8(normalizer(x, valid)[:3])

    def prob(window: Window) -> NDArray[np.float32]:
        said: NDArray[np.float32] = calibrations.inverse(raster.read(window, LAYERS[0])).astype(np.float32, copy=False)
        return said

    progress.start("refining", h * w)
    progress.advance(first * w)
    with closing(crf.refine_blocks(h, w, prob, image, params, workers=plan.options.workers, first=first)) as blocks:
        for window, values in blocks:
            raster.write(window, calibrations.apply(values).astype(np.float32), REFINED)
            progress.advance(values.size)
            done = window.row_off + window.height
            if window.col_off + window.width == w and (done - notes.done("crf") >= NOTED or done == h):
                raster.sync()
                notes.record("crf", done)
    raster.rename(REFINED, LAYERS[0])
    progress.finish()


def _provenance(plan: Plan, scene: Scene, limits: Limits, compared: Comparison | None, found: Layers) -> dict[str, Any]:
    options, settings, models = plan.options, plan.settings, models_used(plan.models)
    expected = round(found.expected_f1, 3) if calibrated(models) else None
    hidden = {f.name for f in fields(Outputs)} | {"resume", "overwrite", "workers", "decided"}
    return {
        "record": origin("map") | {"repeats": options.decided.record},
        "versions": versions(),
        "options": {k: v for k, v in asdict(options).items() if k not in hidden},
        "command": command_line("map", "scene", options),
        "scene": {
            "name": scene.name,
            "date": scene.date,
            "bands": list(scene.bands),
            "units": scene.units,
            "crs": scene.grid.crs.to_string(),
            "native_crs": scene.native_crs.to_string(),
            "transform": list(scene.grid.transform)[:6],
            "size": [scene.grid.width, scene.grid.height],
        },
        "models": models,
        "normalization": plan.normalizer.to_dict(),
        "settings": asdict(settings) | {"device": options.device, "dtype": options.dtype, "clouds": options.clouds},
        **({} if compared is None else {"pre": compared.record() | {"action": options.pre_action}}),
        "seen_share": round(found.seen_share, 6),
        "area_m2": ground_area(scene.grid),
        "expected_f1": expected,
        "notes": [
            *options.decided.notes,
            *scene.notes,
            *limits.notes,
            *settings.notes,
            *slope_notes(settings.min_slope, scene),
            *pre_notes(compared, options.pre_action),
            *doubts(expected),
        ],
    }
