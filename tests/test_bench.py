"""The benchmark measures the real command beside the bare networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from l4s_geo.bench import Bench, Run, write_large
from l4s_geo.cli import main
from l4s_geo.progress import Silent
from l4s_geo.scene import open_scene


def test_it_runs_the_command_and_the_networks() -> None:
    args = ["bench", "--size", "200x150", "--rounds", "1", "--no-crf", "--json", "-q", "--device", "cpu"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["width"], found["height"], found["patches"]) == (200, 150, 6)
    assert found["bare_patches_per_second"] > 0
    assert found["seconds"] > found["bare_seconds"]
    assert {"start and libraries", "networks", "polygons", "writing"} <= {*found["share"]}
    assert sum(found["share"].values()) == pytest.approx(1, abs=0.01)
    assert found["memory_mb"]["process"] > 100


def test_figures_are_those_of_the_rounds() -> None:
    runs = [Run(100.0, wall, {"networks": wall - 1}, {"process": wall}) for wall in (11.0, 12.0, 19.0)]
    found = Bench("s.tif", (10, 10), 1000, "cpu", runs).to_dict()
    assert (found["seconds"], found["bare_seconds"]) == (12, 10)
    assert (found["over_bare"], found["stages_over_bare"]) == (1.2, 1.1)
    assert found["over_bare_by_round"] == [1.1, 1.2, 1.9]
    assert found["patches_per_second"] == pytest.approx(83.3)
    assert found["memory_mb"] == {"process": 19}


@pytest.mark.parametrize("given", ["0", "12x", "a"])
def test_sizes_that_are_none_are_refused(given: str) -> None:
    done = CliRunner().invoke(main, ["bench", "--size", given])
    assert done.exit_code == 2
    assert "no size" in done.output


def test_large_scenes_have_all_bands_everywhere(tmp_path: Path) -> None:
    path = write_large(tmp_path / "s.tif", 1300, 700, Silent())
    with rasterio.open(path) as file:
        assert (file.width, file.height, file.count) == (1300, 700, 14)
        image = file.read()
    assert image[:12].any(axis=0).mean() > 0.95
    assert np.array_equal(image[:, :, 511], image[:, :, 512])
    with open_scene(path) as scene:
        assert {"B1", "B12", "slope", "dem"} <= {*scene.bands}
