"""What a machine does to a run: closed folders and files, disks that fill or go, no memory, nowhere to print.

As in ``test_odd_input``: it works, or ends with exit code 2 and one message, and no file is half written or lost.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from click.testing import CliRunner, Result

from l4s_geo import density, outputs, pipeline
from l4s_geo.cli import main
from l4s_geo.models import zoo
from l4s_geo.report import product

from .conftest import UTM, write_raster
from .odd import SIDE, Bright, image, save_model, scene
from .test_odd_input import AROUND, refused

NOBODY = 65534

#: Every output of a map, by its option.
ASKED = {
    "--out": "o.gpkg", "--prob": "p.tif", "--density": "d.tif", "--report": "r.html", "--quicklook": "q.png",
    "--stac": "item.json",
}  # fmt: skip


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that everybody may read; what ``map`` and ``check`` import late has been imported."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield str(save_model(place / "bright"))
    shutil.rmtree(place)


@pytest.fixture(autouse=True)
def _bright(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = zoo.build
    monkeypatch.setattr(zoo, "build", lambda name, args, n: Bright() if name == "Bright" else build(name, args, n))
    monkeypatch.setenv("MODEL", model)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scene to work in."""
    monkeypatch.chdir(tmp_path)
    scene(tmp_path / "s.tif")
    return tmp_path


def run(verb: str, *args: str) -> Result:
    more = ["--model", os.environ["MODEL"], *(["--device", "cpu", "--dtype", "fp32"] if verb == "map" else [])]
    return CliRunner().invoke(main, [verb, "-q", *args, *([] if "--model" in args else more[:2]), *more[2:]])


def asked(*others: str) -> list[str]:
    """Options for all outputs, or for these and the polygons."""
    return [word for option in (ASKED if not others else ("--out", *others)) for word in (option, ASKED[option])]


# --- permissions ----------------------------------------------------------------------------------------


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user who may do nothing special; root may read and write whatever the permissions say."""
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@pytest.fixture
def theirs(model: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of nobody's with a scene in it, below folders that everybody may enter."""
    if not hasattr(os, "setresuid") or os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    place = Path(tempfile.mkdtemp())
    monkeypatch.chdir(place)
    scene(place / "s.tif")
    assert run("map", "s.tif", "--out", "o.gpkg").exit_code == 0  # imports what this user might not read
    assert run("check", "s.tif").exit_code == 0
    for path in place.glob("o.gpkg*"):
        path.unlink()
    os.chown(place, NOBODY, NOBODY)
    if not all(p.stat().st_mode & 1 for p in place.absolute().parents):
        pytest.skip(f"nobody cannot enter {place}")
    yield place
    shutil.rmtree(place)


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("option", ASKED)
def test_folders_and_files_that_may_not_be_written(option: str, theirs: Path) -> None:
    (theirs / "closed").mkdir(mode=0o555)
    name = ASKED[option]
    Path(name).write_text("precious")
    Path(name).chmod(0o444)
    before = content(theirs)
    out = [] if option == "--out" else ["--out", "new.gpkg"]
    for path, words in ((f"closed/{name}", "not writable"), (name, "protected")):
        with nobody():
            done = run("map", "s.tif", *out, option, path, "--overwrite")
        refused(done, words)
        assert content(theirs) == before


def test_what_comes_beside_an_output_is_protected_too(theirs: Path) -> None:
    Path("o.gpkg.json").write_text("precious")
    Path("o.gpkg.json").chmod(0o444)
    before = content(theirs)
    with nobody():
        refused(run("map", "s.tif", "--out", "o.gpkg", "--overwrite"), "o.gpkg.json", "protected")
    assert content(theirs) == before


def test_files_of_others_in_a_folder_for_all(theirs: Path) -> None:
    """As in /tmp: everybody may write, but only the owner may replace."""
    os.chown(theirs, 0, 0)
    theirs.chmod(0o1777)
    Path("o.gpkg").write_text("precious")
    Path("o.gpkg").chmod(0o666)
    before = content(theirs)
    with nobody():
        refused(run("map", "s.tif", "--out", "o.gpkg", "--prob", "p.tif", "--overwrite"), "protected")
    assert content(theirs) == before
    with nobody():
        assert run("map", "s.tif", "--out", "mine.gpkg").exit_code == 0
        assert run("map", "s.tif", "--out", "mine.gpkg", "--overwrite").exit_code == 0


