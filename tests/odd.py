"""A scene whose landslides are known, in every shape that files can have, and a command that is quick to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from l4s_geo.models import registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.normalize import Normalizer

from .conftest import write_raster

BANDS = ("B4", "B3", "B2")

#: Landslides: first row, first column, row and column after the last.
SLIDES = ((12, 10, 32, 40), (44, 40, 58, 56))

SIDE = 72


class Bright(torch.nn.Module):
    """Calls what is brighter than three scales landslide."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([4.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x[:, :1] - np.arcsinh(3.0))


def image(height: int = SIDE, width: int = SIDE, slides: Any = SLIDES) -> NDArray[np.uint16]:
    """Digital numbers (3, h, w): forest, and landslides that are brighter."""
    found = np.random.default_rng(0).normal(500, 50, (3, height, width)).clip(300, 640)
    for top, left, bottom, right in slides:
        found[:, top:bottom, left:right] = 1200
    return found.astype(np.uint16)


def scene(path: Path, values: ArrayLike | None = None, **how: Any) -> str:
    """Write it, or other values, by the name of the path."""
    how = {"names": BANDS} | how
    return str(write_raster(path, image() if values is None else values, **how))


def save_model(folder: Path) -> Path:
    folder.mkdir()
    networks = (registry.save_network(Bright(), folder, "n", "Bright", {}),)
    statistics = Normalizer(BANDS, (500.0,) * 3, (50.0,) * 3, "asinh").to_dict()
    thresholds = {"balanced": 0.5, "recall": 0.4, "precision": 0.6}
    Card(
        "bright", "1", "Apache-2.0", networks, BANDS, "dn", "asinh", statistics, 10.0, thresholds, "none", "model"
    ).save(folder)
    return folder


def patch_zoo() -> None:
    build = zoo.build
    zoo.build = lambda name, args, n: Bright() if name == "Bright" else build(name, args, n)
