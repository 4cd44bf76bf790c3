"""How a map was made, as a page tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import Any

#: Parts of a provenance that are shown as they are.
_SECTIONS = {
    "scene": "Scene",
    "settings": "Settings",
    "normalization": "Band statistics that the image was standardized with",
    "versions": "Versions",
}


@dataclass(frozen=True)
class Origin:
    """What made a map.

    Attributes:
        record: Provenance of the run that wrote the map.
        scene: Short name of the scene.
        date: Of the scene, if known.
        models: Each with name, version and sha256 of its networks.
        threshold: Probability from which on a pixel is landslide.
    """

    record: Mapping[str, Any]
    scene: str
    date: str | None
    models: Sequence[Mapping[str, Any]]
    threshold: float

    @classmethod
    def of(cls, record: Mapping[str, Any], summary: Mapping[str, Any]) -> Origin:
        """From the provenance of ``map``, or of ``polygonize``, which holds that of the probabilities."""
        before: Mapping[str, Any] = record.get("probabilities") or {}
        scene = record.get("scene") or before.get("scene") or {}
        models = record.get("models") or before.get("models") or []
        named = scene.get("name") or PurePath(record.get("inputs", {}).get("prob", {}).get("path", "a scene")).stem
        return cls(record, str(named), scene.get("date"), models, float(summary["threshold"]))

    def model(self) -> str:
        """Names of the models."""
        return " + ".join(str(m["name"]) for m in self.models) or "unknown model"

    def subtitle(self) -> str:
        """Date, model and version."""
        version = self.record.get("versions", {}).get("l4s_geo", "")
        date = f"Image of {self.date}" if self.date else "Date of the image unknown"
        return f"{date} · {self.model()}, threshold {self.threshold:.2g} · l4s-map {version}"


def origin_lines(origin: Origin) -> Iterator[str]:
    """Markup: command, inputs, models, settings and versions."""
    record = origin.record
    if record.get("command"):
        yield f"<p>The command that makes this map again:</p><pre>{escape(str(record['command']))}</pre>"
    inputs = [(str(name), *entry) for name, value in record.get("inputs", {}).items() for entry in _files(value)]
    yield _table("Inputs", ["for", "file", "bytes"], inputs)
    networks = [
        (str(m["name"]), str(m.get("version", "")), str(network), str(digest))
        for m in origin.models
        for network, digest in m.get("sha256", {}).items()
    ]
    yield _table("Models", ["model", "version", "network", "sha256 of its weights"], networks)
    yield '<div class="columns">'
    for key, caption in _SECTIONS.items():
        yield _table(caption, (), [(name, _value(v)) for name, v in _flat(record.get(key, {}))])
    yield "</div>"


def _files(value: Any) -> Iterator[tuple[str, str]]:
    for entry in value if isinstance(value, list) else [value]:
        size = entry.get("bytes")
        yield str(entry.get("path")), "" if size is None else f"{size:,}"


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", v) for inner, v in value.items())
        elif name != "notes":
            yield str(name), value


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are escaped; nothing where there are no rows."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col" class="text">{escape(cell)}</th>' for cell in head) if any(head) else ""
    lines = ("".join(f'<td class="text">{escape(cell)}</td>' for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in ([top] if top else []) + [*lines])
    table = f'<table class="facts"><caption>{escape(caption)}</caption>{body}</table>'
    return f'<div class="wide">{table}</div>'