def closed(name: str, *args: str, folder: bool = False) -> Callable[[Path], list[str]]:
    """A file, or a folder with a scene, that may not be read, and the arguments that name it."""

    def make(place: Path) -> list[str]:
        path = place / name
        if "/" in name:
            save_model(path.parent)
        elif folder:
            path.mkdir()
            write_raster(path / "B4.tif", image()[0])
        elif name.endswith(".gpkg"):
            gpd.GeoSeries([AROUND], crs=UTM).to_file(path)
        elif name.endswith(".tif"):
            scene(path)
        else:
            path.write_text("{}")
        path.chmod(0)
        return list(args) or [name]

    return make


UNREADABLE = {
    "scene": closed("c.tif"),
    "item": closed("c.json"),
    "folder": closed("c", folder=True),
    "file in a folder": closed("c", "c/B4.tif", folder=True),
    "elevations": closed("d.tif", "s.tif", "--dem", "d.tif"),
    "area": closed("a.gpkg", "s.tif", "--aoi", "a.gpkg"),
    "mask": closed("m.gpkg", "s.tif", "--mask", "m.gpkg"),
    "statistics": closed("n.json", "s.tif", "--normalize", "n.json"),
    "scene before": closed("b.tif", "s.tif", "--pre", "b.tif"),
    "record": closed("r.json", "--from", "r.json"),
    "weights": closed("m/n.safetensors", "s.tif", "--model", "m"),
    "card": closed("m/card.json", "s.tif", "--model", "m"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_inputs_that_may_not_be_read(what: str, theirs: Path) -> None:
    args = UNREADABLE[what](theirs)
    before = content(theirs)
    with nobody():
        done = run("map", *args, "--out", "o.gpkg")
    refused(done)
    assert "ermission denied" in done.stderr or "not readable" in done.stderr
    assert content(theirs) == before
    if what in ("scene", "item", "folder", "file in a folder", "elevations"):
        with nobody():
            done = run("check", *args)
        assert (done.exit_code, done.stderr) == (2, "")
        assert "Permission denied" in done.output


def test_a_folder_that_may_be_entered_but_not_listed(theirs: Path) -> None:
    for name, mode in (("in", 0o711), ("out", 0o300)):
        (theirs / name).mkdir()
        os.chown(theirs / name, NOBODY if name == "out" else 0, -1)
        (theirs / name).chmod(mode)
    shutil.move("s.tif", "in/s.tif")
    with nobody():
        assert run("map", "in/s.tif", "--out", "out/o.gpkg").exit_code == 0
    assert Path("out/o.gpkg").exists()


def test_models_may_be_read_by_all_who_may_read_their_folder(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m")
    assert (folder / "n.safetensors").stat().st_mode == (folder / "card.json").stat().st_mode


COMMAND = [sys.executable, "-c", "from l4s_geo.cli import run; run()"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
def test_no_home_and_no_folder_for_temporary_files(here: Path) -> None:
    """All outputs, by a new process: some libraries want to keep something when they are first imported."""
    write_raster(here / "dem.tif", np.full((SIDE, SIDE), 100, np.float32))
    closed_ = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/proc")
    done = subprocess.run(
        [*COMMAND, "s.tif", "-q", "--preset", "fast", "--device", "cpu", "--dem", "dem.tif", *asked()],
        env=os.environ | closed_, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert {*ASKED.values()} <= {p.name for p in here.iterdir()}


# --- disks ----------------------------------------------------------------------------------------------


def visible(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("option", ASKED)
def test_a_disk_that_is_full(option: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From when this output is begun, no file can become larger; later there is room again."""
    atomic, before = outputs.atomic, resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        with atomic(path) as part:
            if path.name == ASKED[option]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            yield part

    with monkeypatch.context() as while_full:
        for module in (outputs, density, product):
            while_full.setattr(module, "atomic", full)
        try:
            done = run("map", "s.tif", *asked(option))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = done.stderr.splitlines()
    assert done.exit_code == 2, done.output
    assert said[0].startswith(f"error: {ASKED[option]} cannot be written")
    assert "--resume" in said[1]
    assert len(said) == 2
    assert visible(here) == {"s.tif"}
    assert run("map", "s.tif", *asked(option), "--resume").exit_code == 0
    assert {p.name for p in here.iterdir()} >= {"s.tif", "o.gpkg", ASKED[option]}
    assert not [p for p in here.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["p.tif", "o.shp", "o.gpkg", "o.fgb", "o.geojson", "o.parquet"])
def test_a_disk_that_fills_up_in_the_middle_of_a_file(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much of it can be written: libraries do not always say that they could not write the end."""
    image_ = np.tile(image(), (1, 2, 2))
    scene(here / "s.tif", image_)
    args = ["--out", "out.fgb", "--prob", name] if name == "p.tif" else ["--out", name]
    assert run("map", "s.tif", *args).exit_code == 0
    parts = ("shp", "shx", "dbf") if name == "o.shp" else (name[2:],)
    sizes = {part: Path(f"{name[:2]}{part}").stat().st_size for part in parts}
    atomic, before = outputs.atomic, resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in sizes.values():
        for limit in (size // 3, size - 9):
            Path("full").mkdir()
            shutil.copy("s.tif", "full")

            @contextmanager
            def full(path: Path, limit: int = limit) -> Iterator[Path]:
                with atomic(path) as part:
                    if path.name == name:
                        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
                    yield part

            with monkeypatch.context() as while_full:
                while_full.setattr(outputs, "atomic", full)
                while_full.chdir("full")
                try:
                    done = run("map", "s.tif", *args)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert done.exit_code == 2, (limit, sizes)
            assert visible(here / "full") == {"s.tif"}
            shutil.rmtree("full")


@pytest.mark.parametrize("when", ["networks", "writing"])
def test_a_folder_that_is_removed_while_running(when: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two folders: what goes into the other one does not appear either."""
    for name in ("gone", "stays"):
        Path(name).mkdir()
    fill, text = pipeline._fill, outputs.write_text

    def filled(*args: Any) -> None:
        fill(*args)
        if when == "networks":
            shutil.rmtree("gone")

    def written(path: Path, *args: Any, **how: Any) -> None:
        text(path, *args, **how)
        if when == "writing" and path.name == "p.qml":  # the last
            shutil.rmtree("gone")

    monkeypatch.setattr(pipeline, "_fill", filled)
    monkeypatch.setattr(outputs, "write_text", written)
    for gone, stays in (("--out", "--prob"), ("--prob", "--out")):
        Path("gone").mkdir(exist_ok=True)
        done = run("map", "s.tif", gone, f"gone/{ASKED[gone]}", stays, f"stays/{ASKED[stays]}", "--overwrite")
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert "gone" in done.stderr
        assert visible(here / "stays") == set()


# --- memory, printing -----------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not keep to this limit")
def test_too_little_memory(here: Path) -> None:
    """Even for the libraries."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (900 << 20,) * 2);"
    command = [sys.executable, "-c", f"{limit} {COMMAND[-1]}", "s.tif", "--out", "o.gpkg", "-q", "--device", "cpu"]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | threads, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: Not enough memory")
    assert len(done.stderr.splitlines()) == 1
    assert visible(here) == {"s.tif"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["models", "list"], ["--help"], ["--version"], ["check", "no.tif"]])
def test_nowhere_to_print(args: list[str], here: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, *args], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


class Full(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_map_is_made_though_nothing_can_be_printed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither progress, by ``-q`` left out, nor the result."""
    args = ["map", "s.tif", "--out", "o.gpkg", "--model", os.environ["MODEL"], "--device", "cpu", "--json"]
    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert len(gpd.read_file("o.gpkg", layer="landslides")) == 2
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with pytest.raises(SystemExit):
        main([*args, "-q", "--overwrite"])
    assert said.getvalue().startswith("error: The result cannot be printed: No space left on device. ")
    assert "complete" in said.getvalue()


@pytest.mark.parametrize("word", ["frobnicate", "mpa", "--frob"])
def test_mistyped_words_get_one_line(word: str, here: Path) -> None:
    refused(CliRunner().invoke(main, [word]), "--help")
