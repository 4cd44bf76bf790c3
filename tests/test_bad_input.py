"""What a person gets wrong: exit code 2, one message that says what and where, and no file touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio.shutil
import torch
from affine import Affine
from click.testing import CliRunner, Result

from l4s_geo import outputs
from l4s_geo.cli import main
from l4s_geo.models import registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.normalize import Normalizer
from tests.conftest import write_raster

BANDS = ("B4", "B3", "B2")
ELSEWHERE = Affine(10, 0, 700000, 0, -10, 4730000)

Make = Callable[[Path], list[str]]


class Brightness(torch.nn.Module):
    """Calls what is bright landslide."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([4.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x[:, :1]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a good scene, a model and results of an earlier run."""
    build = zoo.build
    monkeypatch.setattr(
        zoo, "build", lambda name, args, n: Brightness() if name == "Brightness" else build(name, args, n)
    )
    folder = tmp_path / "model"
    folder.mkdir()
    networks = (registry.save_network(Brightness(), folder, "n", "Brightness", {}),)
    statistics = Normalizer(BANDS, (500.0,) * 3, (50.0,) * 3, "asinh").to_dict()
    thresholds = {"balanced": 0.5, "recall": 0.4, "precision": 0.6}
    Card("bright", "1", "Apache-2.0", networks, BANDS, "dn", "asinh", statistics, 10.0, thresholds, "none").save(folder)
    scene(tmp_path / "s.tif")
    for name in ("o.gpkg", "o.gpkg.json", "p.tif", "p.tif.json"):
        (tmp_path / name).write_text("of an earlier run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image(count: int = 3, size: int = 40) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(0).integers(300, 900, (count, size, size), dtype=np.uint16)


def scene(path: Path, values: Any = None, names: tuple[str | None, ...] = BANDS, **how: Any) -> list[str]:
    write_raster(path, image() if values is None else values, names=names, **how)
    return [str(path)]


def run(*args: str) -> Result:
    return CliRunner().invoke(main, [*args, "-q"])


def map_over(*args: str) -> Result:
    """Map onto the results of the earlier run."""
    if "--model" not in args:
        args = (*args, "--model", "model")
    return run("map", "--out", "o.gpkg", "--prob", "p.tif", "--overwrite", "--device", "cpu", *args)


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refused(done: Result, *said: str) -> None:
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not [word for word in said if word not in done.stderr], done.stderr


def cut(path: Path, share: float, name: str) -> list[str]:
    """The first part of a file with its directory in front, so that pixels are missing."""
    rasterio.shutil.copy(path, path.with_name("cog.tif"), driver="COG")
    data = path.with_name("cog.tif").read_bytes()
    (path.parent / name).write_bytes(data[: int(len(data) * share)])
    return [name]


def text(path: Path) -> list[str]:
    path.write_text("no raster")
    return [str(path)]


def dem(path: Path, **how: Any) -> list[str]:
    how = {"values": np.full((40, 40), 100, np.float32)} | how
    write_raster(path, **how)
    return ["s.tif", "--dem", str(path)]


def folder_of(path: Path, **odd: Any) -> list[str]:
    """A folder of three bands, the last of them odd."""
    path.mkdir()
    for i, name in enumerate(BANDS):
        how = {"values": image()[i]} | (odd if i == 2 else {})
        write_raster(path / f"T54_{name}.tif", **how)
    return [str(path)]


def broken(path: Path, name: str, share: float) -> list[str]:
    found = folder_of(path)
    file = path / name
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    return found


SCENES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "missing band": (lambda d: scene(d / "a.tif", image(2), BANDS[:2]), ("a.tif", "needs B2", "--bands")),
    "duplicate band": (lambda d: scene(d / "a.tif", names=("B4", "B4", "B2")), ("more than once", "B4", "a.tif")),
    "nameless bands": (lambda d: scene(d / "a.tif", names=()), ("a.tif", "3 bands without names", "--bands")),
    "uint8": (lambda d: scene(d / "a.tif", (image() // 4).astype(np.uint8)), ("a.tif", "uint8", "--units byte")),
    "reflectance": (
        lambda d: scene(d / "a.tif", (image() / 1e4).astype(np.float32)),
        ("a.tif", "0.0899", "--units reflectance"),
    ),
    "reflectance in one band": (
        lambda d: folder_of(d / "f", values=(image()[2] / 1e4).astype(np.float32)),
        ("Some bands of", "like reflectance", "same units"),
    ),
    "complex": (lambda d: scene(d / "a.tif", image().astype(np.complex64)), ("a.tif", "complex")),
    "no CRS": (lambda d: scene(d / "a.tif", crs=None), ("a.tif", "no coordinate system", "-a_srs")),
    "all nodata": (lambda d: scene(d / "a.tif", image() * 0, nodata=0), ("a.tif", "no pixel that is valid")),
    "all NaN": (
        lambda d: scene(d / "a.tif", np.full((3, 40, 40), np.nan, np.float32)),
        ("a.tif", "no pixel that is valid"),
    ),
    "header cut": (lambda d: [*cut(d / "s.tif", 0.01, "a.tif")], ("a.tif", "cannot be", "complete")),
    "data cut": (lambda d: [*cut(d / "s.tif", 0.6, "a.tif")], ("a.tif cannot be read", "IReadBlock", "complete")),
    "text file": (lambda d: text(d / "a.tif"), ("a.tif cannot be opened",)),
    "no file": (lambda d: ["none.tif"], ("no file 'none.tif'",)),
    "no name": (lambda d: [""], ("name of the scene is empty",)),
    "empty folder": (lambda d: [str(d / "model")], ("holds no bands", "glob")),
    "folder without a band": (lambda d: [*broken(d / "f", "T54_B3.tif", 0)], ("T54_B3.tif cannot be opened",)),
    "folder with a cut band": (lambda d: broken(d / "f", "T54_B3.tif", 0.5), ("T54_B3.tif cannot be read",)),
    "folder with a band elsewhere": (lambda d: folder_of(d / "f", transform=ELSEWHERE), ("does not overlap",)),
    "DEM elsewhere": (lambda d: dem(d / "dem.tif", transform=ELSEWHERE), ("dem.tif does not overlap",)),
    "DEM without CRS": (lambda d: dem(d / "dem.tif", crs=None), ("dem.tif has no coordinate system",)),
    "DEM of bands": (lambda d: dem(d / "dem.tif", values=image()), ("dem.tif has 3 bands", "--dem")),
    "DEM is a folder": (lambda d: ["s.tif", "--dem", "model"], ("model cannot be opened",)),
    "DEM without data": (
        lambda d: dem(d / "dem.tif", values=np.full((40, 40), np.nan, np.float32)),
        ("no pixel that is valid", "dem"),
    ),
    "unknown model": (lambda d: ["s.tif", "--model", "nope"], ("Unknown model 'nope'", "card.json")),
    "unknown preset": (lambda d: ["s.tif", "--preset", "best"], ("--preset", "'best'", "balanced")),
    "NaN": (lambda d: ["s.tif", "--min-area", "nan"], ("--min-area", "not a finite number", "--help")),
    "infinity": (lambda d: ["s.tif", "--simplify", "inf"], ("--simplify", "not a finite number")),
    "negative": (lambda d: ["s.tif", "--threshold", "-1"], ("--threshold", "0<=x<=1")),
    "no statistics": (lambda d: ["s.tif", "--normalize", "n.json"], ("n.json", "There is no file", "check --stats")),
    "other statistics": (
        lambda d: ["s.tif", "--normalize", "model/card.json"],
        ("model/card.json: Not a set of band statistics",),
    ),
}


@pytest.mark.parametrize("case", SCENES)
def test_bad_input_is_refused_and_nothing_touched(case: str, place: Path) -> None:
    make, said = SCENES[case]
    args = make(place)
    before = files(place)
    refused(map_over(*args), *said)
    assert files(place) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--out", "no/o.gpkg"), ("no/o.gpkg", "no folder", "Create it")),
        (("--out", "o.kml"), ("o.kml", "no format for .kml", ".gpkg")),
        (("--out", "result"), ("result", "without extension", ".gpkg")),
        (("--out", "x" * 300 + ".gpkg"), ("File name too long",)),
        (("--out", "o.gpkg"), ("o.gpkg exists", "--overwrite")),
        (("--out", "new.gpkg", "--prob", "p.tif"), ("p.tif exists", "--overwrite")),
        (("--out", "new.gpkg", "--prob", "p.png"), ("p.png", "no format", ".tif")),
        (("--out", "new.gpkg", "--prob", "new.gpkg"), ("new.gpkg", "no format", ".tif")),
        (("--out", "new.gpkg", "--prob", "s.tif", "--overwrite"), ("s.tif is an input",)),
        (("--out", "new.gpkg", "--prob", "dem.tif", "--dem", "dem.tif", "--overwrite"), ("dem.tif is an input",)),
        (("--out", "taken.gpkg"), ("taken.gpkg.json is a folder",)),
    ],
)
def test_outputs_that_cannot_be_are_refused(args: tuple[str, ...], said: tuple[str, ...], place: Path) -> None:
    dem(place / "dem.tif")
    (place / "taken.gpkg.json").mkdir()
    before = files(place)
    refused(run("map", "s.tif", "--model", "model", *args), *said)
    assert files(place) == before


@pytest.mark.parametrize("verb", ["map", "check"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thresholds": {}}, "no threshold balanced"),
        ({"thresholds": {"balanced": float("nan"), "recall": 0, "precision": 0}}, "between 0 and 1"),
        ({"thresholds": {"balanced": None, "recall": 0, "precision": 0}}, "not a model card"),
        ({"resolution_m": 0}, "resolution_m is 0"),
        ({"resolution_m": "10"}, "not a model card"),
        ({"scale": 1.0}, "not a model card"),
        ({"compression": "zip"}, "unknown compression 'zip'"),
        ({"networks": []}, "needs networks"),
        ({"networks": None}, "not a model card"),
        ({"bands": []}, "names of bands"),
        ({"crf": "on"}, "must be objects"),
        ({"more": 1}, "not a model card"),
    ],
)
def test_a_damaged_card_is_refused(verb: str, changes: dict[str, Any], said: str, place: Path) -> None:
    card = place / "model" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))
    before = files(place)
    done = map_over("s.tif") if verb == "map" else run("check", "s.tif", "--model", "model")
    refused(done, "card.json", said, "Install or export")
    assert files(place) == before


