"""Reading records of runs, which can come from anyone: they are checked before anything is done with them."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from l4s_geo.deliverables import Outputs
from l4s_geo.errors import InputError, reason
from l4s_geo.models import registry
from l4s_geo.models.card import CARD
from l4s_geo.normalize import OF_THE_SCENE, WAYS
from l4s_geo.paths import is_remote
from l4s_geo.provenance.record import FORMAT
from l4s_geo.settings import MapOptions

#: Bytes of a record at most: far more than any has.
LARGEST = 16 << 20

#: Parts of a record and their types.
PARTS = {
    "options": dict,
    "settings": dict,
    "normalization": dict,
    "inputs": dict,
    "models": list,
    "versions": dict,
}

#: Options that say where results go and how the run is done: a record does not have them.
QUIET = {f.name for f in fields(Outputs)} | {"resume", "overwrite", "workers"}


@dataclass(frozen=True)
class Record:
    """What a run of ``map`` has written beside its output.

    Attributes:
        path: Of the file.
        content: As ``l4s_geo.pipeline`` wrote it.
        options: As they were given, with paths that lead from here; without those that were left open.
    """

    path: Path
    content: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def of_the_scene(self) -> bool:
        """Whether the statistics are those of its scene."""
        asked = self.options.get("normalize")
        return asked is None or asked in OF_THE_SCENE


def read_record(path: Path) -> Record:
    """Read a record, or that which a STAC item points to.

    Raises:
        InputError: It is none of ``map``, is damaged, or was written by a version that writes others.
    """
    content = _json(path)
    if content.get("type") == "Feature" and isinstance(content.get("assets"), dict):
        path = _of_item(path, content["assets"])
        content = _json(path)
    made = content.get("record")
    if not isinstance(made, dict):
        hint = " This one is of a version that did not keep all options." if "settings" in content else ""
        raise InputError(
            f"{path} is no record of a run: `l4s-map map` writes one beside every output, such as out.gpkg.json.{hint}"
        )
    if made.get("verb") != "map":
        raise InputError(
            f"{path} was written by `l4s-map {made.get('verb')}`, and only runs of `map` can be repeated."
            + (" Give the record beside the probabilities that it was made of." if "probabilities" in content else "")
        )
    if made.get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {made.get('format')!r}, written by l4s-map "
            f"{versions_then(content).get('l4s_geo', 'of another version')}; this version reads format {FORMAT}. "
            "Repeat it with that version."
        )
    faults = [name for name, kind in PARTS.items() if not isinstance(content.get(name), kind)]
    faults = faults or [*_faults(content)]
    if faults:
        raise InputError(f"{path} is damaged: it has no {', '.join(faults)} as `l4s-map map` writes them.")
    return Record(path, content, _options(path, content))


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST >> 20} MB, as no record is. It is not read.")
        content = json.loads(text.decode("utf-8"))
    except OSError as e:
        raise InputError(f"The record {path} cannot be read: {e.strerror}. Check the path.") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is no record of a run: it is no JSON ({reason(e)}).") from e
    if not isinstance(content, dict):
        raise InputError(f"{path} is no record of a run, but other JSON.")
    return content


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Parts whose content cannot be that of a record."""
    if not content["models"] or not all(isinstance(m, dict) for m in content["models"]):
        yield "models"
    if not {"scene"} <= {*content["inputs"]} <= {*content["options"]}:
        yield "inputs"


def _of_item(path: Path, assets: Mapping[str, Any]) -> Path:
    """The record that a STAC item points to, in its own folder."""
    asset = assets.get("record")
    name = asset.get("href") if isinstance(asset, dict) else None
    if not isinstance(name, str) or not name or is_remote(name):
        raise InputError(f"{path} is a STAC item, but `l4s-map map --stac` did not write it: it names no record.")
    return path.parent / name


def _options(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the command line takes them; it also checks their values."""
    known = {f.name for f in fields(MapOptions)} - QUIET - {"decided"}
    asked: dict[str, Any] = content["options"]
    unknown = sorted({*asked} - known)
    if unknown:
        raise InputError(
            f"{path} has options that this version does not know ({', '.join(unknown)[:200]}); l4s-map "
            f"{versions_then(content).get('l4s_geo', 'of another version')} wrote it. Repeat it with that version."
        )
    options = {name: value for name, value in asked.items() if value is not None}
    kinds = {f.name: str(f.type) for f in fields(MapOptions)}
    odd = [name for name, value in options.items() if not _could_be(value, kinds[name])]
    if odd:
        raise InputError(f"{path} is damaged: its option {odd[0]} is {json.dumps(options[odd[0]])[:60]}.")
    places = {*content["inputs"], "models", "normalize"} & {*options}
    for name in places - ({"normalize"} if options.get("normalize") in WAYS else set()):
        words = [_located(path, content, str(word)) for word in words_of(options[name])]
        options[name] = words if isinstance(options[name], list) else words[0]
    if "bands" in options:
        options["bands"] = ",".join(options["bands"])
    return options


def _could_be(value: Any, kind: str) -> bool:
    """Whether a value is of the kind that an option takes; the command line looks at it more closely."""
    if "tuple" in kind:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    return isinstance(value, bool) if "bool" in kind else isinstance(value, (str, int, float))


def words_of(value: Any) -> list[Any]:
    """Several as they are, one as a list."""
    return value if isinstance(value, list) else [value]


def _located(path: Path, content: Mapping[str, Any], word: str) -> str:
    """A path of the record as it leads from here.

    Relative ones begin where the run was started. Where nothing is there, the place relative to the record is tried, so
    that a folder with scenes and maps may be moved. What leads nowhere stays as it is.
    """
    if is_remote(word) or (registry.BUNDLED / word / CARD).is_file():
        return word
    if "," in word:
        return ",".join(_located(path, content, part.strip()) for part in word.split(","))
    began, lay = content["record"].get("folder"), content.get("folder")
    if not (isinstance(began, str) and isinstance(lay, str)):
        return word
    there = os.path.normpath(Path(began) / word)
    if leads_somewhere(there):
        return there
    beside = os.path.normpath(path.absolute().parent / os.path.relpath(there, lay))
    return beside if leads_somewhere(beside) else there


def leads_somewhere(word: str) -> bool:
    """Whether a path or pattern stands for something that is there."""
    return Path(word).exists() or (glob.has_magic(word) and any(glob.iglob(word, recursive=True)))  # noqa: PTH207


def versions_then(content: Mapping[str, Any]) -> dict[str, Any]:
    """Versions in the content of a record, of whatever kind it is."""
    found = content.get("versions")
    return found if isinstance(found, dict) else {}
