import io
import os
import pty
import subprocess
import sys

import pytest

from l4s_geo.progress import LineProgress, Progress, RichProgress, Silent, make_progress

STAGE = """
from l4s_geo.progress import make_progress
p = make_progress(False)
p.start("reading [x]", 3)
for _ in range(3): p.say("loss [1]"); p.advance()
p.start("writing", 1); p.advance(); p.finish(); p.finish()
"""


def lines_of(total: int, steps: list[int]) -> list[str]:
    out = io.StringIO()
    progress = LineProgress(out)
    progress.start("mapping", total)
    for n in steps:
        progress.advance(n)
    progress.finish()
    return out.getvalue().splitlines()


def test_lines_come_once_per_tenth_however_small_the_steps() -> None:
    lines = lines_of(1000, [1] * 1000)
    assert len(lines) == 1 + 9 + 1
    assert lines[0] == "mapping: 1000 steps"
    assert lines[5].startswith("mapping: 50 % (500 of 1000, ")
    assert lines[-1].startswith("mapping: done (1000 of 1000, ")


@pytest.mark.parametrize(("total", "steps"), [(0, []), (1, [1]), (3, [5]), (7, [7]), (0, [2])])
def test_odd_totals_give_a_first_and_a_last_line_only(total: int, steps: list[int]) -> None:
    assert len(lines_of(total, steps)) == 2


def test_a_stage_left_open_is_finished_by_the_next_and_finish_is_safe_to_repeat() -> None:
    out = io.StringIO()
    progress = LineProgress(out)
    progress.advance()
    progress.start("one", 2)
    progress.start("two", 2)
    progress.finish()
    progress.finish()
    starts = [line.split(" (")[0] for line in out.getvalue().splitlines()]
    assert starts == ["one: 2 steps", "one: done", "two: 2 steps", "two: done"]


def test_what_is_said_stands_behind_the_lines_of_its_stage() -> None:
    out = io.StringIO()
    progress = LineProgress(out)
    progress.start("one", 10)
    progress.say("loss 2")
    progress.say("loss 1")
    progress.advance(10)
    progress.start("two", 1)
    progress.finish()
    assert [line.endswith("loss 1") for line in out.getvalue().splitlines()] == [False, True, False, False]


def test_kind_follows_quiet_and_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_progress(True), Silent)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(make_progress(False), LineProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(make_progress(False), RichProgress)


@pytest.mark.parametrize("progress", [Silent(), LineProgress(io.StringIO())])
def test_nothing_goes_to_stdout(progress: Progress, capfd: pytest.CaptureFixture[str]) -> None:
    progress.start("x", 2)
    progress.advance(2)
    progress.finish()
    assert capfd.readouterr() == ("", "")


def test_bars_on_a_real_terminal_go_to_stderr_and_give_the_cursor_back() -> None:
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", STAGE]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, env=env, check=False)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert done.returncode == 0
    assert done.stdout == b""
    assert "reading [x]" in shown
    assert "3/3" in shown
    assert "loss [1]" in shown
    assert "writing" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")