@pytest.mark.parametrize("damage", ["cut", "gone", "card"])
def test_damaged_weights_are_refused(damage: str, place: Path) -> None:
    (weights,) = (place / "model").glob("*.safetensors")
    if damage == "gone":
        weights.unlink()
    else:
        file = weights if damage == "cut" else place / "model" / "card.json"
        file.write_bytes(file.read_bytes()[:-9])
    before = files(place)
    refused(map_over("s.tif"), {"cut": "checksum", "gone": "missing", "card": "not a model card"}[damage])
    assert files(place) == before


def test_outputs_appear_together_or_not_at_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    write_styles = outputs.write_styles
    monkeypatch.setattr(outputs, "write_styles", full)
    before = files(place)
    done = map_over("s.tif")
    assert done.exit_code == 2
    assert "o.gpkg cannot be written" in done.stderr
    assert "No space left" in done.stderr
    assert "--resume" in done.stderr
    assert {path: content for path, content in files(place).items() if ".l4s-map" not in path} == before
    monkeypatch.setattr(outputs, "write_styles", write_styles)
    assert map_over("s.tif", "--resume", "--overwrite").exit_code == 0
    assert not [path for path in files(place) if ".l4s-map" in path]


def test_outputs_wait_for_the_last_one(place: Path) -> None:
    with ExitStack() as until:
        outputs.write_provenance(place / "p.tif.json", {}, until=until)
        assert (place / "p.tif.json").read_text() == "of an earlier run"
    assert (place / "p.tif.json").read_text() == "{}\n"


