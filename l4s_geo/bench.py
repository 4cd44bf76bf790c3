"""How fast the whole command is beside the bare forward passes of the same networks on the same patches."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torch import Tensor

from l4s_geo.data.synthetic import make_scene
from l4s_geo.ensemble import Ensemble, choose_devices, cut_patches, one_core_each
from l4s_geo.errors import L4SError
from l4s_geo.inference import BATCH, batches, cut_strips
from l4s_geo.models import registry
from l4s_geo.outputs import writing
from l4s_geo.plan import Plan, open_for, scene_statistics
from l4s_geo.progress import Progress
from l4s_geo.provenance.command import words
from l4s_geo.results import limited_cache
from l4s_geo.settings import MapOptions, agree, decide, normalizer_for
from l4s_geo.threads import ahead
from l4s_geo.tiling import PATCH, Tiling

#: Side of the piece that synthetic scenes are made of, and of the tiles of their file, in pixels.
PIECE = 512

#: Of synthetic scenes; not 0, which is the slope of flat ground.
NODATA = 65535

#: Patches of a bare run at most; its rate does not depend on more.
SAMPLE = 2048


@dataclass(frozen=True)
class Run:
    """The command and the bare forward passes, one after the other.

    Attributes:
        bare: Patches per second of the forward passes alone.
        wall: Seconds of the command, from its start to its end.
        stages: Seconds of its stages.
        memory: Peak in MB, of the process and of the devices.
    """

    bare: float
    wall: float
    stages: dict[str, float]
    memory: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """Runs on one scene.

    Attributes:
        scene: What was mapped.
        size: Its width and height.
        patches: That hold anything.
        device: Of the networks.
        runs: One per round.
    """

    scene: str
    size: tuple[int, int]
    patches: int
    device: str
    runs: list[Run] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Medians over the rounds, as JSON types."""
        bare = median(r.bare for r in self.runs)
        stages = {name: median(r.stages.get(name, 0.0) for r in self.runs) for name in self.runs[0].stages}
        wall = median(r.wall for r in self.runs)
        parts = {"start and libraries": wall - sum(stages.values())} | stages
        return {
            "scene": self.scene,
            "width": self.size[0],
            "height": self.size[1],
            "patches": self.patches,
            "device": self.device,
            "rounds": len(self.runs),
            "bare_patches_per_second": round(bare, 1),
            "patches_per_second": round(self.patches / wall, 1),
            "seconds": round(wall, 2),
            "bare_seconds": round(self.patches / bare, 2),
            "over_bare": round(median(r.wall * r.bare for r in self.runs) / self.patches, 3),
            "stages_over_bare": round(median(sum(r.stages.values()) * r.bare for r in self.runs) / self.patches, 3),
            "over_bare_by_round": [round(r.wall * r.bare / self.patches, 3) for r in self.runs],
            "share": {name: round(seconds / wall, 4) for name, seconds in parts.items()},
            "memory_mb": {k: max(r.memory[k] for r in self.runs) for k in self.runs[0].memory},
        }


def bench(options: MapOptions, size: tuple[int, int] | None, rounds: int, progress: Progress) -> Bench:
    """Measure.

    Args:
        options: How to map; ``scene`` and ``out`` are not used where a ``size`` is given.
        size: Width and height of a synthetic scene of all bands, made for this; None measures ``options.scene``.
        rounds: Of both, in turns, so that what else the machine does hits both.
        progress: Advances by rounds.

    Raises:
        InputError: The scene or the options cannot be used.
        L4SError: The command failed.
    """
    with tempfile.TemporaryDirectory(prefix="l4s-map-bench-") as folder:
        scene = options.scene if size is None else str(write_large(Path(folder) / "scene.tif", *size, progress))
        wanted = replace(options, scene=scene, out=Path(folder) / "landslides.gpkg", overwrite=True)
        plan, patches, sample, shape = _prepare(wanted)
        ensemble = plan.ensemble()
        device = f"{ensemble.device}, {len(ensemble.replicas)} workers, {str(ensemble.dtype).removeprefix('torch.')}"
        found = Bench("synthetic" if size else scene, shape, patches, device)
        progress.start("measuring", rounds)
        for _ in range(rounds):
            rate = bare_rate(ensemble, sample)
            found.runs.append(Run(rate, *run_command(wanted)))
            progress.advance()
        progress.finish()
    return found


