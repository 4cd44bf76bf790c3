"""Repeating a run from its record (``map --from``), which can come from anyone: it is checked, and names no output."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from l4s_geo import crf
from l4s_geo.crf import CrfParams
from l4s_geo.errors import InputError, L4SError, ModelError, reason
from l4s_geo.models import registry
from l4s_geo.models.card import CARD, sha256
from l4s_geo.normalize import NAMED, Normalizer
from l4s_geo.plan import computed_on
from l4s_geo.record import FORMAT, files_of, fingerprint, input_files, versions
from l4s_geo.results import Outputs
from l4s_geo.scene.source import is_remote, select
from l4s_geo.settings import Decided, MapOptions, Preset, Settings
from l4s_geo.tiling import PATCH

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
    "scene": dict,
}

#: Options that say where results go and how the run is done: a record does not have them.
QUIET = {f.name for f in fields(Outputs)} | {"resume", "overwrite", "workers"}

#: Options that cannot change the statistics of the scene; what is not named here, can.
HARMLESS = QUIET | {"aoi", "preset", "tta", "crf", "simplify", "device", "dtype", "batch_size"}
HARMLESS |= {f.name for f in fields(Preset)}

#: What decides a setting that is not called like its option.
DECIDED_BY = {"stride": {"overlap"}, "crf": {"crf", "threshold"}}

#: Of ``--normalize``: those that depend on the scene, and all that are no file.
OF_THE_SCENE = ("scene", "centre")
NOT_A_FILE = (*OF_THE_SCENE, "model", *NAMED)


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
            f"{_versions(content).get('l4s_geo', 'of another version')}; this version reads format {FORMAT}. Repeat it "
            "with that version."
        )
    faults = [name for name, kind in PARTS.items() if not isinstance(content.get(name), kind)]
    if faults or not all(isinstance(m, dict) for m in content["models"]):
        raise InputError(f"{path} is damaged: it has no {', '.join(faults) or 'models'} as `l4s-map map` writes them.")
    return Record(path, content, _options(path, content))


def repeated(record: Record, options: MapOptions, given: Collection[str]) -> MapOptions:
    """Options of a run that repeats another one, after a look at its inputs and models.

    What the user gives wins, and what depended on it is decided anew: thresholds with another model or preset, the
    statistics with another scene or masks. An input or a model that is given but is the same as it was, only in another
    place, changes nothing. With another scene, the other files of the record do not count: they belong to the first.

    Args:
        record: Of the run.
        options: The record's, with what is given on top.
        given: Names of the options that the user gave.

    Raises:
        InputError: An input is missing or has changed, or the record is damaged.
        ModelError: A model is missing or another one.
    """
    inputs: dict[str, Any] = record.content["inputs"]
    same = {name for name in {*given} & {*inputs} if _same(inputs[name], name, getattr(options, name))}
    changed = {*given} - same
    notes = [f"repeats {record.path}" + (f", but for {_spoken(changed)}" if changed - QUIET else "")]
    if "scene" in changed:
        left = [name for name in inputs if name != "scene" and name not in given]
        options = replace(options, **{name: () if name == "masks" else None for name in left})
        notes += [f"not taken from the record, for they belong to its scene: {_spoken(left)}"] if left else []
    else:
        for name in (name for name in inputs if name not in given):
            notes += _check_input(record, name, getattr(options, name))
    if "models" not in changed or _same_models(record, options.models):
        changed -= {"models"}
        if "models" not in given:
            _check_models(record, options.models)
    if "preset" in changed:
        freed = {f.name for f in fields(Preset)} - {*given}
        options = replace(options, **{name: None for name in freed if hasattr(options, name)})
    decided = Decided(
        settings=_settings(record, changed),
        normalizer=_normalizer(record, changed),
        record=str(record.path.absolute()),
        notes=(*notes, *_other_machine(record, options)),
    )
    return replace(options, decided=decided)


def _spoken(names: Collection[str]) -> str:
    """Names of options as on the command line."""
    short = {"models": "model", "masks": "mask"}
    flags = (f"--{short.get(name, name).replace('_', '-')}" for name in sorted({*names} - QUIET - {"scene"}))
    return ", ".join([*(["the scene"] if "scene" in names else []), *flags])


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
            f"{_versions(content).get('l4s_geo', 'of another version')} wrote it. Repeat it with that version."
        )
    options = {name: value for name, value in asked.items() if value is not None}
    places = {*content["inputs"], "models", "normalize"} & {*options}
    for name in places - ({"normalize"} if options.get("normalize") in NOT_A_FILE else set()):
        words = [_located(path, content, word) if isinstance(word, str) else word for word in _words(options[name])]
        options[name] = words[0] if isinstance(options[name], str) and words else words
    bands = options.get("bands")
    if isinstance(bands, list):
        options["bands"] = ",".join(map(str, bands))
    return options


def _words(value: Any) -> list[Any]:
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
    if _exists(there):
        return there
    beside = os.path.normpath(path.absolute().parent / os.path.relpath(there, lay))
    return beside if _exists(beside) else there


def _exists(word: str) -> bool:
    return Path(word).exists() or (glob.has_magic(word) and bool(glob.glob(word, recursive=True)))  # noqa: PTH207


def _entries(entry: Any) -> list[dict[str, Any]]:
    """What the record says of an input: one entry for each word."""
    return [e for e in _words(entry) if isinstance(e, dict)]


def _prints(entry: Any) -> list[tuple[Any, Any]]:
    """Size and checksum of every file of an input."""
    files = [f for e in _entries(entry) for f in _words(e.get("files") or []) if isinstance(f, dict)]
    return [(f.get("bytes"), f.get("sha256")) for f in files]


def _paths(name: str, value: str | Sequence[str]) -> list[str]:
    """Paths that an option stands for now."""
    if name == "scene":
        return list(select(str(value)).paths)
    return [value] if isinstance(value, str) else [*value]


def _same(entry: Any, name: str, value: Any) -> bool:
    """Whether what the user gives is what the record has, in another place."""
    if not value or not (then := _prints(entry)):
        return False
    try:
        paths = files_of(_paths(name, value))
    except L4SError:  # said better where it is opened
        return False
    if [p.stat().st_size for p in paths] != [size for size, _ in then]:
        return False
    return _prints([*_words(input_files({name: value}, {name: list(map(str, paths))})[name])]) == then


def _check_input(record: Record, name: str, value: Any) -> Iterator[str]:
    """Raises InputError where an input is missing or has changed; notes where that cannot be told."""
    entry = record.content["inputs"][name]
    then = _prints(entry)
    words = [str(word) for word in _words(list(value) if isinstance(value, tuple) else value) if word]
    other = "as SCENE" if name == "scene" else f"with {_spoken([name])}"
    if not then:
        yield f"{', '.join(words)} may have changed: the record has no checksum of it"
        return
    for word in words:
        if not is_remote(word) and not any(_exists(part) for part in [word, *word.split(",")]):
            raise InputError(
                f"{record.path} is of a run with {word}, which is not there. Put it back, or say {other} where it is."
            )
    paths = files_of(_paths(name, value))
    if len(paths) != len(then):
        raise InputError(
            f"{', '.join(words)} stood for {len(then)} files when {record.path} was written, and stands for "
            f"{len(paths)} now. Put them back, or give it {other} to map what is there now."
        )
    sizes = [path.stat().st_size for path in paths]
    for path, size, (size_then, sha_then) in zip(paths, sizes, then, strict=True):
        differs = f"{size_then} bytes then, {size} now" if size != size_then else ""
        if not differs and (fingerprint(path) or {}).get("sha256") != sha_then:
            differs = "same size, other SHA-256"
        if differs:
            raise InputError(
                f"{path} has changed since {record.path} was written ({differs}). Put the old one back, or give it "
                f"{other} to map with it as it is now."
            )


def _check_models(record: Record, names: Sequence[str]) -> None:
    """Raises ModelError where a model is not there or is not the one it was."""
    used: list[dict[str, Any]] = record.content["models"]
    names = names or (registry.DEFAULT,)
    if len(names) != len(used):
        raise InputError(f"{record.path} is damaged: its options name {len(names)} models, but it used {len(used)}.")
    for name, entry in zip(names, used, strict=True):
        try:
            model = registry.find(name)
        except ModelError as e:
            raise ModelError(
                f"{record.path} is of a run with the model {entry.get('name')} in {name}, which cannot be used: {e} If "
                "it lies elsewhere, say where with --model."
            ) from e
        if _identity(model) != (entry.get("sha256"), entry.get("card_sha256")):
            what = "its card has" if _identity(model)[0] == entry.get("sha256") else "its weights have"
            raise ModelError(
                f"The model {name} is not the one of {record.path}: {what} other checksums. Get version "
                f"{entry.get('version')} of it, or give it with --model to map with it as it is now."
            )


def _identity(model: registry.Model) -> tuple[dict[str, str], str]:
    """Checksums of weights and card."""
    return {n.name: n.sha256 for n in model.card.networks}, sha256(model.folder / CARD)


def _same_models(record: Record, names: Sequence[str]) -> bool:
    """Whether the models that the user gives are those of the record, in another place."""
    used = [(m.get("sha256"), m.get("card_sha256")) for m in record.content["models"]]
    return [_identity(registry.find(name)) for name in names or (registry.DEFAULT,)] == used


def _settings(record: Record, changed: Collection[str]) -> dict[str, Any]:
    """Settings that were decided then and do not depend on what has changed."""
    if {"preset", "models"} & {*changed}:
        return {}
    found = {}
    for name in (f.name for f in fields(Settings) if f.name != "notes"):
        if name in record.content["settings"] and not DECIDED_BY.get(name, {name}) & {*changed}:
            found[name] = _setting(record, name, record.content["settings"][name])
    if found.get("crf") is not None and not crf.available():
        raise InputError(
            f"{record.path} is of a run with the CRF, which needs the package pydensecrf2, and it is not installed. "
            "Install it, or repeat without: --no-crf."
        )
    return found


def _setting(record: Record, name: str, value: Any) -> Any:
    """A setting, checked: the card and the command line have no part in it any more."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value >= 0
    fine = {
        "threshold": number and value <= 1,
        "stride": isinstance(value, int) and number and 1 <= value <= PATCH,
        "tta": isinstance(value, bool),
        "crf": value is None or isinstance(value, dict),
    }.get(name, number or value is None)
    try:
        if fine and name == "crf" and value is not None:
            return CrfParams.from_dict(value)
    except (InputError, TypeError, KeyError, ValueError, AttributeError):
        fine = False
    if not fine:
        raise InputError(f"{record.path} is damaged: the setting {name} is {json.dumps(value)[:60]}.")
    return value


def _normalizer(record: Record, changed: Collection[str]) -> Normalizer | None:
    """The statistics of then, where nothing has changed that they depend on."""
    if {"normalize", "models"} & {*changed}:
        return None
    if record.of_the_scene and {*changed} - HARMLESS:
        return None
    try:
        return Normalizer.from_dict(record.content["normalization"])
    except InputError as e:
        raise InputError(f"{record.path} is damaged: {e}") from e


def _versions(content: Mapping[str, Any]) -> dict[str, Any]:
    found = content.get("versions")
    return found if isinstance(found, dict) else {}


def _other_machine(record: Record, options: MapOptions) -> Iterator[str]:
    """A note where results may differ a little because of what computes them."""
    computed = record.content.get("computed")
    then, now = {**_versions(record.content)}, {**versions()}
    if isinstance(computed, dict):
        then, now = then | computed, now | computed_on(options)
    other = [
        f"{name} {_short(then.get(name))} then, {_short(now[name])} now" for name in now if then.get(name) != now[name]
    ]
    if other:
        yield f"results may differ a little: {'; '.join(other)}"


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:40]
