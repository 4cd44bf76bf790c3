"""Whole-process time of `l4s-map` on a scene, over the bare forward time of the same patches in the same run.

python examples/speed.py SCENE [--model MODEL]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from l4s_geo.inference import Ensemble, batched, choose_device, choose_dtype, cut_patches
from l4s_geo.models import registry
from l4s_geo.scene import open_scene
from l4s_geo.tiling import Tiling

BATCH = 16


def command_seconds(scene: str, model: str) -> float:
    """Wall time of the installed command, start to end."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "landslides.gpkg")
        tool = str(Path(sys.executable).with_name("l4s-map"))
        started = time.perf_counter()
        subprocess.run([tool, scene, "--model", model, "--out", out, "--no-crf", "--no-tta", "-q"], check=True)
        return time.perf_counter() - started


def forward_seconds(scene: str, name: str) -> tuple[int, float]:
    """Number of patches that the command maps, and the time of their forward passes alone."""
    model = registry.find(name)
    networks = [registry.load_network(model, n) for n in model.card.networks]
    device = choose_device("cpu")
    ensemble = Ensemble(networks, device, choose_dtype("auto", device))
    seconds, patches = 0.0, 0
    with open_scene(scene, resolution=model.card.resolution_m) as opened:

        def read(row: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
            image, valid = opened.read(Window(0, row, opened.grid.width, rows), model.card.bands)
            return (image - 500) / 200, valid

        for batch in batched(cut_patches(read, Tiling(*opened.grid.shape)), BATCH):
            images = np.stack([p.image for p in batch])
            started = time.perf_counter()
            ensemble(images)
            seconds += time.perf_counter() - started
            patches += len(batch)
    return patches, seconds


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene")
    parser.add_argument("--model", default=registry.DEFAULT)
    args = parser.parse_args()
    patches, forward = forward_seconds(args.scene, args.model)
    whole = command_seconds(args.scene, args.model)
    print(f"{patches} patches: forward {forward:.1f} s, command {whole:.1f} s, ratio {whole / forward:.2f}")


if __name__ == "__main__":
    main()
