"""Peak memory and time of `l4s-map` on a synthetic scene of any height; further options go to the command.

python examples/memory.py 5000 --preset fast --overlap 0
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from l4s_geo.data.synthetic import make_scene

#: Width of a Sentinel-2 tile, and side of the landscape that is repeated over it, in pixels.
WIDTH, SIDE = 10980, 2048

BANDS = ("B4", "B3", "B2")


def write_scene(path: Path, rows: int) -> None:
    """One landscape with landslides, mirrored over the width and the height."""
    scene = make_scene(SIDE, SIDE, 5, landslides=True, theme="mixed")
    image = np.clip(np.rint(scene.image[[scene.bands.index(b) for b in BANDS]]), 1, 65535).astype(np.uint16)
    image[:, ~scene.valid] = 0
    mirrored = [image[:, :: (-1) ** i] for i in (0, 1)]
    strips = [np.concatenate([mirrored[(k + i) % 2] for i in range(6)], axis=2)[:, :, :WIDTH] for k in (0, 1)]
    transform = from_origin(300_000, 2_600_000, 10, 10)
    with rasterio.open(
        path, "w", driver="GTiff", width=WIDTH, height=rows, count=len(BANDS), dtype="uint16", nodata=0,
        crs="EPSG:32651", transform=transform, tiled=True, compress="zstd", BIGTIFF="IF_SAFER",
    ) as dst:  # fmt: skip
        dst.descriptions = BANDS
        for k, row in enumerate(range(0, rows, SIDE)):
            height = min(SIDE, rows - row)
            dst.write(strips[k % 2][:, :height], window=Window(0, row, WIDTH, height))


def main() -> None:
    """Make the scene, map it with the installed command, and say what that took."""
    rows, options = int(sys.argv[1]), sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        scene, out = Path(folder) / "scene.tif", Path(folder) / "landslides.gpkg"
        write_scene(scene, rows)
        tool = str(Path(sys.executable).with_name("l4s-map"))
        started = time.perf_counter()
        subprocess.run([tool, str(scene), "--out", str(out), "--no-crf", "-q", *options], check=True)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kB on Linux
    print(f"{rows} x {WIDTH} pixels: peak {peak:.2f} GB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
