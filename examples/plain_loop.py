"""What one would otherwise write: the same networks in a plain loop over windows, beside the command.

python examples/plain_loop.py SCENE [--rows 0-2048] [--rounds 3]

The loop reads a window with rasterio, standardizes it, runs the networks, adds the probabilities up in one array, and
writes that array: same windows, same networks, no threads, batches, blending weights or strips. Windows overlap by half
as in the command. Both are timed from the start of a process to its end, in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import rasterio
import torch
from rasterio.windows import Window

from l4s_geo.models import registry
from l4s_geo.normalize import RobustStats
from l4s_geo.raster import sample_windows
from l4s_geo.scene import open_scene

PATCH, STRIDE = 128, 64


def plain(path: str, out: Path) -> int:
    """Map a scene window by window; returns the number of patches."""
    model = registry.find(registry.DEFAULT)
    networks = [registry.load_network(model, n) for n in model.card.networks]
    stats = RobustStats(model.card.bands)
    with open_scene(path) as scene:
        for window in sample_windows(scene.grid):
            stats.update(*scene.read(window, model.card.bands))
    normalizer = stats.normalizer()
    with rasterio.open(path) as src:
        total = np.zeros(src.shape, np.float32)
        count = np.zeros(src.shape, np.float32)
        profile = {"driver": "GTiff", "width": src.width, "height": src.height, "crs": src.crs}
        bands = [src.descriptions.index(b) + 1 for b in model.card.bands]
        patches = 0
        for row in range(0, src.height - PATCH + 1, STRIDE):
            for col in range(0, src.width - PATCH + 1, STRIDE):
                image = src.read(bands, window=Window(col, row, PATCH, PATCH)).astype(np.float32)
                valid = image.any(axis=0)
                if not valid.any():
                    continue
                x = torch.from_numpy(normalizer(image, valid))[None]
                with torch.inference_mode():
                    p = torch.stack([n(x).sigmoid() for n in networks]).mean(0)[0, 0].numpy()
                total[row : row + PATCH, col : col + PATCH] += p
                count[row : row + PATCH, col : col + PATCH] += 1
                patches += 1
    with rasterio.open(out, "w", count=1, dtype="float32", transform=src.transform, compress="deflate", **profile) as f:
        f.write(total / np.maximum(count, 1), 1)
    return patches


def timed(*command: str) -> float:
    """Seconds of a process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("--rows", default="", help="only these rows, such as 0-2048")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", type=Path, help="only run the loop, and write this file")
    given = parser.parse_args()
    if given.loop:
        print(plain(given.scene, given.loop), "patches")
        return
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene.tif"
        with rasterio.open(given.scene) as src:
            first, end = map(int, given.rows.split("-")) if given.rows else (0, src.height)
            window = Window(0, first, src.width, end - first)
            profile = src.profile | {"height": end - first, "transform": src.window_transform(window)}
            with rasterio.open(scene, "w", **profile) as part:
                part.write(src.read(window=window))
                part.descriptions = src.descriptions
        ratios = []
        for _ in range(given.rounds):
            loop = timed(__file__, str(scene), "--loop", f"{folder}/loop.tif")
            out = ("--out", f"{folder}/map.gpkg", "--prob", f"{folder}/map.tif", "--overwrite", "--no-crf", "-q")
            command = timed("-m", "l4s_geo", "map", str(scene), *out)
            ratios.append(loop / command)
            print(f"plain loop {loop:.1f} s, command {command:.1f} s, ratio {ratios[-1]:.2f}", flush=True)
        print(f"median ratio {median(ratios):.2f}")


if __name__ == "__main__":
    main()
