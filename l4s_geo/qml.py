"""Styles as QGIS writes and reads them (QML): one set of colours for polygons and rasters.

The colours are ColorBrewer's YlOrRd, which readers with any colour vision can order by lightness (Harrower and Brewer
2003, doi:10.1179/000870403235002042).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

#: Colours as red, green, blue.
PALE, YELLOW, ORANGE, RED = "255,255,178", "254,204,92", "253,141,60", "189,0,38"
BLUE, GREY = "8,69,148", "128,128,128"

#: Classes of the landslides' mean probability: from, to, fill, outline.
CLASSES = (
    (0.0, 0.4, PALE, "199,168,44"),
    (0.4, 0.55, YELLOW, "217,142,20"),
    (0.55, 0.7, ORANGE, "204,76,2"),
    (0.7, 1.0, RED, "122,1,32"),
)

#: Says of landslides by a comparison with an earlier scene whether they are new: yes, no, unknown, or nothing.
NEW = "new"


class Stop(NamedTuple):
    """A colour of a ramp: value, red, green, blue, alpha, and what the legend says."""

    value: float
    colour: str
    alpha: int
    label: str


#: Of probabilities, each class's colour where it begins; what is very likely no landslide is not drawn.
PROBABILITY = (
    Stop(0.0, PALE, 0, "0: no landslide, not drawn"),
    Stop(0.1, PALE, 0, "0.1"),
    Stop(0.2, PALE, 170, "0.2"),
    Stop(0.4, YELLOW, 215, "0.4"),
    Stop(0.55, ORANGE, 230, "0.55"),
    Stop(0.7, RED, 230, "0.7"),
    Stop(1.0, RED, 230, "1: landslide"),
)

#: Of landslide area; the same in all maps, so that they can be compared.
DENSITY = (
    Stop(0.0, PALE, 0, "0 m²/km²: none, not drawn"),
    Stop(1_000.0, PALE, 150, "1,000 m²/km² (0.1 %)"),
    Stop(10_000.0, YELLOW, 180, "10,000 m²/km² (1 %)"),
    Stop(50_000.0, ORANGE, 200, "50,000 m²/km² (5 %)"),
    Stop(200_000.0, RED, 215, "200,000 m²/km² (20 %)"),
    Stop(1_000_000.0, RED, 215, "1,000,000 m²/km² (all)"),
)


class Attribute(NamedTuple):
    """A field of the landslides: how it is called in QGIS, and the decimals shown if it is measured."""

    name: str
    title: str
    decimals: int | None = None


ATTRIBUTES = (
    Attribute("id", "Number"),
    Attribute("area_m2", "Area (m²)", 0),
    Attribute("perimeter_m", "Perimeter (m)", 0),
    Attribute("length_m", "Length (m)", 0),
    Attribute("width_m", "Width (m)", 0),
    Attribute("prob_mean", "Mean probability (0 to 1)", 2),
    Attribute("prob_max", "Highest probability (0 to 1)", 2),
    Attribute("agreement", "Share of networks that agree (0 to 1)", 2),
    Attribute("uncertainty", "Uncertainty (0: sure)", 3),
    Attribute("elev_min", "Lowest elevation (m)", 0),
    Attribute("elev_max", "Highest elevation (m)", 0),
    Attribute("relief_m", "Difference of elevation (m)", 0),
    Attribute("slope_mean", "Mean slope (°)", 1),
    Attribute("slope_max", "Steepest slope (°)", 1),
    Attribute("aspect_deg", "Slope faces (° clockwise from north)", 0),
    Attribute("edge", "May go on beyond the border"),
    Attribute(NEW, "New since the earlier scene"),
    Attribute("model", "Model"),
    Attribute("scene", "Scene"),
    Attribute("date", "Date of the scene"),
)

#: Shown where the pointer rests on a landslide, with QGIS's expressions.
TIP = """<b>Landslide [% id %]</b><br>
[% format_number(area_m2, 0) %] m²<br>
probability [% format_number(prob_mean, 2) %]
[% if(slope_mean is null, '', '<br>slope ' || format_number(slope_mean, 0) || '°') %]"""


def landslides_qml(with_old: bool, ramp: Sequence[Stop] = PROBABILITY) -> str:
    """Graduated by ``prob_mean``; what is known to be old is outlined only.

    A raster is drawn by its first band and a ramp. Both are in one document because QGIS takes the style of a file
    from the ``.qml`` of its name without the extension, and ``map.shp`` and ``map.tif`` share that.

    Args:
        with_old: Some are known to be old, so that the legend says how these look.
        ramp: Of a raster.
    """
    # Below 0 is what was there before
    by = f'if("{NEW}" = \'no\', -1, "prob_mean")' if with_old else "prob_mean"
    classes = [
        (low, high, f"probability {low:g} to {high:g}", _outlined(outline, style="solid", color=f"{fill},130"))
        for low, high, fill, outline in CLASSES
    ]
    if with_old:
        classes.append((-1, -1, "not new: there before", _outlined(BLUE, "dash", style="no")))
    ranges = "".join(
        f'<range lower="{low}" upper="{high}" symbol="{i}" label={quoteattr(label)} render="true"/>'
        for i, (low, high, label, _) in enumerate(classes)
    )
    symbols = "".join(_symbol(i, layers) for i, (*_, layers) in enumerate(classes))
    kind = f'type="graduatedSymbol" attr={quoteattr(by)} graduatedMethod="GraduatedColor"'
    return _document(
        _renderer(kind, f"<ranges>{ranges}</ranges><symbols>{symbols}</symbols>") + _fields() + _pipe(ramp)
    )


def not_seen_qml() -> str:
    """Light grey, one symbol."""
    symbol = _symbol(0, _layer(style="solid", color=f"{GREY},90", outline_color=f"{GREY},160", outline_width="0.2"))
    return _document(_renderer('type="singleSymbol"', f"<symbols>{symbol}</symbols>"))


def _document(body: str) -> str:
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        f'<qgis version="3.22.0" styleCategories="Symbology|Fields|Forms|MapTips">{body}</qgis>\n'
    )


def _renderer(kind: str, renderer: str) -> str:
    return (
        f'<renderer-v2 {kind} symbollevels="0" enableorderby="0" forceraster="0">{renderer}</renderer-v2>'
        "<blendMode>0</blendMode><featureBlendMode>0</featureBlendMode>"
        "<layerGeometryType>2</layerGeometryType>"
    )


def _symbol(name: int, layers: str) -> str:
    return f'<symbol type="fill" name="{name}" alpha="1" clip_to_extent="1" force_rhr="0">{layers}</symbol>'


def _outlined(colour: str, pen: str = "solid", **fill: str) -> str:
    """A line on a white one, which is seen on forest, on bare ground and on paper."""
    return _layer(outline_color="255,255,255,190", outline_width="0.5", **fill) + _layer(
        style="no", outline_color=f"{colour},255", outline_style=pen, outline_width="0.25"
    )


def _layer(**options: str) -> str:
    options = {"outline_style": "solid", "outline_width_unit": "MM", "joinstyle": "miter"} | options
    listed = "".join(f'<Option type="QString" name="{k}" value="{v}"/>' for k, v in options.items())
    return f'<layer class="SimpleFill" enabled="1" locked="0" pass="0"><Option type="Map">{listed}</Option></layer>'


def _fields() -> str:
    """Titles of the fields; measured ones are shown rounded, and kept from being rounded in a form."""
    # A shapefile cuts names
    named = [a._replace(name=name) for a in ATTRIBUTES for name in dict.fromkeys((a.name, a.name[:10]))]
    measured = [a for a in named if a.decimals is not None]
    titles = "".join(f'<alias field="{a.name}" name={quoteattr(a.title)}/>' for a in named)
    shown = "".join(
        f'<field name="{a.name}"><editWidget type="Range"><config><Option type="Map">'
        f'<Option name="Precision" type="int" value="{a.decimals}"/>'
        '<Option name="AllowNull" type="bool" value="true"/>'
        "</Option></config></editWidget></field>"
        for a in measured
    )
    fixed = "".join(f'<field name="{a.name}" editable="0"/>' for a in measured)
    return (
        f"<aliases>{titles}</aliases><fieldConfiguration>{shown}</fieldConfiguration><editable>{fixed}</editable>"
        f"<previewExpression>'Landslide ' || \"id\"</previewExpression><mapTip>{escape(TIP)}</mapTip>"
    )


def _pipe(ramp: Sequence[Stop]) -> str:
    """How a raster is drawn; the legend lists the stops."""
    low, high = ramp[0].value, ramp[-1].value
    items = "".join(
        f'<item value="{s.value}" color="{_hex(s.colour)}" alpha="{s.alpha}" label={quoteattr(s.label)}/>' for s in ramp
    )
    shader = (
        f'<colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="{low}" '
        f'maximumValue="{high}" labelPrecision="2">{items}<rampLegendSettings useContinuousLegend="0"/>'
        "</colorrampshader>"
    )
    return (
        '<pipe><rasterrenderer type="singlebandpseudocolor" band="1" opacity="1" alphaBand="-1" '
        f'classificationMin="{low}" classificationMax="{high}" nodataColor=""><rasterTransparency/>'
        "<minMaxOrigin><limits>None</limits><extent>WholeRaster</extent><statAccuracy>Exact</statAccuracy>"
        f"</minMaxOrigin><rastershader>{shader}</rastershader></rasterrenderer></pipe>"
    )


def _hex(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in colour.split(","))
