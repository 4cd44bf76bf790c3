"""Interrupted runs: killed, stopped, out of disk or out of input, they go on where they were, to the same bytes."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from l4s_geo import crf, pipeline
from l4s_geo.errors import InputError, OutputError
from l4s_geo.journal import Journal, journal
from l4s_geo.pipeline import map_scene
from l4s_geo.progress import Silent
from l4s_geo.scene import Scene

from .test_pipeline import model, options, write  # noqa: F401 (a fixture)

ROWS, WIDTH = 1500, 300


@pytest.fixture
def tall(tmp_path):
    """A scene of many rows with landslides all over it."""
    rng = np.random.default_rng(2)
    image = rng.normal(500, 50, (3, ROWS, WIDTH)).clip(300, 640)
    for row in range(20, ROWS, 90):
        image[:, row : row + 40, 30:100] = 1200
    image[:, 700:800, :30] = 0
    return write(tmp_path / "tall.tif", image)


@pytest.fixture
def often(monkeypatch):
    """Runs note what is done after every few rows."""
    monkeypatch.setattr(pipeline, "NOTED", 64)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("out.fgb", "prob.tif")}


def wanted(scene, model, folder, **changes):  # noqa: F811
    made = options(scene, model, folder, prob=folder / "prob.tif", **changes)
    return replace(made, out=folder / "out.fgb")


def left(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.fixture
def whole(tall, model, tmp_path):  # noqa: F811
    """What an uninterrupted run writes."""
    return mapped_and_removed(tall, model, tmp_path)


def mapped_and_removed(scene, model, folder, **changes):  # noqa: F811
    """What a run writes, and leaves no trace of: the names of its outputs are written into them."""
    map_scene(wanted(scene, model, folder, **changes), Silent())
    found = results(folder)
    for name in (*found, "out.fgb.json", "prob.tif.json"):
        (folder / name).unlink()
    return found


def fail_at(monkeypatch, row, error):
    """Mapping, which reads whole rows, fails from a row on."""
    read = Scene.read

    def broken(self, window, bands=None):
        if window.row_off + window.height > row and len(bands or ()) and window.width == WIDTH:
            raise error
        return read(self, window, bands)

    monkeypatch.setattr(Scene, "read", broken)
    return lambda: monkeypatch.setattr(Scene, "read", read)


@pytest.mark.parametrize("error", [InputError("The mount is gone."), KeyboardInterrupt(), MemoryError()])
def test_a_run_whose_input_is_lost_goes_on_later(error, tall, model, whole, tmp_path, often, monkeypatch):  # noqa: F811
    restore = fail_at(monkeypatch, 1000, error)
    with pytest.raises(type(error)) as failed:
        map_scene(wanted(tall, model, tmp_path), Silent())
    assert "--resume" in failed.value.__notes__[0]
    assert left(tmp_path)
    assert not (tmp_path / "out.fgb").exists()
    assert not (tmp_path / "prob.tif").exists()
    restore()
    read, rows = Scene.read, []

    def counted(self, window, bands=None):
        rows.append(int(window.row_off))
        return read(self, window, bands)

    monkeypatch.setattr(Scene, "read", counted)
    map_scene(wanted(tall, model, tmp_path, resume=True), Silent())
    assert results(tmp_path) == whole
    assert not left(tmp_path)
    mapped = [r for r in rows if r % 256]  # opening and the polygons read other windows
    assert min(mapped) > 300


@pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is not installed")
def test_the_crf_goes_on_where_it_was(tall, model, tmp_path, often, monkeypatch):  # noqa: F811
    whole = mapped_and_removed(tall, model, tmp_path, crf=True)
    refine, rows = crf.refine, []

    def noted(prob, image, params, corner):
        rows.append(corner[0])
        if len(rows) == 6:
            raise KeyboardInterrupt
        return refine(prob, image, params, corner)

    monkeypatch.setattr(crf, "refine", noted)
    with pytest.raises(KeyboardInterrupt):
        map_scene(wanted(tall, model, tmp_path, crf=True), Silent())
    first = rows[5]
    map_scene(wanted(tall, model, tmp_path, crf=True, resume=True), Silent())
    assert min(rows[6:]) >= first > 0
    assert results(tmp_path) == whole
    assert not left(tmp_path)


def test_a_run_whose_disk_is_full_goes_on_later(tall, model, whole, tmp_path, often):  # noqa: F811
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROWS * WIDTH * 10, before[1]))  # half of the last of three layers
    try:
        with pytest.raises(OutputError, match="working data") as failed:
            map_scene(wanted(tall, model, tmp_path), Silent())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "--resume" in failed.value.__notes__[0]
    map_scene(wanted(tall, model, tmp_path, resume=True), Silent())
    assert results(tmp_path) == whole


def test_what_has_changed_is_refused(tall, model, tmp_path, often, monkeypatch):  # noqa: F811
    restore = fail_at(monkeypatch, 1000, InputError("The mount is gone."))
    with pytest.raises(InputError):
        map_scene(wanted(tall, model, tmp_path), Silent())
    restore()
    with pytest.raises(InputError, match="threshold"):
        map_scene(wanted(tall, model, tmp_path, resume=True, threshold=0.9), Silent())
    with pytest.raises(InputError, match="--resume, or begin anew with --overwrite"):
        map_scene(wanted(tall, model, tmp_path), Silent())
    os.utime(tall, ns=(1, 1))
    with pytest.raises(InputError, match=r"tall\.tif"):
        map_scene(wanted(tall, model, tmp_path, resume=True), Silent())
    assert left(tmp_path)
    map_scene(wanted(tall, model, tmp_path, overwrite=True), Silent())
    assert not left(tmp_path)


def test_nothing_to_resume_is_a_run_like_any_other(tall, model, whole, tmp_path):  # noqa: F811
    map_scene(wanted(tall, model, tmp_path, resume=True), Silent())
    assert results(tmp_path) == whole


def test_two_runs_for_one_output_do_not_meet(tmp_path):
    with (
        journal(tmp_path / "o.gpkg", {}),
        pytest.raises(OutputError, match="Another l4s-map"),
        journal(tmp_path / "o.gpkg", {}),
    ):
        pass
    assert not left(tmp_path)


def test_a_note_that_was_cut_off_does_not_count(tmp_path):
    notes = Journal(tmp_path)
    notes.record("networks", 512)
    with (tmp_path / "done.txt").open("a") as file:
        file.write("networks 10")
    assert Journal(tmp_path).done("networks") == 512


KILLED = """
    import os, sys, time
    from pathlib import Path
    import torch
    from l4s_geo import crf, pipeline
    from l4s_geo.models import zoo
    from l4s_geo.progress import Silent
    sys.path.insert(0, {root!r})
    from tests.test_pipeline import Brightness
    from tests.test_resume import wanted

    class Slow(Brightness):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    zoo.build = lambda name, args, n: Slow()
    pipeline.NOTED = 64
    folder = Path({folder!r})

    def once(resume):
        child = os.fork()
        if not child:
            pipeline.map_scene(wanted(folder / "tall.tif", str(folder / "bright"), folder, resume=resume), Silent())
            os._exit(0)
        return child

    for line in sys.stdin:
        seconds = float(line)
        child = once(True)
        done, end = (0, 0), time.monotonic() + seconds
        while done[0] == 0 and time.monotonic() < end:
            done = os.waitpid(child, os.WNOHANG)
            time.sleep(0.005)
        if done[0] == 0:
            os.kill(child, 9)
            done = os.waitpid(child, 0)
        print(done[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_killed_again_and_again_it_ends_with_the_same_bytes(tall, model, whole, tmp_path):  # noqa: F811
    """One process imports everything once; its children map, and are killed at random moments."""
    code = textwrap.dedent(KILLED).format(root=str(Path(__file__).parents[1]), folder=str(tmp_path))
    rng = random.Random(4)
    kills, progress = 0, []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as runs:
        for life in range(40):
            print(rng.uniform(0.05, 0.3) * (1 + life / 4), file=runs.stdin, flush=True)
            if int(runs.stdout.readline()) == 0:
                break
            kills += 1
            assert not (tmp_path / "out.fgb").exists() or (tmp_path / "out.fgb").read_bytes() == whole["out.fgb"]
            if not left(tmp_path) and all((tmp_path / name).exists() for name in whole):
                break  # killed when all was done
            progress.append(Journal(tmp_path / ".out.fgb.l4s-map").done("networks"))
            for name in whole:  # it may have been killed between the last rename and the end
                (tmp_path / name).unlink(missing_ok=True)
        runs.stdin.close()
    assert kills >= 3
    assert progress == sorted(progress)
    assert any(0 < p < ROWS for p in progress)
    assert results(tmp_path) == whole
    assert not left(tmp_path)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX systems")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_how_to_go_on(number, tmp_path, monkeypatch):
    wait = """
        import sys, time, types
        from pathlib import Path
        from l4s_geo.journal import journal
        def map_scene(options, progress):
            with journal(options["out"], {}) as notes:
                notes.record("networks", 1)
                print("ready", flush=True)
                time.sleep(60)
        sys.modules["l4s_geo.pipeline"] = types.SimpleNamespace(MapOptions=dict, map_scene=map_scene)
        from l4s_geo.cli import main; main(["map", "s.tif", "--out", "o.gpkg", "-q"])
    """
    command = [sys.executable, "-c", textwrap.dedent(wait)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.1)
        run.send_signal(number)
        _, said = run.communicate(timeout=120)
    assert run.returncode == (130 if number == signal.SIGINT else 143)
    assert "--resume" in said
    assert "Traceback" not in said
    assert left(tmp_path) == [".o.gpkg.l4s-map"]
    assert json.loads((tmp_path / left(tmp_path)[0] / "asked.json").read_text()) == {}
