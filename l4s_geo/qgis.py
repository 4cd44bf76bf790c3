"""Styles that a GeoPackage carries in its ``layer_styles`` table, as QGIS writes and reads them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

#: Classes of the landslides' mean probability: from, to, fill as red, green, blue, alpha.
CLASSES = (
    (0.0, 0.5, "255,237,160,90"),
    (0.5, 0.7, "254,178,76,110"),
    (0.7, 0.85, "252,78,42,130"),
    (0.85, 1.0, "177,0,38,150"),
)

#: The table as QGIS's OGR provider creates it.
TABLE = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256),
    f_table_schema TEXT(256),
    f_table_name TEXT(256),
    f_geometry_column TEXT(256),
    styleName TEXT(30),
    styleQML TEXT,
    styleSLD TEXT,
    useAsDefault BOOLEAN,
    description TEXT,
    owner TEXT(30),
    ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)
"""

# QGIS looks for an empty schema, not for NULL
INSERT = """
INSERT INTO layer_styles (
    f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML, styleSLD,
    useAsDefault, description, owner, ui
)
SELECT '', '', table_name, column_name, table_name, ?, '', 1, ?, '', NULL
FROM gpkg_geometry_columns WHERE table_name = ?
"""

REGISTER = """
INSERT INTO gpkg_contents (table_name, data_type, identifier, description, srs_id)
VALUES ('layer_styles', 'attributes', 'layer_styles', '', 0)
"""


def write_styles(path: Path, layers: Sequence[str]) -> None:
    """Give layers of a GeoPackage the style that QGIS opens them with.

    Args:
        path: Of a GeoPackage without styles.
        layers: ``landslides`` and, if there, ``not_seen``.

    Raises:
        sqlite3.Error: The file is not such a GeoPackage, or cannot be written.
    """
    styles = {
        "landslides": (landslides_qml(), "Red outline, filled by mean probability"),
        "not_seen": (not_seen_qml(), "Not seen: no data or cloud"),
    }
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(TABLE)
        for layer in layers:
            database.execute(INSERT, (*styles[layer], layer))
        database.execute(REGISTER)


def landslides_qml() -> str:
    """Graduated by ``prob_mean``: semi-transparent fill, red outline."""
    ranges = "".join(
        f'<range lower="{low}" upper="{high}" symbol="{i}" label="{low:.2f} - {high:.2f}" render="true"/>'
        for i, (low, high, _) in enumerate(CLASSES)
    )
    symbols = "".join(_symbol(i, fill, "215,25,28,255") for i, (_, _, fill) in enumerate(CLASSES))
    kind = 'type="graduatedSymbol" attr="prob_mean" graduatedMethod="GraduatedColor"'
    return _document(kind, f"<ranges>{ranges}</ranges><symbols>{symbols}</symbols>")


def not_seen_qml() -> str:
    """Light grey, one symbol."""
    symbol = _symbol(0, "128,128,128,80", "128,128,128,160")
    return _document('type="singleSymbol"', f"<symbols>{symbol}</symbols>")


def _document(kind: str, renderer: str) -> str:
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
        '<qgis version="3.22.0" styleCategories="Symbology">'
        f'<renderer-v2 {kind} symbollevels="0" enableorderby="0" forceraster="0">{renderer}</renderer-v2>'
        "<blendMode>0</blendMode><featureBlendMode>0</featureBlendMode>"
        "<layerGeometryType>2</layerGeometryType></qgis>"
    )


def _symbol(name: int, fill: str, outline: str) -> str:
    """A fill symbol; colours as red, green, blue, alpha."""
    options = {
        "color": fill,
        "style": "solid",
        "outline_color": outline,
        "outline_style": "solid",
        "outline_width": "0.4",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
    }
    listed = "".join(f'<Option type="QString" name="{k}" value="{v}"/>' for k, v in options.items())
    return (
        f'<symbol type="fill" name="{name}" alpha="1" clip_to_extent="1" force_rhr="0">'
        '<layer class="SimpleFill" enabled="1" locked="0" pass="0">'
        f'<Option type="Map">{listed}</Option></layer></symbol>'
    )
