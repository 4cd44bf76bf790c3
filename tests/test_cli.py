import dataclasses
import json
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner, Result
from rasterio.transform import from_origin

import l4s_geo.cli
import l4s_geo.evaluation.evaluate
import l4s_geo.pipeline
from l4s_geo.cli import VERBS, main
from l4s_geo.cli.options import plain
from l4s_geo.errors import InputError
from l4s_geo.models import registry
from l4s_geo.models.card import Card, Network
from l4s_geo.polygonize import PolygonizeOptions
from l4s_geo.progress import Progress
from l4s_geo.settings import Decided, MapOptions

COMMAND = Path(sys.executable).parent / "l4s-map"
HEAVY = {"torch", "numpy", "rasterio", "geopandas", "shapely", "scipy", "pyproj", "rich"}


def run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def command(verb: str) -> click.Command:
    found = main.get_command(click.Context(main), verb)
    assert found is not None
    return found


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Options that ``map_scene`` was called with, in place of mapping."""
    calls: list[Any] = []

    def map_scene(options: Any, progress: Progress) -> SimpleNamespace:
        calls.append(options)
        progress.start("mapping", 1)
        progress.advance()
        return SimpleNamespace(summary={"polygons": 3, "f1": float("nan"), "out": options.out}, message="3 found")

    monkeypatch.setattr(l4s_geo.pipeline, "map_scene", map_scene)
    return calls


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Result:
    def map_scene(options: Any, progress: Progress) -> None:
        raise error

    monkeypatch.setattr(l4s_geo.pipeline, "map_scene", map_scene)
    return run("map", "s.tif", "--out", "o.gpkg", "-q")


# --- help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; from l4s_geo.cli import main\n"
        f"try: main({args!r}, standalone_mode=False)\n"
        "finally: print('\\n', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


def test_installed_command_helps_within_half_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([COMMAND, "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_lists_every_verb_and_every_verb_is_a_module() -> None:
    text = run("--help").output
    modules = {m.name.replace("_", "-") for m in pkgutil.iter_modules(l4s_geo.cli.__path__)} - {"options"}
    assert modules == set(VERBS)
    assert all(f"  {verb} " in text for verb in VERBS)
    assert all(command(verb).name == verb for verb in VERBS)


def test_version() -> None:
    assert run("--version").output.split()[-1] == l4s_geo.__version__


# --- verbs and options --------------------------------------------------------------------------------------


def test_map_is_the_verb_when_none_is_given(mapped: list[Any]) -> None:
    assert run("s.tif", "--out", "o.gpkg").exit_code == 0
    assert run("--out", "o.gpkg", "s.tif").exit_code == 0
    assert run("map", "s.tif", "--out", "o.gpkg").exit_code == 0
    assert mapped[0] == mapped[1] == mapped[2]
    assert mapped[0].scene == "s.tif"


def test_a_scene_may_have_the_name_of_nothing_but_itself(
    mapped: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bands").mkdir()
    assert run("bands", "--out", "o.gpkg").exit_code == 0
    assert mapped[0].scene == "bands"


@pytest.mark.parametrize(("word", "hint"), [("chek", "Did you mean 'check'?"), ("fly", "Verbs are map, ")])
def test_a_mistyped_verb_is_not_taken_for_a_scene(word: str, hint: str, mapped: list[Any]) -> None:
    done = run(word, "scene.tif")
    assert done.exit_code == 2
    assert f"'{word}' is neither a verb nor a file" in done.stderr
    assert hint in done.stderr
    assert not mapped


@pytest.mark.parametrize(("verb", "options"), [("map", MapOptions), ("polygonize", PolygonizeOptions)])
def test_options_of_the_command_are_those_of_the_library(verb: str, options: Any) -> None:
    fields = {f.name for f in dataclasses.fields(options)} - {"decided"}  # by a record
    assert {p.name for p in command(verb).params} - {"as_json", "quiet", "verbose", "record"} == fields


def test_every_map_option_arrives(mapped: list[Any]) -> None:
    text = (
        "s.tif --out o.fgb --dem d.tif --slope s2.tif --bands B4,B3,B2 --units byte --s2-offset -1000 --no-scl "
        "--model a --model b --prob p.tif --threshold 0.4 --preset recall --min-area 900 --max-hole 50 --simplify 5 "
        "--aoi a.gpkg --mask m.tif --mask l.shp --density e.tif --min-slope 4 --stac i.json "
        "--pre b.tif --pre-action flag --clouds --report r.html --quicklook q.png "
        "--overlap 0.25 --no-tta --crf --normalize model --device cuda:1 --dtype bf16 --batch-size 4 "
        "--workers 3 --resume --overwrite"
    )
    assert run(*text.split()).exit_code == 0
    assert dataclasses.asdict(mapped[0]) == {
        "scene": "s.tif", "out": Path("o.fgb"), "dem": "d.tif", "slope": "s2.tif", "units": "byte",
        "bands": ("B4", "B3", "B2"), "models": ("a", "b"), "prob": Path("p.tif"), "threshold": 0.4,
        "preset": "recall", "min_area": 900, "max_hole": 50, "simplify": 5, "overlap": 0.25, "tta": False,
        "crf": True, "normalize": "model", "device": "cuda:1", "dtype": "bf16", "batch_size": 4,
        "workers": 3, "resume": True, "overwrite": True, "aoi": "a.gpkg", "masks": ("m.tif", "l.shp"),
        "density": Path("e.tif"), "stac": Path("i.json"), "decided": dataclasses.asdict(Decided()),
        "min_slope": 4, "s2_offset": "-1000", "scl": False,
        "pre": "b.tif", "pre_action": "flag", "clouds": True, "report": Path("r.html"), "quicklook": Path("q.png"),
    }  # fmt: skip


def test_what_is_not_given_is_left_to_preset_and_model(mapped: list[Any]) -> None:
    run("s.tif", "--out", "o.gpkg")
    left = (
        "dem",
        "slope",
        "bands",
        "prob",
        "threshold",
        "aoi",
        "density",
        "pre",
        "report",
        "min_area",
        "min_slope",
        "max_hole",
        "overlap",
        "tta",
        "crf",
        "batch_size",
    )
    assert {getattr(mapped[0], name) for name in left} == {None}
    assert mapped[0].models == mapped[0].masks == ()


@pytest.mark.parametrize(
    "option",
    [
        "--threshold nan",
        "--threshold 1.2",
        "--min-area inf",
        "--min-area -1",
        "--min-slope 91",
        "--min-slope nan",
        "--overlap 1",
        "--bands B4,,B2",
        "--device gpu",
        "--device cuda:",
        "--dtype int8",
        "--units cm",
        "--preset best",
        "--batch-size 0",
        "--unknown 1",
    ],
)
def test_a_bad_value_is_refused_by_name(option: str, mapped: list[Any]) -> None:
    done = run("s.tif", "--out", "o.gpkg", *option.split())
    assert done.exit_code == 2
    assert option.split()[0] in done.stderr
    assert not mapped


def test_rows_are_half_open(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def evaluate(pred: str, truth: str, **options: Any) -> SimpleNamespace:
        seen.append(options)
        return SimpleNamespace(to_dict=dict, text=str)

    monkeypatch.setattr(l4s_geo.evaluation.evaluate, "evaluate", evaluate)
    assert run("evaluate", "p.tif", "t.tif", "--rows", "6400-7936").exit_code == 0
    assert seen[0]["rows"] == (6400, 7936)
    for bad in ("9-3", "5", "4-4", "a-b"):
        assert run("evaluate", "p.tif", "t.tif", "--rows", bad).exit_code == 2


# --- results ------------------------------------------------------------------------------------------------


def test_json_is_one_object_on_stdout_and_the_rest_on_stderr(mapped: list[Any]) -> None:
    done = run("s.tif", "--out", "o.gpkg", "--json")
    assert json.loads(done.stdout) == {"polygons": 3, "f1": None, "out": "o.gpkg"}
    assert "mapping: done" in done.stderr


def test_text_for_people_and_quiet(mapped: list[Any]) -> None:
    done = run("s.tif", "--out", "o.gpkg", "-q")
    assert (done.stdout, done.stderr) == ("3 found\n", "")


def test_plain_makes_json_of_what_libraries_return() -> None:
    value = {"a": np.float32(0.5), "b": (np.int64(2), float("inf")), 3: Path("x"), "d": [True, None, "t"]}
    assert plain(value) == {"a": 0.5, "b": [2, None], "3": "x", "d": [True, None, "t"]}


# --- exit codes ---------------------------------------------------------------------------------------------


def test_a_users_mistake_gives_2_and_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    done = failing(InputError("s.tif has no CRS. Set one."), monkeypatch)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", "error: s.tif has no CRS. Set one.\n")


def test_an_interrupt_gives_130(monkeypatch: pytest.MonkeyPatch) -> None:
    done = failing(KeyboardInterrupt(), monkeypatch)
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


def test_a_bug_gives_1_a_traceback_and_asks_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    done = failing(ZeroDivisionError("boom"), monkeypatch)
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: boom" in done.stderr
    assert "Please report it" in done.stderr.splitlines()[-1]


def test_progress_is_closed_when_a_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def map_scene(options: Any, progress: Progress) -> None:
        progress.start("mapping", 10)
        raise InputError("gone")

    monkeypatch.setattr(l4s_geo.pipeline, "map_scene", map_scene)
    lines = run("map", "s.tif", "--out", "o.gpkg").stderr.splitlines()
    assert lines[1].startswith("mapping: done (0 of 10")
    assert lines[2] == "error: gone"


def test_installed_command_refuses_a_missing_scene_in_one_line(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    args = [str(COMMAND), "no.tif", "--out", "o.gpkg"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "no.tif" in lines[0]
    assert not list(tmp_path.iterdir())


# --- models -------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    """The only bundled model, RGB, without weights."""
    card = Card(
        name="tiny", version="1", licence="Apache-2.0",
        networks=(Network("n", "unet", {}, "n.safetensors", "0"),),
        bands=("B4", "B3", "B2"), input_units="dn", compression="asinh", statistics={}, resolution_m=10.0,
        thresholds={"balanced": 0.4, "recall": 0.3, "precision": 0.6}, threshold_split="none",
    )  # fmt: skip
    folder = tmp_path / "bundled" / "tiny"
    folder.mkdir(parents=True)
    card.save(folder)
    monkeypatch.setattr(registry, "BUNDLED", folder.parent)
    monkeypatch.setattr(registry, "DEFAULT", "tiny")
    return card


def test_models_list_and_show(model: Card) -> None:
    assert "tiny  version 1, 1 networks, bands B4 B3 B2, 10 m" in run("models", "list").output
    assert [m["name"] for m in json.loads(run("models", "list", "--json").output)["models"]] == ["tiny"]
    assert "resolution_m: 10.0" in run("models", "show", "tiny").output
    assert json.loads(run("models", "show", "tiny", "--json").output)["bands"] == ["B4", "B3", "B2"]


def test_an_unknown_model_is_refused_with_those_there_are(model: Card) -> None:
    done = run("models", "show", "huge")
    assert done.exit_code == 2
    assert "'huge'" in done.stderr
    assert "tiny" in done.stderr


# --- check --------------------------------------------------------------------------------------------------


def write(path: Path, bands: dict[str, Any], pixel: float = 10.0, dtype: str = "uint16") -> str:
    """A GeoTIFF of 60 x 80 pixels; each band is a level, or an array."""
    texture = np.random.default_rng(0).normal(1, 0.2, (60, 80)).clip(0.3)
    profile = {
        "driver": "GTiff", "width": 80, "height": 60, "count": len(bands), "dtype": dtype,
        "crs": "EPSG:32654", "transform": from_origin(500_000, 4_700_000, pixel, pixel), "nodata": 0,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        for i, (name, level) in enumerate(bands.items(), 1):
            out.write((texture * level if np.isscalar(level) else level).astype(dtype), i)
            out.set_band_description(i, name)
    return str(path)


RGB = {"B4": 450, "B3": 660, "B2": 820}


def checked(*args: str) -> tuple[int, dict[str, Any]]:
    done = run("check", *args, "--json", "-q")
    return done.exit_code, json.loads(done.stdout)


def test_check_describes_a_good_scene(model: Card, tmp_path: Path) -> None:
    scene = np.full((60, 80), 450.0) * np.linspace(0.8, 1.2, 80)
    scene[:30] = 0
    path = write(tmp_path / "S2A_MSIL1C_20180911T012651_x.tif", RGB | {"B4": scene})
    code, report = checked(path)
    assert code == 0
    assert report["ok"]
    assert report["problems"] == report["warnings"] == []
    assert (report["level"], report["date"], report["units"]) == ("L1C", "2018-09-11", "dn")
    assert report["bands"] == ["B4", "B3", "B2"]
    assert (report["crs"], report["size"]) == ("EPSG:32654", [80, 60])
    assert report["pixel_m"] == pytest.approx([10, 10], rel=1e-3)
    assert report["valid_share"] == 0.5
    b4 = report["ranges"][0]
    assert b4["median"] == pytest.approx(450, abs=2)
    assert b4["low"] == pytest.approx(np.quantile(scene[30:].astype(int), 0.02), abs=2)
    assert b4["high"] == pytest.approx(np.quantile(scene[30:].astype(int), 0.98), abs=2)
    text = run("check", path, "-q").output
    assert "L1C" in text
    assert "This scene can be mapped." in text


@pytest.mark.parametrize(
    ("bands", "pixel", "said"),
    [
        ({"B4": 450, "B3": 660}, 10.0, "lacks B2"),
        (RGB | {"B3": np.full((60, 80), 660)}, 10.0, "Nearly all pixels of B3"),
        (RGB | {"B3": 450}, 10.0, "B4 and B3 are the same image"),
        (RGB, 60.0, "too coarse"),
    ],
)
def test_check_finds_what_makes_mapping_meaningless(
    bands: dict[str, Any], pixel: float, said: str, model: Card, tmp_path: Path
) -> None:
    code, report = checked(write(tmp_path / "s.tif", bands, pixel))
    assert code == 2
    assert len(report["problems"]) == 1
    assert said in report["problems"][0]


@pytest.mark.parametrize(
    ("factor", "pixel", "said"),
    [(0.1, 10.0, "far from Sentinel-2"), (4.4, 10.0, "above 1000"), (1, 20.0, "coarser")],
)
def test_check_warns_of_what_may_harm(factor: float, pixel: float, said: str, model: Card, tmp_path: Path) -> None:
    code, report = checked(write(tmp_path / "s.tif", {b: v * factor for b, v in RGB.items()}, pixel))
    assert code == 0
    assert said in report["warnings"][0]


def test_check_reports_a_scene_that_cannot_be_opened(model: Card, tmp_path: Path) -> None:
    bands = {"B4": 100, "B3": 110, "B2": 120}
    code, report = checked(write(tmp_path / "byte.tif", bands, dtype="uint8"))
    assert code == 2
    assert "--units" in report["problems"][0]
    code, report = checked(str(tmp_path / "byte.tif"), "--units", "byte")
    assert code == 0
    assert len(report["warnings"]) == 1
    assert "rendering" in report["warnings"][0]
    code, report = checked(str(tmp_path / "none.tif"))
    assert code == 2
    assert "none.tif" in report["problems"][0]


def test_check_writes_statistics_that_map_can_take(model: Card, tmp_path: Path) -> None:
    from l4s_geo.normalize import Normalizer

    stats = tmp_path / "stats.json"
    assert run("check", write(tmp_path / "s.tif", RGB), "--stats", str(stats), "-q").exit_code == 0
    found = Normalizer.load(stats)
    assert found.bands == ("B4", "B3", "B2")
    assert found.center == pytest.approx((450, 660, 820), rel=0.03)
    assert found.scale == pytest.approx((90, 132, 164), rel=0.1)


# --- demo ---------------------------------------------------------------------------------------------------


def test_demo_writes_a_scene_that_check_accepts(model: Card, tmp_path: Path) -> None:
    done = run("demo", "--out", str(tmp_path / "demo"), "--size", "128", "--no-map", "--json", "-q")
    assert done.exit_code == 0
    paths = json.loads(done.stdout)
    code, report = checked(paths["scene"], "--dem", paths["dem"])
    assert code == 0
    assert report["bands"][-2:] == ["slope", "dem"]


def test_demo_replaces_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "dem.tif").write_text("mine")
    done = run("demo", "--out", str(tmp_path), "--size", "64", "--no-map", "-q")
    assert done.exit_code == 2
    assert "dem.tif" in done.stderr
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("dem.tif", "mine")]
    assert run("demo", "--out", str(tmp_path), "--size", "64", "--no-map", "--overwrite", "-q").exit_code == 0


def test_demo_into_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    done = run("demo", "--out", str(tmp_path / "taken"), "-q")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert (tmp_path / "taken").read_text() == "mine"
