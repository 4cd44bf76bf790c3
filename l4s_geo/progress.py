"""Telling a person how far the work is: four methods, three ways to show them, all on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    import rich.progress
    from rich.progress import TaskID


class Progress(Protocol):
    """What long work reports to. Each stage is ``start``, ``advance`` as often as needed, ``finish``."""

    def start(self, label: str, total: int) -> None:
        """Begin a stage of ``total`` steps; a stage still open is finished first."""

    def advance(self, n: int = 1) -> None:
        """Say that ``n`` more steps of the stage are done."""

    def say(self, text: str) -> None:
        """How it goes, in a few words that replace those before; shown beside the stage."""

    def finish(self) -> None:
        """End the stage. Without an open stage it does nothing, so it is safe in a ``finally``."""


class Silent:
    """Shows nothing."""

    def start(self, label: str, total: int) -> None:
        """Nothing to show."""

    def advance(self, n: int = 1) -> None:
        """Nothing to show."""

    def say(self, text: str) -> None:
        """Nothing to show."""

    def finish(self) -> None:
        """Nothing to show."""


class LineProgress:
    """A plain line for every tenth of a stage, for log files and pipes, where a moving bar would be noise.

    Args:
        stream: Where the lines go; stderr as it is at the time of writing if not given.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._label: str | None = None
        self._total = 0
        self._done = 0
        self._since = 0.0
        self._said = ""

    def start(self, label: str, total: int) -> None:
        """Print the stage's name and size."""
        self.finish()
        self._label, self._total, self._done, self._since, self._said = label, total, 0, time.monotonic(), ""
        self._print(f"{label}: {total} steps")

    def advance(self, n: int = 1) -> None:
        """Print a line where a tenth of the stage was completed."""
        before = self._tenths()
        self._done += n
        if self._label is not None and before < self._tenths() < 10:
            self._print(f"{self._label}: {10 * self._tenths()} % {self._count()}{self._said}")

    def say(self, text: str) -> None:
        """Put it behind the next lines."""
        self._said = f" {text}"

    def finish(self) -> None:
        """Print how long the stage took."""
        if self._label is not None:
            self._print(f"{self._label}: done {self._count()}{self._said}")
            self._label = None

    def _tenths(self) -> int:
        return 10 * self._done // max(self._total, 1)

    def _count(self) -> str:
        return f"({self._done} of {self._total}, {time.monotonic() - self._since:.0f} s)"

    def _print(self, line: str) -> None:
        with suppress(OSError):  # a log that is full, or closed, is no reason to stop
            print(line, file=self._stream or sys.stderr, flush=True)


class RichProgress:
    """One bar per stage, with the time left, on a terminal."""

    def __init__(self) -> None:
        self._bar: tuple[rich.progress.Progress, TaskID] | None = None

    def start(self, label: str, total: int) -> None:
        """Show a bar below the ones of earlier stages."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.finish()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[said]}", markup=False),
        )
        bar = Progress(*columns, console=Console(stderr=True))
        self._bar = bar, bar.add_task(label, total=total, said="")
        bar.start()

    def advance(self, n: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            bar, task = self._bar
            bar.advance(task, n)

    def say(self, text: str) -> None:
        """Write it behind the bar."""
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, said=text)

    def finish(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None


def make_progress(quiet: bool) -> Progress:
    """Bars on a terminal, plain lines elsewhere, nothing when ``quiet``."""
    if quiet:
        return Silent()
    return RichProgress() if sys.stderr.isatty() else LineProgress()