def _prepare(options: MapOptions) -> tuple[Plan, int, list[Tensor], tuple[int, int]]:
    """Plan, number of patches, standardized batches of some of them, and width and height of the scene."""
    models = tuple(registry.find(name) for name in options.models or (registry.DEFAULT,))
    card = agree([m.card for m in models])
    settings = decide(options, [m.card for m in models])
    with limited_cache(), open_for(options, card) as scene:
        normalizer = normalizer_for(options.normalize, card, lambda: scene_statistics(scene, card))
        plan = Plan(options, models, settings, normalizer)
        tiling = Tiling(*scene.grid.shape, PATCH, settings.stride)
        size = options.batch_size or BATCH[choose_devices(options.device)[0].type]
        count, sample, every = 0, list[Tensor](), max(1, len(tiling) // SAMPLE)
        for strip in cut_strips(plan.reader(scene), tiling):
            for number, batch in enumerate(batches(strip, tiling, size)):
                count += len(batch.columns)
                if (strip.row // settings.stride + number) % every == 0:
                    sample.append(cut_patches(batch, PATCH, normalizer, torch.device("cpu")))
        return plan, count, sample, (scene.grid.width, scene.grid.height)


def bare_rate(ensemble: Ensemble, sample: Sequence[Tensor]) -> float:
    """Patches per second of forward passes of batches that wait on the devices, with the ensemble's own threads."""
    placed = {r.device: [x.to(r.device) for x in sample] for r in ensemble.replicas}

    def forward(number: int) -> int:
        return len(ensemble.anywhere(lambda device: placed[device][number]))

    threads = len(ensemble.replicas)
    with one_core_each(ensemble):
        for _ in ahead(range(min(threads, len(sample))), forward, threads=threads):
            pass  # the first passes find the fastest kernels
        started = time.perf_counter()
        done = sum(ahead(range(len(sample)), forward, threads=threads, depth=2 * threads))
        return done / (time.perf_counter() - started)


def run_command(options: MapOptions) -> tuple[float, dict[str, float], dict[str, float]]:
    """Wall seconds of ``l4s-map map`` in a process of its own, seconds of its stages, and its peak memory in MB.

    Raises:
        L4SError: It failed.
    """
    command = [sys.executable, "-m", "l4s_geo", "map", *words("scene", options), "--overwrite", "--json", "-q"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        raise L4SError(f"The command that is measured failed: {done.stderr.strip()}")
    summary = json.loads(done.stdout)
    stages = {name: seconds for name, seconds in summary["seconds"].items() if name != "total"}
    return wall, stages, summary["memory_mb"]


def write_large(path: Path, width: int, height: int, progress: Progress) -> Path:
    """Write a synthetic scene of 14 bands, as large as wanted: one piece, mirrored again and again.

    Raises:
        OutputError: There is no space.
    """
    piece = make_scene(PIECE, PIECE, seed=1)
    image = np.where(piece.valid, piece.image.clip(0, NODATA - 1), NODATA).astype(np.uint16)
    image = np.concatenate([image, image[:, :, ::-1]], axis=2)
    row = np.tile(image, (1, 1, width // (2 * PIECE) + 1))[:, :, :width]
    progress.start(f"making a scene of {width} x {height} pixels", height)
    kind = {"dtype": "uint16", "nodata": NODATA, "crs": piece.crs, "transform": piece.transform}
    layout = {"tiled": True, "blockxsize": PIECE, "blockysize": PIECE, "compress": "deflate", "zlevel": 1}
    more = {"count": len(image), "width": width, "height": height, "bigtiff": "if_safer", "num_threads": "all_cpus"}
    with writing(path), rasterio.open(path, "w", driver="GTiff", **kind, **layout, **more) as file:
        file.descriptions = piece.bands
        for number, top in enumerate(range(0, height, PIECE)):
            rows = min(PIECE, height - top)
            file.write(row[:, :: 1 if number % 2 else -1][:, :rows], window=Window(0, top, width, rows))
            progress.advance(rows)
    progress.finish()
    return path
