"""Many scenes, one after another: what fails does not stop the rest, and a table says how each one ended."""

from __future__ import annotations

import csv
import glob
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from l4s_geo.errors import InputError, L4SError, OutputError, reason
from l4s_geo.pipeline import map_scene
from l4s_geo.plan import Here, Source
from l4s_geo.progress import Progress
from l4s_geo.settings import MapOptions

#: Lists of scenes by extension: one scene a line, or a table.
LISTS = (".txt", ".csv")

#: Columns of a table of scenes; the first must be there.
COLUMNS = ("scene", "dem", "slope", "pre", "name")


#: Ends of the names of files beside the polygons, by the option of ``map`` that asks for them.
BESIDE = {
    "prob": ".tif",
    "density": "-density.tif",
    "report": ".html",
    "quicklook": ".png",
    "stac": "-item.json",
}


@dataclass(frozen=True)
class Job:
    """A scene to map, and the name of its result."""

    scene: str
    name: str
    dem: str | None = None
    slope: str | None = None
    pre: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a scene ended: ``mapped``, ``there already`` or ``failed``."""

    job: Job
    state: str
    seconds: float = 0.0
    error: str = ""
    summary: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "scene": self.job.scene,
            "state": self.state,
            "seconds": round(self.seconds, 1),
            "error": self.error,
        } | {k: v for k, v in self.summary.items() if k != "seconds"}


def find_jobs(words: Sequence[str], part: tuple[int, int] = (1, 1)) -> list[Job]:
    """Scenes that the words name: paths, folders, globs, addresses, and lists of these (``.txt``, ``.csv``).

    Args:
        words: As given on the command line. Paths in a list are relative to the list.
        part: ``(i, n)``: every n-th scene from the i-th on, so that n machines share the work.

    Raises:
        InputError: A word stands for no scene, a list cannot be read, or two scenes would get the same name.
    """
    jobs = [job for word in words for job in _of_word(word)]
    twice = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    if twice:
        raise InputError(
            f"Several scenes would be written as {twice[0]}: "
            f"{', '.join(j.scene for j in jobs if j.name == twice[0])}. Give them names in a table: a .csv file with "
            "the columns scene,name."
        )
    first, of = part
    return jobs[first - 1 :: of]


def _of_word(word: str) -> Iterator[Job]:
    path = Path(word)
    if path.suffix.lower() in LISTS:
        yield from _of_list(path)
    elif glob.has_magic(word) and "://" not in word and not path.exists():
        found = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 (the word may be absolute)
        if not found:
            raise InputError(f"No file is named like {word}. Check the path, and put it in quotes.")
        yield from (Job(scene, _name(scene)) for scene in found)
    else:
        yield Job(word, _name(word))


def _of_list(path: Path) -> Iterator[Job]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"The list {path} cannot be read: {reason(e)}.") from e
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if path.suffix.lower() == ".txt":
        rows: Iterable[dict[str, str]] = ({"scene": line.strip()} for line in lines)
    else:
        table = csv.DictReader(lines)
        unknown = {*(table.fieldnames or ())} - {*COLUMNS}
        if unknown or "scene" not in (table.fieldnames or ()):
            raise InputError(
                f"{path} has the columns {', '.join(table.fieldnames or ())}; it needs scene and may have "
                f"{', '.join(COLUMNS[1:])}."
            )
        rows = table
    if not lines:
        raise InputError(f"{path} lists no scene. Write one path a line.")
    for row in rows:
        scene, dem, slope, pre = (_beside(path, row.get(k)) for k in COLUMNS[:4])
        if scene is None:
            raise InputError(f"{path} has a line without a scene: {row}.")
        yield Job(scene, row.get("name") or _name(scene), dem, slope, pre)


def _beside(listed: Path, word: str | None) -> str | None:
    """A path relative to the list it stands in; addresses stay as they are."""
    if not word:
        return None
    return word if "://" in word or word.startswith("/vsi") else str(listed.parent / word)


def _name(scene: str) -> str:
    """Of the result: that of the scene without its extension."""
    return Path(scene.rstrip("/").split("?")[0]).stem


def map_batch(
    jobs: Sequence[Job],
    out: Path,
    options: MapOptions,
    progress: Progress,
    *,
    extension: str = ".gpkg",
    also: Sequence[str] = (),
    source: Source | None = None,
) -> Iterator[Outcome]:
    """Map scenes one after another; the networks are loaded once.

    Args:
        jobs: The scenes.
        out: Folder of the results, made if it is not there.
        options: For all of them. With ``resume`` scenes whose result is there are left alone.
        progress: Says which scene is mapped, and how far.
        extension: Of the results.
        also: Files beside the polygons that are wanted of each scene, of ``BESIDE``.
        source: Where the probabilities are computed; by this process if not given.

    Yields:
        How each scene ended, as soon as it has.

    Raises:
        OutputError: The folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{out} cannot be made: {e.strerror}. Choose another folder.") from e
    source = source or Here()
    for number, job in enumerate(jobs, 1):
        result = out / f"{job.name}{extension}"
        if options.resume and result.exists():
            yield Outcome(job, "there already")
            continue
        beside: dict[str, Any] = {name: out / f"{job.name}{BESIDE[name]}" for name in also}
        own = replace(
            options,
            scene=job.scene,
            out=result,
            dem=job.dem or options.dem,
            slope=job.slope or options.slope,
            pre=job.pre or options.pre,
            **beside,
        )
        progress.start(f"{number} of {len(jobs)}: {job.name}", 1)
        started = time.monotonic()
        try:
            found = map_scene(own, progress, source)
        except L4SError as e:
            error = "\n".join([str(e), *getattr(e, "__notes__", [])])
            yield Outcome(job, "failed", time.monotonic() - started, error)
        else:
            yield Outcome(job, "mapped", time.monotonic() - started, summary=found.summary)
