"""What decides which probabilities a scene gets, and the rows of a scene by such a plan."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from l4s_geo.calibration import Calibrations
from l4s_geo.ensemble import Ensemble, choose_devices, choose_dtype
from l4s_geo.errors import InputError
from l4s_geo.inference import ReadRows, Rows, predict
from l4s_geo.masks import EVERYWHERE, Limits, open_limits
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.models.fold import for_inference
from l4s_geo.models.registry import Model
from l4s_geo.normalize import Normalizer, RobustStats
from l4s_geo.raster import row_windows, sample_windows
from l4s_geo.scene import Scene, open_scene
from l4s_geo.settings import MapOptions, Settings, calibrations_of
from l4s_geo.tiling import PATCH, Tiling


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

    @property
    def calibrations(self) -> Calibrations:
        """Of the models."""
        return calibrations_of([m.card for m in self.models])

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
        calibrations = self.calibrations
        with limits_for(self.options, scene) as limits:
            found = predict(
                self.reader(scene, limits),
                Tiling(*scene.grid.shape, PATCH, self.settings.stride),
                ensemble,
                batch_size=self.options.batch_size,
                normalizer=self.normalizer,
                reduce=lambda members: summarize(members, self.settings.threshold, calibrations),
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
        clouds=options.clouds,
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


def computed_on(options: MapOptions) -> dict[str, Any]:
    """Where this process computes with such options, and in which number format; results differ a little by both."""
    devices = choose_devices(options.device)
    dtype = choose_dtype(options.dtype, devices[0])
    return {"devices": [str(device) for device in devices], "dtype": str(dtype).removeprefix("torch.")}


def limits_for(options: MapOptions, scene: Scene) -> AbstractContextManager[Limits]:
    """Where the options say to look in a scene."""
    return open_limits(scene.grid, scene.source, options.aoi, options.masks)


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


def summarize(members: Tensor, threshold: float, calibrations: Calibrations) -> Tensor:
    """Members (M, h, w) to probability, agreement and uncertainty (3, h, w).

    All is calibrated. Agreement is the share of members at or over the threshold, uncertainty their standard deviation.
    """
    prob, members = calibrations.mean(members), calibrations.members(members)
    agreement = (members >= threshold).float().mean(0)
    # torch's std takes fifty times as long along this axis
    spread = (members - members.mean(0)).square_().mean(0).sqrt_()
    return torch.stack([prob, agreement, spread])
