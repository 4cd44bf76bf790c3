"""Stages that overlap: each works ahead of the next one in threads of its own, in order and bounded.

What is heavy here (GDAL, torch, numpy on large arrays) lets other threads run meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count
from typing import TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def ahead(items: Iterable[T], work: Callable[[T], R], *, threads: int = 1, depth: int = 2) -> Generator[R]:
    """Results of ``work`` in the order of the items, while threads compute the next ones.

    Args:
        items: Taken by the calling thread as they are needed.
        work: Runs in the threads.
        threads: How many.
        depth: Results that may wait or be worked on; bounds memory.

    Yields:
        Results. What ``work`` raises is raised in place of its result; nothing is begun any more then, and all
        threads have ended when this iterator has.
    """
    with ThreadPoolExecutor(threads) as pool:
        yield from in_order((pool.submit(work, item) for item in items), depth)


def in_order(futures: Iterable[Future[R]], depth: int) -> Generator[R]:
    """Results in order, with at most ``depth`` futures asked for ahead; those that are left are cancelled."""
    pending: deque[Future[R]] = deque()
    try:
        for future in futures:
            pending.append(future)
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def prefetched(items: Iterable[T], depth: int = 2) -> Generator[T]:
    """The same items, up to ``depth`` of them computed ahead in one other thread, which alone runs the iterator."""
    iterator = iter(items)
    with closing(ahead(count(), lambda _: next(iterator, _END), depth=depth)) as found:
        for item in found:
            if item is _END:
                return
            yield cast(T, item)