def test_polygons_across_the_date_line_stay_whole(place: Path) -> None:
    bright = np.full((3, 60, 60), 500, np.uint16)
    bright[:, 20:40, 10:50] = 2000
    scene(place / "a.tif", bright, crs="EPSG:4326", transform=Affine(1e-4, 0, 179.997, 0, -1e-4, -17))
    assert map_over("a.tif", "--threshold", "0.9").exit_code == 0
    found = gpd.read_file("o.gpkg", layer="landslides")
    assert len(found) == 1
    assert found.is_valid.all()
    assert found.total_bounds == pytest.approx([179.998, -17.004, 180.002, -17.002], abs=2e-4)


def test_statistics_replace_no_raster(place: Path) -> None:
    before = files(place)
    refused(run("check", "s.tif", "--model", "model", "--stats", "s.tif"), "s.tif", ".json")
    assert files(place) == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX systems")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    wait = (
        "import sys, tempfile, time, types\n"
        "def map_scene(options, progress):\n"
        "    with tempfile.TemporaryDirectory(dir='out'): time.sleep(60)\n"
        "sys.modules['l4s_geo.pipeline'] = types.SimpleNamespace(MapOptions=dict, map_scene=map_scene)\n"
        "from l4s_geo.cli import main; main(['map', 's.tif', '--out', 'out/o.gpkg', '-q'])"
    )
    with subprocess.Popen([sys.executable, "-c", wait], cwd=tmp_path, stderr=subprocess.PIPE, env=os.environ) as run:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out").iterdir()) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(number)
        assert run.wait(60) == code
    assert not list((tmp_path / "out").iterdir())


def test_the_good_scene_is_mapped(place: Path) -> None:
    assert map_over("s.tif").exit_code == 0
    assert all(before != b"of an earlier run" for before in files(place).values())
