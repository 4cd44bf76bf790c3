"""Repeating a run from its record (``map --from``), which can come from anyone: it is checked, and names no output."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from l4s_geo import crf
from l4s_geo.crf import CrfParams
from l4s_geo.errors import InputError, L4SError, ModelError
from l4s_geo.models import registry
from l4s_geo.models.card import CARD, sha256
from l4s_geo.normalize import Normalizer
from l4s_geo.paths import is_remote
from l4s_geo.plan import computed_on
from l4s_geo.provenance.record import files_of, fingerprint, input_files, versions
from l4s_geo.provenance.recorded import QUIET, Record, leads_somewhere, versions_then, words_of
from l4s_geo.scene.source import select
from l4s_geo.settings import Decided, MapOptions, Preset, Settings
from l4s_geo.tiling import PATCH

#: Options that cannot change the statistics of the scene; what is not named here, can.
HARMLESS = QUIET | {"aoi", "pre", "pre_action", "preset", "tta", "crf", "simplify", "device", "dtype", "batch_size"}
HARMLESS |= {f.name for f in fields(Preset)}

#: What decides a setting that is not called like its option.
DECIDED_BY = {"stride": {"overlap"}, "crf": {"crf", "threshold"}}


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
    if "models" in changed and _same_models(record, options.models):
        changed -= {"models"}
    notes = [f"repeats {record.path}" + (f", but for {_spoken(changed)}" if changed - QUIET else "")]
    if "scene" in changed:
        left = [name for name in inputs if name != "scene" and name not in given]
        options = _freed(options, left)
        notes += [f"not taken from the record, for they belong to its scene: {_spoken(left)}"] if left else []
    else:
        for name in (name for name in inputs if name not in given):
            notes += _check_input(record, name, getattr(options, name))
    if "models" not in given:
        _check_models(record, options.models)
    if "preset" in changed:
        options = _freed(options, {f.name for f in fields(Preset)} - {*given})
    decided = Decided(
        settings=_settings(record, changed),
        normalizer=_normalizer(record, changed),
        record=str(record.path.absolute()),
        notes=(*notes, *_other_machine(record, options)),
    )
    return replace(options, decided=decided)


def _freed(options: MapOptions, names: Collection[str]) -> MapOptions:
    """Options of which some are as if nobody had given them."""
    defaults: dict[str, Any] = {f.name: f.default for f in fields(MapOptions) if f.name in names}
    return replace(options, **defaults)


def _spoken(names: Collection[str]) -> str:
    """Names of options as on the command line."""
    short = {"models": "model", "masks": "mask"}
    flags = (f"--{short.get(name, name).replace('_', '-')}" for name in sorted({*names} - QUIET - {"scene"}))
    return ", ".join([*(["the scene"] if "scene" in names else []), *flags])


def _entries(entry: Any) -> list[dict[str, Any]]:
    """What the record says of an input: one entry for each word."""
    return [e for e in words_of(entry) if isinstance(e, dict)]


def _prints(entry: Any) -> list[tuple[Any, Any]]:
    """Size and checksum of every file of an input."""
    files = [f for e in _entries(entry) for f in words_of(e.get("files") or []) if isinstance(f, dict)]
    return [(f.get("bytes"), f.get("sha256")) for f in files]


def _paths(name: str, value: str | Sequence[str]) -> list[str]:
    """Paths that an option stands for now."""
    if name in ("scene", "pre"):
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
    return _prints([*words_of(input_files({name: value}, {name: list(map(str, paths))})[name])]) == then


def _check_input(record: Record, name: str, value: Any) -> Iterator[str]:
    """Raises InputError where an input is missing or has changed; notes where that cannot be told."""
    entry = record.content["inputs"][name]
    then = _prints(entry)
    words = [str(word) for word in words_of(list(value) if isinstance(value, tuple) else value) if word]
    if not words:
        raise InputError(f"{record.path} is damaged: it has the input {name}, but its options do not.")
    other = "as SCENE" if name == "scene" else f"with {_spoken([name])}"
    if not then:
        yield f"{', '.join(words)} may have changed: the record has no checksum of it"
        return
    for word in words:
        if not is_remote(word) and not any(leads_somewhere(part) for part in [word, *word.split(",")]):
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
    for name, kind in ((f.name, str(f.type)) for f in fields(Settings) if f.name != "notes"):
        if name in record.content["settings"] and not DECIDED_BY.get(name, {name}) & {*changed}:
            found[name] = _setting(record, name, kind, record.content["settings"][name])
    if found.get("crf") is not None and not crf.available():
        raise InputError(
            f"{record.path} is of a run with the CRF, which needs the package pydensecrf2, and it is not installed. "
            "Install it, or repeat without: --no-crf."
        )
    return found


def _setting(record: Record, name: str, kind: str, value: Any) -> Any:
    """A setting, checked: neither a card nor the command line looks at it any more."""
    most = {"threshold": 1, "stride": PATCH}.get(name, 1e12)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most
    fine = {
        "float": number,
        "int": number and isinstance(value, int) and value > 0,
        "bool": isinstance(value, bool),
    }.get(kind, value is None or isinstance(value, dict))
    try:
        if fine and name == "crf" and value is not None:
            return CrfParams.from_dict(value)
    except (InputError, TypeError, ValueError):
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


def _other_machine(record: Record, options: MapOptions) -> Iterator[str]:
    """A note where results may differ a little because of what computes them."""
    computed = record.content.get("computed")
    then, now = {**versions_then(record.content)}, {**versions()}
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
