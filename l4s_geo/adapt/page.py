"""The page of a report: HTML that needs nothing from elsewhere and prints well. Every text is escaped."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from l4s_geo.report.html import document

#: By sign, its name and what it tells.
SIGNS = {
    "share": ("mapped", "Part of the ground that is mapped as landslide. It should not jump from round to round."),
    "entropy": ("doubt", "How undecided the model is on average: 0 is sure everywhere, 1 is undecided everywhere."),
    "confidence": ("confidence", "Mean probability of the pixels that are mapped."),
    "expected_f1": (
        "expected F1",
        "The best F1 that the map could have if what the model says were true. It is no measurement: a model may be "
        "sure and wrong. The starting model is taken at its word here, before its calibration, if it has one.",
    ),
    "agreement": (
        "agreement",
        "Overlap with the map of the starting model: 1 is the same map, 0 has nothing in common with it.",
    ),
    "consistency": (
        "consistency",
        "Overlap with what the model says about the same ground in other light: 1 is no difference.",
    ),
}

#: Figures against the truth.
FIGURES = {"precision": "precision", "recall": "recall", "f1": "F1"}

_STYLE = """
tr.kept td { background: #e3f0fa; font-weight: bold; } tr.refused td { color: #555; font-style: italic; }
.verdict { border-left: .5em solid #0072b2; background: #e3f0fa; padding: .6em 1em; font-size: 1.1em; }
.verdict.not { border-color: #d55e00; background: #fbe9de; }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG, the name of its file and what it shows."""

    name: str
    png: bytes
    caption: str


def page(facts: dict[str, Any], curves: Picture, shown: Mapping[str, Sequence[Picture | str]]) -> str:
    """The page.

    Args:
        facts: As in ``report.json``.
        curves: Over the rounds.
        shown: Pictures and remarks by target.
    """
    title = f"Adaptation of {facts['model']}"
    return document(title, [f"<h1>{escape(title)}</h1>", *_lines(facts, curves, shown)], style=_STYLE)


def _lines(facts: dict[str, Any], curves: Picture, shown: Mapping[str, Sequence[Picture | str]]) -> Iterator[str]:
    yield from _verdict(facts)
    yield from _rounds(facts)
    yield _figure(curves)
    yield from _selected(facts)
    for name, pictures in shown.items():
        yield from _target(name, facts["targets"][name], facts["adapted"], pictures)
    yield from _asked(facts)


def _figure(picture: Picture) -> str:
    caption, code = escape(picture.caption), b64encode(picture.png).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{code}">'
        f"<figcaption>{caption} ({escape(picture.name)})</figcaption></figure>"
    )


def _verdict(facts: dict[str, Any]) -> Iterator[str]:
    kept = facts["kept"]
    if not facts["adapted"]:
        kind, outcome = "verdict not", "Not adapted: the starting model is kept."
    elif kept == 0:
        kind, outcome = "verdict", "Adapted: the starting model is kept, with other band statistics."
    else:
        kind, outcome = "verdict", f"Adapted: round {kept} is kept."
    yield f'<div class="{kind}"><strong>{outcome}</strong> {escape(facts["verdict"])}</div>'
    by_number = {r["number"]: r["figures"] for r in facts["rounds"]}
    before, after = facts["figures_before"] or by_number.get(0), by_number.get(kept)
    if before and after:
        yield "<p>Measured against the truth, pixel by pixel, all targets together:</p>"
        rows = [
            [name, _number(before.get(key)), _number(after.get(key)), _points(before.get(key), after.get(key))]
            for key, name in FIGURES.items()
        ]
        yield _table(["", "before", "after", "change"], rows, text=(0,))
    else:
        yield (
            '<p class="note">No truth was given, so nothing here measures whether the map is right. The signs below '
            "only tell whether something went visibly wrong. Compare the maps with the image yourself.</p>"
        )


def _rounds(facts: dict[str, Any]) -> Iterator[str]:
    """Signs, figures and the guard's word."""
    figures = FIGURES if any(r["figures"] for r in facts["rounds"]) else {}
    head = ["round", *(name for name, _ in SIGNS.values()), *figures.values(), "guard"]
    rows, classes = [], []
    for r in facts["rounds"]:
        signs = r["signs"]
        mapped = f"{_percent(signs['share'])}, {signs['pixels']:,} px"
        values = [mapped, *(_number(signs[s]) for s in SIGNS if s != "share")]
        measured = [_number((r["figures"] or {}).get(k)) for k in figures]
        kept = r["number"] == facts["kept"]
        word = "starting model" if r["number"] == 0 else "safe"
        word = f"refused: {'; '.join(r['faults'])}" if r["faults"] else word + (", kept" if kept else "")
        rows.append([str(r["number"]), *values, *measured, word])
        classes.append("kept" if kept else "refused" if r["faults"] else "")
    yield "<h2>Rounds</h2>"
    yield (
        "<p>In every round the model labels the scene itself and learns from the labels that it is surest of. The "
        "guard looks at signs that need no truth, and refuses a round that looks like a collapse.</p>"
    )
    yield _table(head, rows, text=(len(head) - 1,), classes=classes)
    yield "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{escape(text)}</dd>" for n, text in SIGNS.values())
    if figures:
        yield (
            "<dt>precision, recall, F1</dt><dd>Against the truth: the part of the mapped pixels that are landslides, "
            "the part of the landslides that are mapped, and the harmonic mean of both.</dd>"
        )
    yield "</dl>"


def _selected(facts: dict[str, Any]) -> Iterator[str]:
    rows = [
        [str(r["number"]), target, *(f"{n[k]:,}" for k in ("landslide", "background", "not used")),
         _percent(n["landslide"] / (n["landslide"] + n["background"] or 1))]
        for r in facts["rounds"] for target, n in r["selected"].items()
    ]  # fmt: skip
    if rows:
        yield "<h2>What was learnt from</h2>"
        yield "<p>Pixels that the model labelled itself and then learnt from, by round and target.</p>"
        head = ["round", "target", "landslide", "background", "not used", "landslide, of the used"]
        yield _table(head, rows, text=(1,))
    if facts["given"]:
        given = ", ".join(f"{n:,} {name}" for name, n in facts["given"].items())
        yield f"<p>Labels that were given, which win over the model's own: {escape(given)}.</p>"


def _target(name: str, facts: dict[str, Any], adapted: bool, pictures: Sequence[Picture | str]) -> Iterator[str]:
    pixels = facts["pixels"]

    def area(*kinds: str) -> str:
        """Part of what was seen, and about how large it is."""
        count = sum(pixels[k] for k in kinds)
        return f"{_percent(count / max(pixels['seen'], 1))} ({count * facts['pixel_m2'] / 1e6:,.2f} km²)"

    yield f"<h2>Target: {escape(name)}</h2>"
    if adapted:
        yield (
            f"<p>Mapped as landslide before: {area('only before', 'both')}. After: {area('only after', 'both')}. "
            f"In both maps: {area('both')}.</p>"
        )
    else:
        yield f"<p>Mapped as landslide: {area('both')}.</p>"
    for picture in pictures:
        yield _figure(picture) if isinstance(picture, Picture) else f'<p class="note">{escape(picture)}</p>'


def _asked(facts: dict[str, Any]) -> Iterator[str]:
    """Settings and how the model sees the targets."""
    yield "<h2>Settings</h2>"
    yield f"<p>Method: {escape(facts['method'])}. Band statistics: {escape(facts['chosen_normalization'])}.</p>"
    if facts["normalization"]:
        rows = [[name, _number(value)] for name, value in facts["normalization"].items()]
        yield "<p>The starting model was tried with several band statistics; this is its consistency with each:</p>"
        yield _table(["band statistics", "consistency"], rows, text=(0,))
    rows = [[name, v if isinstance(v, str) else json.dumps(v)] for name, v in facts["settings"].items()]
    yield _table(["setting", "value"], rows, text=(0, 1))


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (), classes: Sequence[str] = ()
) -> str:
    """Cells are escaped; the columns ``text`` are set as text, the others as numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="text"' if i in text else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(
        f'<tr class="{kind}">{line("td", row)}</tr>'
        for row, kind in zip(rows, classes or [""] * len(rows), strict=True)
    )
    return f"<table><tr>{line('th', head)}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _points(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{100 * (after - before):+.1f} points"
