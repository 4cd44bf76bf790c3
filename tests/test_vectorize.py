"""Terrain attributes: read only where landslides are, yet those of the whole scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from l4s_geo.raster import WorkRaster
from l4s_geo.scene import Scene, open_terrain
from l4s_geo.scene.grid import Grid
from l4s_geo.scene.terrain import aspect_degrees, slope_degrees
from l4s_geo.vectorize import LAYERS, PIECE, vectorize

from .conftest import UTM_10M
from .test_terrain import UTM_CRS

SHAPE = (300, 2400)

#: Landslides: in a corner, across strips and pieces and a hole in the elevations, over a whole piece, at the end.
PLACES = (np.s_[:3, :3], np.s_[120:140, 500:520], np.s_[60:64, PIECE : 2 * PIECE], np.s_[290:, 2390:])


def test_terrain_is_that_of_the_whole_scene_but_hardly_any_is_read(
    raster: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dem = np.random.default_rng(0).normal(900, 20, SHAPE).astype(np.float32)
    dem[125:128, 505:509] = np.nan
    prob = np.zeros(SHAPE, np.float32)
    for place in PLACES:
        prob[place] = 0.9

    asked: list[float] = []
    read = Scene.read_terrain
    monkeypatch.setattr(Scene, "read_terrain", lambda s, w: (asked.append(w.width * w.height), read(s, w))[1])
    found = attributes(raster("d.tif", dem, nodata=np.nan), prob, tmp_path / "work.raw")
    assert sum(asked) < 0.4 * prob.size
    assert len(found) == len(PLACES)

    grid, known = Grid(UTM_CRS, UTM_10M, *SHAPE[::-1]), np.isfinite(dem)
    slope, facing = slope_degrees(dem, known, grid), np.radians(aspect_degrees(dem, known, grid, prob > 0))
    for place in PLACES:
        seen = known[place]
        east, north = np.nanmean(np.sin(facing[place])), np.nanmean(np.cos(facing[place]))
        expected = {
            "elev_min": np.nanmin(dem[place]),
            "elev_max": np.nanmax(dem[place]),
            "slope_mean": slope[place][seen].mean(),
            "slope_max": slope[place][seen].max(),
            "aspect_deg": np.degrees(np.arctan2(east, north)) % 360,
        }
        row = found[found["elev_max"] == expected["elev_max"]]
        assert_allclose(row[[*expected]].to_numpy(), [[*expected.values()]], rtol=1e-4)


def attributes(dem: Path, prob: NDArray[np.float32], work: Path) -> pd.DataFrame:
    """Of the landslides that a probability raster shows."""
    grid = Grid(UTM_CRS, UTM_10M, *prob.shape[::-1])
    filters = {"min_area": 0.0, "min_slope": 0.0, "max_hole": 0.0, "simplify": 0.0}
    with WorkRaster(work, grid, LAYERS) as seen, open_terrain(grid, dem=dem, slope=None) as terrain:
        seen.write(grid.window(), np.stack([prob, prob, 1 - prob]))
        return pd.concat(vectorize(seen, terrain, grid.crs, {}, threshold=0.5, **filters).landslides)
