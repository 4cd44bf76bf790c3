"""The page of a report, from the provenance, the landslides and the pictures of a map. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from pyproj import CRS as ProjCRS

from l4s_geo.report import notes
from l4s_geo.report.classes import KINDS, kinds_of
from l4s_geo.report.figures import Bars, histogram
from l4s_geo.report.frame import Frame
from l4s_geo.report.html import document, embedded
from l4s_geo.report.landslides import BINS, Landslides, path_data
from l4s_geo.report.origin import Origin, origin_lines
from l4s_geo.report.pictures import DENSITY, PROBABILITY, Picture
from l4s_geo.report.words import ATTRIBUTES, attribute

#: Rows of the list that are there without a script.
ROWS = 25


@dataclass(frozen=True)
class Content:
    """What a page is made of.

    Attributes:
        record: Provenance.
        summary: What is said at the end of a run.
        frame: Plane of the map.
        landslides: All were added.
        pixel: Metres of a pixel of the pictures.
        pictures: ``before``, ``image``, ``probability``, ``density``, ``unseen``; those that there are.
        densest: Share of landslide that has the darkest colour of the density.
    """

    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    frame: Frame
    landslides: Landslides
    pixel: float
    pictures: Mapping[str, Picture]
    densest: float = 0.0
    shown: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shown", self.landslides.shown())

    @property
    def unit(self) -> float:
        """Metres in which outlines are written: a power of ten, a tenth of a pixel at most."""
        return float(10.0 ** math.floor(math.log10(self.pixel / 10)))


def page(content: Content) -> str:
    """The page."""
    origin = Origin.of(content.record, content.summary)
    parts = files("l4s_geo.report")
    body = Template((parts / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(_title(origin)),
        subtitle=escape(origin.subtitle()),
        key=_key(content),
        warnings=_warnings(content),
        map="\n".join(_map(content)),
        layers="".join(_layers(content)),
        shown=escape(_shown(content)),
        listed=escape(_listed(content)),
        list="".join(_list(content)),
        charts=_charts(content),
        notes=_items(notes.notes(content.record)),
        words=_words(content, origin),
        origin="".join(origin_lines(origin)),
        data=embedded("data", _data(content)),
    )
    style, script = ((parts / name).read_text(encoding="utf-8") for name in ("report.css", "viewer.js"))
    return document(_title(origin), [body], style=style + _class_style(), script=script)


def _title(origin: Origin) -> str:
    return f"Landslides in {origin.scene}"


def _key(content: Content) -> str:
    summary = content.summary
    figures = {
        "landslides": f"{summary['landslides']:,}",
        "total area": area(summary["area_m2"]),
        "of the ground that was seen": f"{100 * summary['landslide_share']:.2f} %",
        "largest landslide": area(summary["largest_m2"]) if summary["landslides"] else "–",
        "of the scene was seen": f"{100 * summary['seen_share']:.1f} %",
    }
    if summary.get("expected_f1") is not None:
        figures["expected F1"] = f"{summary['expected_f1']:.2f}"
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures.items())


def area(m2: float) -> str:
    """Square metres, hectares or square kilometres."""
    if m2 < 10_000:
        return f"{m2:,.0f} m²"
    return f"{m2 / 1e4:,.1f} ha" if m2 < 1e7 else f"{m2 / 1e6:,.1f} km²"


def _warnings(content: Content) -> str:
    found = notes.warnings(content.summary, content.landslides)
    return f'<ul class="warnings" aria-label="Warnings">{_lines(found)}</ul>' if found else ""


def _items(texts: Sequence[str]) -> str:
    return f"<ul>{_lines(texts)}</ul>"


def _lines(texts: Sequence[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _map(content: Content) -> Iterator[str]:
    """The drawing: pictures, landslides, and what goes around them."""
    width, height = content.frame.size
    yield (
        f'<svg id="map" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.6g} {height:.6g}" tabindex="0" '
        f'role="application" aria-roledescription="map" aria-label="Map of the landslides" aria-describedby="keys">'
    )
    yield (
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="hatching" x1="0" y1="0" x2="0" y2="6"/></pattern>'
        f'<clipPath id="swiped"><rect id="curtain" width="{width:.6g}" height="{height:.6g}"/></clipPath>'
    )
    corners = " ".join(f"{x:.7g},{y:.7g}" for x, y in content.frame.outline())
    yield f'<clipPath id="ground"><polygon points="{corners}"/></clipPath></defs>'
    yield f'<polygon class="ground" points="{corners}"/>'
    for name, picture in content.pictures.items():
        clip = ' clip-path="url(#ground)"' if name == "density" else ""
        clip = ' clip-path="url(#swiped)"' if name == "image" and "before" in content.pictures else clip
        hidden = " hidden" if name in ("probability", "density") else ""
        photo = name in ("before", "image", "relief")
        yield f'<g id="layer-{name}"{clip}{hidden}>{_image(content, picture, photo)}</g>'
    yield f'<polygon class="border" points="{corners}"/>'
    yield f'<g id="landslides" transform="scale({content.unit:g})">'
    kinds = kinds_of(content.shown)
    for i, (outline, kind) in enumerate(zip(content.shown["geometry"], kinds, strict=True)):
        yield f'<path class="p{kind}" data-i="{i}" d="{path_data(outline, content.unit)}"/>'
    yield f'</g><g id="choice" transform="scale({content.unit:g})"><path id="halo"/><path id="chosen"/></g>'
    yield from _furniture(content)
    yield "</svg>"


def _image(content: Content, picture: Picture, photo: bool) -> str:
    h, w = picture.pixels.shape[:2]
    matrix = content.frame.matrix(picture.transform)
    numbers = " ".join(f"{v:.9g}" for v in (matrix.a, matrix.d, matrix.b, matrix.e, matrix.c, matrix.f))
    uri = picture.data_uri() if photo else picture.flat_uri()
    return (
        f'<image width="{w}" height="{h}" preserveAspectRatio="none" transform="matrix({numbers})" href="{uri}"'
        f' role="img" aria-label="{escape(picture.caption)}"/>'
    )


def _furniture(content: Content) -> Iterator[str]:
    """Scale bar, north arrow and cross, which the script puts in place; in pixels of the screen."""
    yield '<g class="furniture"><g id="scale">'
    yield '<rect class="light" data-part="1" data-rim="2" x="-2" y="-2" height="10"/>'
    yield '<rect class="dark" data-part="1" height="6"/><rect class="light" data-part="0.5" x="1" y="1" height="4"/>'
    yield '<text id="scale-text" y="-8"></text></g>'
    north = content.frame.north()
    if north is not None:
        yield (
            f'<g id="north"><g transform="rotate({north:.1f})"><path class="light" stroke-width="3" '
            'd="M0-22 9 8 0 2-9 8z"/><path class="dark" d="M0-22 9 8 0 2-9 8z"/></g>'
            '<text y="26" text-anchor="middle">N</text></g>'
        )
    if "before" in content.pictures:
        yield '<g id="parting" hidden=""><line class="light" stroke-width="2" y1="0" y2="1"/>'
        yield '<text x="-8" y="20" text-anchor="end">before</text><text x="8" y="20">after</text></g>'
    yield '<g id="cross"><path d="M-12 0h24M0-12v24"/><path d="M-12 0h24M0-12v24"/></g></g>'


def _class_style() -> str:
    """Rules for the classes, in the colours that QGIS shows."""
    rules = []
    for i, kind in enumerate(KINDS):
        red, green, blue = kind.colour
        rules.append(f".p{i} {{ fill: rgb({red} {green} {blue} / .3); stroke: rgb({red} {green} {blue}); }}")
    return "\n".join(rules) + "\n"


#: Layers by what they are called, whether they are on at first, and whether they can be made transparent.
_LAYERS = {
    "landslides": ("Landslides", True, False),
    "layer-unseen": ("Not seen", True, False),
    "layer-density": ("Density of landslides", False, True),
    "layer-probability": ("Probability", False, True),
    "layer-image": ("Image", True, True),
    "layer-before": ("Image before", True, True),
    "layer-relief": ("Relief", True, True),
}


def _layers(content: Content) -> Iterator[str]:
    """Switches with their legends."""
    there = {"landslides", *(f"layer-{name}" for name in content.pictures)}
    for layer, (name, on, fades) in _LAYERS.items():
        if layer not in there:
            continue
        picture = content.pictures.get(layer.removeprefix("layer-"))
        yield (
            '<div class="group"><div class="layer"><label>'
            f'<input type="checkbox" data-layer="{layer}"{" checked" if on else ""}> {escape(name)}</label>'
        )
        if fades:
            yield (
                f'<input type="range" class="screen" min="0" max="100" value="{80 if not on else 100}" '
                f'data-layer="{layer}" aria-label="Opacity: {escape(name)}">'
            )
        yield "</div>"
        if layer == "landslides":
            yield _class_legend()
        elif layer == "layer-unseen":
            yield (
                '<ul class="legend"><li>' + _swatch('class="unseen"') + "no data, cloud, masked or outside</li></ul>"
            )
        elif layer == "layer-probability":
            yield _ramp("probability", PROBABILITY, "0", "1")
        elif layer == "layer-density":
            yield _ramp("density", DENSITY, "0 %", f"{100 * content.densest:.3g} % of a km²")
        elif picture and picture.caption:
            yield f'<p class="hint">{escape(picture.caption)}</p>'
        yield "</div>"
    if "before" in content.pictures:
        yield (
            '<div class="swipe screen"><label for="swipe">Line between before and after</label>'
            '<input type="range" id="swipe" min="0" max="100" value="0"></div>'
        )


def _class_legend() -> str:
    rows = "".join(
        "<li>" + _swatch(f'class="p{i}" stroke-width="1.5"') + f"{kind.name}</li>" for i, kind in enumerate(KINDS)
    )
    return f'<p class="hint">by mean probability</p><ul class="legend">{rows}</ul>'


def _swatch(how: str) -> str:
    return f'<svg viewBox="0 0 28 16" aria-hidden="true"><rect x="1" y="1" width="26" height="14" {how}/></svg>'


def _ramp(name: str, colours: Sequence[str], low: str, high: str) -> str:
    stops = "".join(
        f'<stop offset="{i / (len(colours) - 1):.3f}" stop-color="{colour}" stop-opacity="{min(1, i)}"/>'
        for i, colour in enumerate(colours)
    )
    return (
        '<div class="ramp"><svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true"><defs>'
        f'<linearGradient id="ramp-{name}">{stops}</linearGradient></defs>'
        f'<rect width="100" height="12" fill="url(#ramp-{name})"/></svg>'
        f"<span><span>{escape(low)}</span><span>{escape(high)}</span></span></div>"
    )


def _shown(content: Content) -> str:
    """How the map was drawn."""
    drawn, found = len(content.shown), content.landslides.count
    words = [f"Pictures have pixels of about {content.pixel:,.3g} m."]
    if drawn < found:
        words.append(
            f"Only the {drawn:,} largest of {found:,} landslides are drawn and listed; "
            f"{content.summary['out']} has all of them."
        )
    words.append("Outlines are simplified a little; measure in the original file.")
    if "image" not in content.pictures:
        words.append("There was no image to show: only probabilities were given.")
    return " ".join(words)


def _listed(content: Content) -> str:
    if not len(content.shown):
        return "No landslide was found."
    return "Choose one to see it on the map. Press a heading to sort: by area, probability, slope and others."


def _columns(content: Content) -> list[str]:
    """Attributes that any landslide has: known ones first, in order."""
    table = content.shown.drop(columns="geometry")
    there = [str(name) for name in table]
    ordered = [name for name in ATTRIBUTES if name in there] + [name for name in there if name not in ATTRIBUTES]
    return [name for name in ordered if table[name].notna().any()]


def _list(content: Content) -> Iterator[str]:
    """The first rows; the script brings the others."""
    columns = [c for c in _columns(content) if attribute(c).short]
    yield '<div class="wide"><table id="list"><thead><tr>'
    for name in columns:
        sort = ' aria-sort="descending"' if name == "area_m2" else ""
        yield (
            f'<th scope="col" data-key="{escape(name)}"{sort}><button type="button" '
            f'title="{escape(attribute(name).meaning)}">{escape(attribute(name).short)}</button></th>'
        )
    yield "</tr></thead><tbody>"
    for _, row in content.shown.head(ROWS).iterrows():
        yield f"<tr>{''.join(f'<td>{escape(_written(name, row[name]))}</td>' for name in columns)}</tr>"
    yield "</tbody></table></div>"


def _written(name: str, value: Any) -> str:
    value = _plain(name, value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.{attribute(name).digits}f}" if isinstance(value, (int, float)) else str(value)


def _plain(name: str, value: Any) -> bool | float | str | None:
    """In JSON's types, with as many digits as are written."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.number)):
        number = round(float(value), attribute(name).digits)
        return (int(number) if number.is_integer() else number) if math.isfinite(number) else None
    return None if value is None or value is pd.NA else str(value)


