"""Worker processes, which end with this one in whatever way it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from l4s_geo.errors import L4SError


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes; all are gone after the ``with`` block, and calls that have not begun are dropped.

    They are started anew rather than forked, for this process has threads, and GDAL and torch in them. A script that
    maps therefore has to begin under ``if __name__ == "__main__"``.

    Args:
        count: How many.

    Raises:
        L4SError: One was ended from outside.
    """
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_attend)
    try:
        yield pool
    except BrokenProcessPool as e:
        raise L4SError(
            "A worker process ended unexpectedly, most likely because memory ran out. Free memory, or use fewer "
            "--workers, and run the command again."
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


def _attend() -> None:
    """Leave Ctrl-C to the process that has started this one, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
