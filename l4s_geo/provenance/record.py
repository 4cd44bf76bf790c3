"""How a result came about, as data: asked for in which words, made of which files, by which models and programs."""

from __future__ import annotations

import hashlib
import platform
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from l4s_geo import __version__
from l4s_geo.models.card import CARD, sha256
from l4s_geo.models.registry import Model
from l4s_geo.paths import is_file

#: Of what is written here; one that cannot be read as this one is gets another number.
FORMAT = 1

#: Files that belong to one with another extension: without them a shapefile has no attributes or no place on Earth.
BESIDE = {".shp": (".shx", ".dbf", ".prj", ".cpg")}

#: Bytes that are read at a time.
BLOCK = 1 << 20

#: What an input is called on the command line: one path or address, or several.
Given = str | Path | Sequence[str] | None


def origin(verb: str) -> dict[str, Any]:
    """What kind of record this is, and where relative paths in it begin."""
    return {"verb": verb, "format": FORMAT, "folder": str(Path.cwd())}


def written(path: Path) -> dict[str, str]:
    """Which output a record is of, where it was written and when (UTC); not in the output, which has no time in it."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"output": path.name, "folder": str(path.absolute().parent), "written": now}


def versions() -> dict[str, str]:
    """Of the package and of what its results depend on; of torch only where networks run."""
    torch = sys.modules.get("torch")
    return {
        "l4s_geo": __version__,
        "python": platform.python_version(),
        **({} if torch is None else {"torch": str(torch.__version__)}),
        "gdal": rasterio.__gdal_version__,
    }


def models_used(models: Iterable[Model]) -> list[dict[str, Any]]:
    """Models by name, place, and checksum of their weights and card."""
    return [
        {
            "name": m.card.name,
            "version": m.card.version,
            "folder": str(m.folder.absolute()),
            "sha256": {n.name: n.sha256 for n in m.card.networks},
            "calibration": m.card.calibration or None,
            "card_sha256": sha256(m.folder / CARD),
        }
        for m in models
    ]


def calibrated(models: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what models say, as ``models_used`` has them, was fitted to labels or learnt with its doubts."""
    return bool(models) and all(model.get("calibration") for model in models)


@contextmanager
def inputs_of(files: Mapping[str, Sequence[str]] | None = None, **given: Given) -> Iterator[Future[dict[str, Any]]]:
    """Look at inputs while something else is done: all of each file is read for its checksum, in a thread.

    Args:
        files: Paths that a word stands for (a folder, a pattern), by what they are for.
        given: Words by what they are for; those that are empty are left out.

    Yields:
        What ``input_files`` returns; it is given up where the block ends before.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1, "checksums") as pool:
        try:
            yield pool.submit(input_files, given, files, stop)
        finally:
            stop.set()


def input_files(
    given: Mapping[str, Given],
    files: Mapping[str, Sequence[str]] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Inputs by what they are for, as the record has them; several for one purpose as a list.

    Args:
        given: As in ``inputs_of``.
        files: As in ``inputs_of``.
        stop: Ends it early.

    Returns:
        For each the ``path`` as given, its ``bytes``, and its ``files`` with their absolute ``path``, ``bytes`` and
        ``sha256``; what is not on a disk of this machine has no files.
    """
    known, stop = files or {}, stop or threading.Event()

    def entry(word: str | Path, paths: Sequence[str]) -> dict[str, Any]:
        found = [print_ for path in files_of(paths) if (print_ := fingerprint(path, stop)) is not None]
        return {"path": str(word), "bytes": sum(f["bytes"] for f in found) if found else None, "files": found}

    return {
        name: entry(word, known.get(name, [str(word)]))
        if isinstance(word, (str, Path))
        else [entry(one, [one]) for one in word]
        for name, word in given.items()
        if word
    }


def files_of(paths: Iterable[str]) -> list[Path]:
    """Files on disk that these paths stand for, in order: parts of shapefiles, sources of VRTs and masks beside too.

    Overviews and statistics (``.ovr``, ``.aux.xml``) are left out: programs that only show a file write them.
    """
    found: dict[Path, None] = {}
    for word in paths:
        path = Path(word)
        if path.is_dir():
            found |= dict.fromkeys(p for p in sorted(path.rglob("*")) if p.is_file())
        elif is_file(path):
            found |= dict.fromkeys([path, *_parts(path)])
    return [*found]


def _parts(path: Path) -> Iterator[Path]:
    """Files that belong to this one."""
    suffix = path.suffix.lower()
    beside = [path.with_suffix(end) for end in BESIDE.get(suffix, ())] + [path.with_name(f"{path.name}.msk")]
    yield from (p for p in beside if is_file(p))
    if suffix == ".vrt":
        try:
            with rasterio.open(path) as raster:
                sources = [Path(p) for p in raster.files]
        except RasterioError:  # whoever maps it says what is wrong
            sources = []
        yield from (p for p in sources if p != path and is_file(p) and not p.name.endswith((".ovr", ".aux.xml")))


def fingerprint(path: Path, stop: threading.Event | None = None) -> dict[str, Any] | None:
    """Absolute path, size and SHA-256 of a file; None where it cannot be read, or where ``stop`` was set before."""
    try:
        digest, size = hashlib.sha256(), 0
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK):
                if stop is not None and stop.is_set():
                    return None
                digest.update(block)
                size += len(block)
    except OSError:
        return None
    return {"path": str(path.absolute()), "bytes": size, "sha256": digest.hexdigest()}