def _charts(content: Content) -> str:
    counts, threshold = content.landslides.counts, content.summary["threshold"]
    bars = [
        Bars("By area", BINS["area_m2"], counts["area_m2"], "area, m² (both axes logarithmic)", log=True),
        Bars("By probability", BINS["prob_mean"], counts["prob_mean"], "mean probability",
             mark=(threshold, f"threshold {threshold:.2g}")),
        Bars("By slope", BINS["slope_mean"], counts["slope_mean"], "mean slope, degrees"),
        Bars("By elevation", BINS["elevation"], counts["elevation"], "middle elevation, m"),
    ]  # fmt: skip
    drawn = [histogram(b if b.label.startswith("mean prob") else b.trimmed()) for b in bars if b.counts.any()]
    if not drawn:
        return "<p>There is nothing to show.</p>"
    none = "" if counts["slope_mean"].any() else '<p class="note">Slope and elevation need --dem.</p>'
    return f'<div class="charts">{"".join(drawn)}</div>{none}'


def _words(content: Content, origin: Origin) -> str:
    table = content.shown.drop(columns="geometry")
    rules = notes.rules(origin) | {a.label: a.meaning for name, a in ATTRIBUTES.items() if name in table and a.meaning}
    rows = (f"<div><dt>{escape(name)}</dt><dd>{escape(rule)}</dd></div>" for name, rule in rules.items())
    return f'<dl class="columns">{"".join(rows)}</dl>'


