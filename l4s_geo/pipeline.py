"""The whole flow: scene -> normalized patches -> ensemble -> stitched rows -> CRF -> polygons -> files."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from l4s_geo import crf
from l4s_geo.errors import InputError
from l4s_geo.inference import Ensemble, Patch, choose_device, choose_dtype, predict
from l4s_geo.models import registry
from l4s_geo.models.card import Card
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
    workspace,
    write_all,
)
from l4s_geo.scene import Scene, open_scene
from l4s_geo.settings import MapOptions, Settings, agree, decide, normalizer_for
from l4s_geo.tiling import PATCH, Tiling

__all__ = ["MapOptions", "MapResult", "map_scene", "scene_statistics", "summarize"]


def map_scene(options: MapOptions, progress: Progress) -> MapResult:
    """Map the landslides of a scene.

    Raises:
        InputError: The scene or an option cannot be used.
        ModelError: A model cannot be used.
        OutputError: An output cannot be written; what was there before is untouched.
    """
    clock = Clock()
    check_outputs(options.out, options.prob, options.overwrite)
    models = [registry.find(name) for name in options.models or (registry.DEFAULT,)]
    card = agree([m.card for m in models])
    settings = decide(options, [m.card for m in models])
    with limited_cache(), workspace(options.out) as work, _open(options, card) as scene:
        inputs = (*scene.paths, options.dem, options.slope)
        check_outputs(options.out, options.prob, options.overwrite, scene.native_crs, inputs)
        with clock.stage("statistics"):
            normalizer = normalizer_for(options.normalize, card, lambda: scene_statistics(scene, card))
        ensemble = _ensemble(models, card, settings, options)
        with WorkRaster(work / "prob.tif", scene.grid, LAYERS) as raster:
            with clock.stage("networks"):
                seen = _predict(scene, normalizer, ensemble, settings, raster, options, progress)
            if settings.crf is not None:
                with clock.stage("crf"):
                    _refine(scene, normalizer, raster, work, settings.crf, progress)
            origin = {"model": "+".join(m.card.name for m in models), "scene": scene.name, "date": scene.date}
            with clock.stage("polygons"):
                layers = vectorize(
                    raster,
                    scene,
                    scene.native_crs,
                    origin,
                    threshold=settings.threshold,
                    min_area=settings.min_area,
                    max_hole=settings.max_hole,
                    simplify=settings.simplify,
                )
            record = _provenance(options, settings, scene, normalizer, models, seen)
            return write_all(options.out, layers, record, clock, options.prob, raster)


def _open(options: MapOptions, card: Card) -> Scene:
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


def _ensemble(models: list[Model], card: Card, settings: Settings, options: MapOptions) -> Ensemble:
    device = choose_device(options.device)
    networks = [registry.load_network(m, n) for m in models for n in m.card.networks]
    return Ensemble(networks, device, choose_dtype(options.dtype, device), tta=settings.tta)


def _predict(
    scene: Scene,
    normalizer: Normalizer,
    ensemble: Ensemble,
    settings: Settings,
    raster: WorkRaster,
    options: MapOptions,
    progress: Progress,
) -> float:
    """Fill the raster with the ensemble's mean, agreement and spread.

    Returns:
        Share of the scene's pixels that were seen.
    """
    tiling = Tiling(*scene.grid.shape, PATCH, settings.stride)
    valid_rows: deque[NDArray[np.bool_]] = deque()  # read, but not yet written

    def read(row: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        image, valid = scene.read(Window(0, row, scene.grid.width, rows), normalizer.bands)
        valid_rows.extend(valid)
        return normalizer(image, valid), valid

    progress.start("mapping", scene.grid.height)
    done = 0

    def on_batch(patch: Patch) -> None:
        nonlocal done
        progress.advance(patch.row - done)
        done = patch.row

    batch = options.batch_size or (128 if ensemble.device.type == "cuda" else 16)
    pixels = 0
    for row, members in predict(read, tiling, ensemble, batch_size=batch, on_batch=on_batch):
        rows = members.shape[1]
        seen = np.stack([valid_rows.popleft() for _ in range(rows)])
        pixels += int(seen.sum())
        raster.write(Window(0, row, scene.grid.width, rows), summarize(members, seen, settings.threshold))
    progress.advance(scene.grid.height - done)
    progress.finish()
    return pixels / (scene.grid.height * scene.grid.width)


def summarize(members: NDArray[np.float32], seen: NDArray[np.bool_], threshold: float) -> NDArray[np.float32]:
    """Members (M, h, w) to probability, agreement and uncertainty (3, h, w), NaN where not seen.

    Agreement is the share of members at or over the threshold, uncertainty their standard deviation.
    """
    mean = members.mean(axis=0)
    agreement = (members >= threshold).mean(axis=0, dtype=np.float32)
    spread = np.sqrt(np.maximum((members**2).mean(axis=0) - mean**2, 0))
    found: NDArray[np.float32] = np.where(seen, np.stack([mean, agreement, spread]), np.float32(np.nan))
    return found


def _refine(
    scene: Scene,
    normalizer: Normalizer,
    raster: WorkRaster,
    work: Path,
    params: crf.CrfParams,
    progress: Progress,
) -> None:
    """Replace the probabilities by refined ones; blocks read around themselves, so they are written elsewhere first."""
    h, w = scene.grid.shape

    def image(window: Window) -> NDArray[np.uint8]:
        x, valid = scene.read(window, normalizer.bands)
        return crf.to_uint8(normalizer(x, valid)[:3])

    def prob(window: Window) -> NDArray[np.float32]:
        return raster.read(window, "probability")

    progress.start("refining", h * w)
    with WorkRaster(work / "refined.tif", scene.grid, ("probability",)) as refined:
        for window, values in crf.refine_blocks(h, w, prob, image, params):
            refined.write(window, values, "probability")
            progress.advance(values.size)
        for window in row_windows(scene.grid):
            raster.write(window, refined.read(window, "probability"), "probability")
    progress.finish()


def _provenance(
    options: MapOptions,
    settings: Settings,
    scene: Scene,
    normalizer: Normalizer,
    models: list[Model],
    seen: float,
) -> dict[str, Any]:
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
            for m in models
        ],
        "normalization": normalizer.to_dict(),
        "settings": asdict(settings) | {"device": options.device, "dtype": options.dtype},
        "seen_share": round(seen, 6),
        "area_m2": ground_area(scene.grid),
        "notes": [*scene.notes, *settings.notes],
    }
