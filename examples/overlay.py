"""Draw mapped landslides over their scene, beside the labels if there are any.

python examples/overlay.py SCENE LANDSLIDES.gpkg PICTURE.png [--labels LABELS.tif]
"""

from __future__ import annotations

import argparse
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from l4s_geo.scene import open_scene


def colours(scene: str) -> tuple[np.ndarray, list[float], Any]:
    """The scene as an RGB picture stretched for the eye, its extent and its CRS."""
    with open_scene(scene) as opened:
        image, valid = opened.read(opened.grid.window(), ("B4", "B3", "B2"))
        low, high = np.percentile(image[:, valid], (1, 99), axis=1)
        picture = np.clip((image - low[:, None, None]) / (high - low)[:, None, None], 0, 1)
        picture[:, ~valid] = 1
        left, bottom, right, top = opened.grid.bounds
        return picture.transpose(1, 2, 0), [left, right, bottom, top], opened.grid


def truth(path: str, grid: Any) -> np.ndarray:
    """Labels on the scene's grid: 0, 1, 255."""
    with rasterio.open(path) as f:
        place = {"crs": grid.crs, "transform": grid.transform, "width": grid.width, "height": grid.height}
        with WarpedVRT(f, resampling=Resampling.nearest, nodata=255, **place) as vrt:
            return vrt.read(1)


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene")
    parser.add_argument("landslides")
    parser.add_argument("picture")
    parser.add_argument("--labels")
    args = parser.parse_args()

    image, extent, grid = colours(args.scene)
    polygons = gpd.read_file(args.landslides, layer="landslides").to_crs(grid.crs)
    panels = ["scene", "mapped", "labels"] if args.labels else ["scene", "mapped"]
    shape = image.shape[0] / image.shape[1]
    figure = Figure(figsize=(7 * len(panels), 7 * shape + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image, extent=extent, interpolation="nearest")
        if name == "mapped" and len(polygons):
            polygons.boundary.plot(ax=axes, color="red", linewidth=0.7)
        if name == "labels":
            labels = truth(args.labels, grid)
            axes.contour(labels == 1, [0.5], colors="yellow", linewidths=0.7, extent=extent, origin="upper")
            axes.imshow(np.ma.masked_where(labels != 255, labels), extent=extent, cmap="gray", alpha=0.5)
        axes.set(title=name, xlabel="", ylabel="", xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    figure.savefig(args.picture, dpi=70)


if __name__ == "__main__":
    main()
