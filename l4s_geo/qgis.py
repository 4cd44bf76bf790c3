"""Where QGIS looks for styles: the ``layer_styles`` table of a GeoPackage, and a ``.qml`` beside other files."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import geopandas as gpd

from l4s_geo import qml

#: By which a style file is known for one of ours: QGIS leaves it out when it saves another style.
MARK = "<!-- Written by l4s-map, which replaces this file with the result that it belongs to. -->\n"

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
    with closing(sqlite3.connect(path)) as database, database:
        fields = [name for _, name, *_ in database.execute("PRAGMA table_info(landslides)")]
        old = qml.NEW in fields and database.execute(f"SELECT 1 FROM landslides WHERE {qml.NEW} = 'no'").fetchone()
        styles = {
            "landslides": (qml.landslides_qml(bool(old)), "By mean probability"),
            "not_seen": (qml.not_seen_qml(), "Not seen: no data or cloud"),
        }
        database.execute(TABLE)
        for layer in layers:
            database.execute(INSERT, (*styles[layer], layer))
        database.execute(REGISTER)


def style_path(path: Path) -> Path:
    """Of the style that QGIS opens a file with; files of one name but for the extension share it."""
    return path.with_suffix(".qml")


def style_file(with_old: bool, ramp: Sequence[qml.Stop]) -> str:
    """Text of a style file, as ``landslides_qml``."""
    return MARK + qml.landslides_qml(with_old, ramp)


def has_old(landslides: gpd.GeoDataFrame) -> bool:
    """Whether some are known to have been there before."""
    return qml.NEW in landslides and bool((landslides[qml.NEW] == "no").any())


def is_foreign(path: Path) -> bool:
    """Whether a style file is there that is not one of ours, but a person's own."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(len(MARK)) != MARK
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError):
        return True
