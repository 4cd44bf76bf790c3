"""The notebook in ``examples`` runs from the first cell to the last, in an empty folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import geopandas as gpd
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "landslides.ipynb"

#: Bytes: what a web page shows without being asked twice.
LIMIT = 300_000


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(NOTEBOOK, folder)
    notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    return folder, notebook


def test_every_cell_runs_and_nothing_is_said_on_the_error_stream(ran):
    _, notebook = ran
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    said = [o.text for c in cells for o in c.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert said == []


def test_it_shows_pictures_and_keeps_what_it_found(ran):
    folder, notebook = ran
    pictures = [o for c in notebook.cells for o in c.get("outputs") or () if "image/jpeg" in o.get("data", {})]
    assert len(pictures) == 4
    polygons = gpd.read_file(folder / "landslides-demo" / "landslides.gpkg", layer="landslides")
    table = pd.read_csv(folder / "landslides-demo" / "landslides.csv")
    assert len(table) == len(polygons) > 50
    inside = polygons.to_crs(4326).contains(
        gpd.GeoSeries(gpd.points_from_xy(table.longitude, table.latitude), crs=4326)
    )
    assert inside.mean() > 0.95


def test_the_committed_one_has_results_of_all_its_cells_and_is_small():
    assert NOTEBOOK.stat().st_size < LIMIT
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert "Traceback" not in NOTEBOOK.read_text()
    assert str(Path.home()) not in NOTEBOOK.read_text()
