"""Threads and processes that work ahead: results in order, failures seen, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from l4s_geo.errors import L4SError
from l4s_geo.threads import ahead, in_order, prefetched
from l4s_geo.workers import processes

posix = pytest.mark.skipif(os.name != "posix", reason="sends signals")

WAITING = """
import os, sys, time
from l4s_geo.workers import processes
if __name__ == "__main__":
    with processes(2) as pool:
        pids = set()
        while len(pids) < 2:  # one that is still being started would say so when it is ended
            found = [pool.submit(os.getpid) for _ in range(20)]
            pids |= {f.result() for f in found}
        print(*pids, flush=True)
        list(pool.map(time.sleep, [0.5] * 1000))
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_for(*pids: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if all(gone(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_results_come_in_order_and_only_a_little_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return -i

    results = ahead(items(), work, threads=3, depth=6)
    for i, found in zip(range(50), results, strict=False):
        assert found == -i
        assert len(taken) <= i + 8
    results.close()
    assert len(taken) < 70
    assert threading.active_count() == 1


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_prefetched_items_are_the_items(depth: int) -> None:
    assert list(prefetched(iter(range(20)), depth)) == list(range(20))
    assert list(prefetched([], depth)) == []


def test_a_failure_takes_the_place_of_its_result() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = in_order((pool.submit(int, word) for word in ["1", "2", "x", "4"]), 2)
        assert [next(results), next(results)] == [1, 2]
        with pytest.raises(ValueError, match="'x'"):
            next(results)


@posix
def test_a_process_killed_from_outside_is_an_error_and_all_others_end() -> None:
    with pytest.raises(L4SError, match="memory"), processes(2) as pool:  # noqa: PT012
        pids = {pool.submit(os.getpid).result() for _ in range(20)}
        slow = [pool.submit(time.sleep, 30) for _ in range(2)]
        os.kill(min(pids), signal.SIGKILL)
        slow[0].result()
    assert wait_for(*pids)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_processes_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WAITING)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as run:
        assert run.stdout is not None
        pids = [int(word) for word in run.stdout.readline().split()]
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
        else:
            run.send_signal(number)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == -number
    assert errors.count(b"Traceback") == (number == signal.SIGINT)
    assert wait_for(*pids)
