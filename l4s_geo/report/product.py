"""The page and the picture of a map, made of its landslides as they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from affine import Affine

from l4s_geo.density import CELL_M, Density
from l4s_geo.outputs import atomic, writing
from l4s_geo.raster import Layered
from l4s_geo.report.frame import Frame
from l4s_geo.report.landslides import Landslides
from l4s_geo.report.pictures import (
    DENSITY,
    LONGEST,
    PROBABILITY,
    Picture,
    Stretch,
    coloured,
    layer_values,
    relief,
    scene_bands,
    shown_bands,
    veil,
)
from l4s_geo.scene import Scene
from l4s_geo.scene.bands import TERRAIN_BANDS


class Report:
    """Writes a page, a picture or both.

    Args:
        raster: Of probabilities.
        layer: Of it, NaN where nothing was seen.
        page: HTML file to write, if wanted.
        quicklook: PNG or JPEG file to write, if wanted.
        scene: Whose image is shown; none where only probabilities are known.
        before: The scene before the event, in the CRS of the raster.
    """

    def __init__(
        self,
        raster: Layered,
        layer: str,
        *,
        page: Path | None = None,
        quicklook: Path | None = None,
        scene: Scene | None = None,
        before: Scene | None = None,
    ) -> None:
        self._raster, self._layer, self._page, self._quicklook = raster, layer, page, quicklook
        self._scene, self._before = scene, before
        self._frame = Frame.of(raster.grid)
        shrunk = -(-max(raster.grid.shape) // LONGEST)
        self._pixel = shrunk * float(np.sqrt(np.prod(raster.grid.pixel_size_m())))
        self._landslides = Landslides(self._frame, self._pixel)
        self._density = None if page is None else Density(page, raster, layer)

    def add(self, part: gpd.GeoDataFrame) -> None:
        """Take a part of the landslides, in the CRS of the raster."""
        self._landslides.add(part)
        if self._density is not None:
            self._density.add(part)

    def write(self, record: Mapping[str, Any], summary: Mapping[str, Any], until: ExitStack) -> None:
        """Write what is wanted; it appears when ``until`` is closed.

        Raises:
            OutputError: It cannot be written. What was there before is untouched.
        """
        from l4s_geo.report.page import Content, page
        from l4s_geo.report.quicklook import quicklook

        densest, density = self._dense()
        pictures = self._photos() | self._drawn() | density
        content = Content(record, summary, self._frame, self._landslides, self._pixel, pictures, densest)
        if self._page is not None:
            temporary = until.enter_context(atomic(self._page))
            with writing(self._page):
                temporary.write_text(page(content), encoding="utf-8")
        if self._quicklook is not None:
            temporary = until.enter_context(atomic(self._quicklook))
            with writing(self._quicklook):
                quicklook(content, temporary)

    def _photos(self) -> dict[str, Picture]:
        """Images before and after, in the same colours; the relief where there is nothing but terrain."""
        photos: dict[str, Picture] = {}
        scenes = {"image": self._scene, "before": self._before}
        if self._scene is not None and {*self._scene.bands} <= {*TERRAIN_BANDS} and "dem" in self._scene.bands:
            values, transform = scene_bands(self._scene, ["dem"])
            return {"relief": Picture(relief(values[0], self._pixel), transform, "shaded elevations")}
        stretch, bands = None, shown_bands(self._scene.bands if self._scene else ())[0]
        for name, scene in scenes.items():
            if scene is None or not bands:
                continue
            values, transform = scene_bands(scene, bands)
            stretch = stretch or Stretch.of(values)
            date = f"{scene.date}, " if scene.date else ""
            photos[name] = Picture(stretch(values), transform, date + shown_bands(bands)[1])
        return dict(sorted(photos.items()))  # what was before lies below

    def _drawn(self) -> dict[str, Picture]:
        """Probability, and what was not seen."""
        values, transform = layer_values(self._raster, self._layer)
        pictures = {"probability": Picture(coloured(values, PROBABILITY, 1.0), transform, "Probability of landslide")}
        if np.isnan(values).any():
            pictures["unseen"] = Picture(veil(np.isnan(values)), transform, "What was not seen")
        return pictures

    def _dense(self) -> tuple[float, dict[str, Picture]]:
        """The share of landslide that is drawn darkest, and the picture of it, if there is a page to show it."""
        if self._density is None or not self._landslides.count:
            return 0.0, {}
        share, grid = self._density.values() / np.float32(1e6), self._raster.grid
        densest = float(np.nanmax(share, initial=0)) or 1.0
        cells = Affine.scale(*(max(1, round(CELL_M / size)) for size in grid.pixel_size_m()))
        pixels = coloured(share, DENSITY, densest)
        return densest, {"density": Picture(pixels, grid.transform * cells, "Landslides per square km")}