def _data(content: Content) -> dict[str, Any]:
    """What the script needs."""
    frame, columns = content.frame, _columns(content)
    places = frame.lonlat()
    geographic = frame.grid.crs.is_geographic
    rows = [
        [_plain(name, value) for name, value in zip(columns, row, strict=True)]
        for row in content.shown[columns].itertuples(index=False, name=None)
    ]
    return {
        "size": frame.size,
        "pixel": content.pixel,
        "unit": content.unit,
        "closest": 30 * math.sqrt(np.prod(frame.grid.pixel_size_m())),
        "frame": {
            "name": crs_name(frame),
            "left": frame.left,
            "top": frame.top,
            "scale": frame.scale,
            "digits": 5 if geographic else max(0, round(-math.log10(content.pixel))),
        },
        "lonlat": None if places is None else _lattice(places),
        "columns": [
            {"key": name} | {k: getattr(attribute(name), k) for k in ("label", "unit", "digits", "meaning", "short")}
            for name in columns
        ],
        "rows": rows,
    }


def crs_name(frame: Frame) -> str:
    """Of the coordinates: the code where the CRS has one, else its name."""
    code = frame.grid.crs.to_epsg()
    return f"EPSG:{code}" if code else str(ProjCRS(frame.grid.crs.to_wkt()).name)


def _lattice(places: Any) -> dict[str, Any]:
    lon, lat = ([None if math.isnan(v) else round(v, 6) for v in values.ravel().tolist()] for values in places)
    return {"count": places.shape[1], "lon": lon, "lat": lat}
