"""Results as a real QGIS opens and draws them, and the script for its Processing toolbox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window
from shapely.geometry import box

import l4s_geo
from l4s_geo.deliverables import Outputs, check_outputs
from l4s_geo.errors import OutputError
from l4s_geo.outputs import write_vector
from l4s_geo.raster import WorkRaster
from l4s_geo.results import Clock, MapResult, products_for, write_all
from l4s_geo.scene import Grid
from l4s_geo.vectorize import LAYERS, Layers, vectorize
from tests.conftest import write_raster

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "examples" / "qgis_landslides.py"
TEN = Affine(10, 0, 500_000, 0, -10, 4_700_000)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of a PNG

#: Of the four classes of probability, from low to high, and of what was not seen.
COLOURS = ((255, 255, 178), (254, 204, 92), (253, 141, 60), (189, 0, 38))
GREY = (128, 128, 128)
#: The image that all is laid over.
GREEN = (40, 90, 50)

#: Patches of 10 x 10 pixels: row, column, probability.
PATCHES = ((5, 5, 0.3), (5, 25, 0.475), (25, 5, 0.625), (25, 25, 0.85))
NOT_SEEN = (45, 15)

Colour = Sequence[float]


def plain(**more: str) -> dict[str, str]:
    """What a person's QGIS would have of the environment: nothing that the tests and their libraries have set."""
    kept = ("PATH", "LANG", "LC_ALL", "USER", "LOGNAME", "TMPDIR")
    return {k: os.environ[k] for k in kept if k in os.environ} | {"QT_QPA_PLATFORM": "offscreen"} | more


def in_qgis(words: Sequence[str | Path], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program of QGIS."""
    return subprocess.run(words, env=env, capture_output=True, encoding="utf-8", timeout=300, check=False)


@pytest.fixture(scope="module")
def qgis_python() -> Path:
    """A Python that can import QGIS, which is never the one of the tests."""
    folders = [*os.environ["PATH"].split(os.pathsep), "/usr/bin"]
    for python in dict.fromkeys(path for folder in folders if (path := Path(folder) / "python3").exists()):
        found = subprocess.run([python, "-c", "import qgis.core"], env=plain(), capture_output=True, check=False)
        if found.returncode == 0:
            return python
    pytest.skip("no python3 has QGIS (on Debian: apt-get install qgis python3-qgis)")


@pytest.fixture(scope="module")
def home(qgis_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment with a home of the tests' own, in which QGIS finds its own Python: it takes the first on PATH."""
    folder = str(tmp_path_factory.mktemp("home"))
    path = os.pathsep.join([str(qgis_python.parent), os.environ["PATH"]])
    return plain(HOME=folder, XDG_RUNTIME_DIR=folder, XDG_DATA_HOME=f"{folder}/.local/share", PATH=path)


Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ask(qgis_python: Path, home: dict[str, str]) -> Ask:
    """Puts requests to a script that runs in QGIS's Python."""

    def answers(script: str, *args: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        path = Path(home["HOME"]) / "requests.json"
        path.write_text(json.dumps(requests))
        done = in_qgis([qgis_python, HERE / script, *args, path], home)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    return answers


def over(colour: Colour, alpha: float, ground: Colour = GREEN) -> list[float]:
    """What is seen of a half transparent colour on the ground."""
    return [c * alpha / 255 + g * (1 - alpha / 255) for c, g in zip(colour, ground, strict=True)]


def like(colour: Colour) -> Any:
    """A colour up to rounding."""
    return pytest.approx(colour, abs=2)


class Map(NamedTuple):
    """A map as QGIS has drawn it: what it says of the layers, from the top, and the picture."""

    layers: list[dict[str, Any]]
    pixels: NDArray[np.uint8]
    extent: list[float]

    def at(self, row: float, column: float) -> list[int]:
        """The colour at a place of the scene."""
        (x, y), (xmin, ymin, xmax, ymax) = TEN * (column, row), self.extent
        i, j = (ymax - y) / (ymax - ymin), (x - xmin) / (xmax - xmin)
        height, width = self.pixels.shape[1:]
        return [int(v) for v in self.pixels[:3, int(i * height), int(j * width)]]


def probabilities() -> NDArray[np.float32]:
    prob = np.full((60, 40), 0.02, np.float32)
    for row, column, p in PATCHES:
        prob[row : row + 10, column : column + 10] = p
    prob[NOT_SEEN[0] : NOT_SEEN[0] + 10, NOT_SEEN[1] : NOT_SEEN[1] + 10] = np.nan
    return prob


def write(folder: Path, out: str, **others: str) -> MapResult:
    """The results of a scene with four landslides, by the package's own writers."""
    wanted = Outputs(folder / out, **{name: folder / file for name, file in others.items()})
    prob = probabilities()
    grid = Grid(CRS.from_epsg(32654), TEN, prob.shape[1], prob.shape[0])
    origin = {"model": "m", "scene": "s", "date": "2018-09-11"}
    filters = {"threshold": 0.25, "min_area": 0.0, "min_slope": 0.0, "max_hole": 0.0, "simplify": 0.0}
    with WorkRaster(folder / "work.raw", grid, LAYERS) as raster:
        for layer in LAYERS:
            raster.write(Window(0, 0, grid.width, grid.height), prob, layer)
        products = [*products_for(wanted, raster)]
        layers = vectorize(raster, None, grid.crs, origin, **filters, products=products)
        record = {"settings": filters, "notes": [], "seen_share": layers.seen_share, "area_m2": 240_000.0}
        return write_all(wanted, layers, record, Clock(), raster=raster, products=products)


def compared(new: list[str | None]) -> gpd.GeoDataFrame:
    """Landslides that were compared with an earlier scene."""
    squares = [box(500_050 + 100 * i, 4_699_800, 500_130 + 100 * i, 4_699_900) for i in range(3)]
    table = {"id": [1, 2, 3], "area_m2": 8000.0, "prob_mean": 0.9, "slope_mean": 20.4, "new": pd.array(new, "string")}
    return gpd.GeoDataFrame(table, geometry=squares, crs="EPSG:32654")


@pytest.fixture(scope="module")
def maps(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Map]:
    """Maps by the files that are drawn over the image."""
    folder = tmp_path_factory.mktemp("results")
    image = np.full((60, 40), 1, np.uint8) * np.array(GREEN, np.uint8)[:, None, None]
    write_raster(folder / "image.tif", image, transform=TEN, photometric="RGB")
    write(folder, "a.gpkg", prob="prob.tif", density="density.tiff")
    write(folder, "b.gpkg", density="b.tif")
    write_vector(folder / "new.gpkg", [compared(["yes", "no", None])])
    write_vector(folder / "none.gpkg", [compared(["yes", "unknown", None])])
    for extension in ("shp", "geojson", "fgb"):
        write(folder, f"{extension}.{extension}", prob=f"{extension}.tif")
    wanted = {
        "a.gpkg": ("a.gpkg|layername=landslides", "a.gpkg|layername=not_seen"),
        "prob.tif": ("prob.tif",),
        "density.tiff": ("density.tiff",),
        "b.gpkg b.tif": ("b.gpkg|layername=landslides", "b.gpkg|layername=not_seen", "b.tif"),
        "new.gpkg": ("new.gpkg|layername=landslides",),
        "none.gpkg": ("none.gpkg|layername=landslides",),
        **{f"{e}.{e} {e}.tif": (f"{e}.{e}", f"{e}.tif") for e in ("shp", "geojson", "fgb")},
    }
    requests = [
        {
            "layers": [["gdal" if ".tif" in f else "ogr", str(folder / f)] for f in (*files, "image.tif")],
            "png": str(folder / f"{i}.png"),
            "size": [400, 600],
        }
        for i, files in enumerate(wanted.values())
    ]
    found = {}
    for name, request, answer in zip(wanted, requests, ask("render_qgis.py", requests=requests), strict=True):
        with rasterio.open(request["png"]) as png:
            found[name] = Map(answer["layers"], png.read(), answer["extent"])
    return found


def middle(row: int, column: int) -> tuple[float, float]:
    return row + 5, column + 5


def test_a_geopackage_opens_in_its_colours(maps: dict[str, Map]) -> None:
    drawn = maps["a.gpkg"]
    landslides, not_seen, _ = drawn.layers
    assert (landslides["renderer"], landslides["by"], landslides["features"]) == ("graduatedSymbol", "prob_mean", 4)
    assert landslides["classes"] == [[0, 0.4], [0.4, 0.55], [0.55, 0.7], [0.7, 1]]
    assert landslides["legend"] == [f"probability {c}" for c in ("0 to 0.4", "0.4 to 0.55", "0.55 to 0.7", "0.7 to 1")]
    assert not_seen["renderer"] == "singleSymbol"
    for (row, column, _), colour in zip(PATCHES, COLOURS, strict=True):
        assert drawn.at(*middle(row, column)) == like(over(colour, 130))
    assert drawn.at(*middle(*NOT_SEEN)) == like(over(GREY, 90))
    assert drawn.at(2, 2) == like(GREEN)


def test_fields_have_titles_with_units_and_cannot_be_spoilt(maps: dict[str, Map]) -> None:
    landslides = maps["a.gpkg"].layers[0]
    assert landslides["titles"]["area_m2"] == "Area (m²)"
    assert {"area_m2", "prob_mean", "slope_max"} <= set(landslides["read_only"])
    assert landslides["first_name"] == "Landslide 1"
    assert "m²" in landslides["first_tip"]
    assert "slope" not in landslides["first_tip"], "without a DEM none is known"
    assert "slope 20°" in maps["new.gpkg"].layers[0]["first_tip"]


def test_probabilities_open_with_their_ramp(maps: dict[str, Map]) -> None:
    drawn = maps["prob.tif"]
    prob = drawn.layers[0]
    assert (prob["renderer"], prob["band"]) == ("singlebandpseudocolor", 1)
    assert "0.55" in prob["legend"]
    between = [tuple(np.mean(pair, axis=0)) for pair in pairwise(COLOURS)]
    assert drawn.at(*middle(5, 25)) == like(over(between[1], 222))
    assert drawn.at(*middle(25, 5)) == like(over(between[2], 230))
    assert drawn.at(*middle(25, 25)) == like(over(COLOURS[3], 230))
    for nothing in (middle(*NOT_SEEN), (2, 2)):  # not seen, and very likely no landslide
        assert drawn.at(*nothing) == like(GREEN)


def test_density_opens_with_its_ramp(maps: dict[str, Map]) -> None:
    drawn = maps["density.tiff"]
    density = drawn.layers[0]
    assert (density["renderer"], density["band"]) == ("singlebandpseudocolor", 1)
    assert "10,000 m²/km² (1 %)" in density["legend"]
    # 4 of the 23 hectares seen are landslide, 174,000 m² in a km²: between 50,000 and 200,000
    share = (4e6 / 23 - 50_000) / 150_000
    between = [a + share * (b - a) for a, b in zip(COLOURS[2], COLOURS[3], strict=True)]
    assert drawn.at(30, 20) == like(over(between, 200 + share * 15))


@pytest.mark.parametrize("extension", ["shp", "geojson", "fgb"])
def test_polygons_and_a_raster_of_one_name_are_both_styled(maps: dict[str, Map], extension: str) -> None:
    drawn = maps[f"{extension}.{extension} {extension}.tif"]
    landslides, prob, _ = drawn.layers
    assert (landslides["renderer"], prob["renderer"]) == ("graduatedSymbol", "singlebandpseudocolor")
    assert drawn.at(*middle(25, 25)) == like(over(COLOURS[3], 130, over(COLOURS[3], 230)))
    assert "Perimeter (m)" in landslides["titles"].values()


def test_a_geopackage_keeps_its_own_style_beside_a_raster_of_its_name(maps: dict[str, Map]) -> None:
    kinds = [layer["renderer"] for layer in maps["b.gpkg b.tif"].layers[:3]]
    assert kinds == ["graduatedSymbol", "singleSymbol", "singlebandpseudocolor"]


def test_old_scars_are_outlined_only(maps: dict[str, Map]) -> None:
    drawn = maps["new.gpkg"]
    assert drawn.layers[0]["legend"][-1] == "not new: there before"
    red = over(COLOURS[3], 130)
    assert [drawn.at(15, column) for column in (9, 19, 29)] == [like(red), like(GREEN), like(red)]
    assert "not new: there before" not in maps["none.gpkg"].layers[0]["legend"]
    assert maps["none.gpkg"].at(15, 19) == like(red)
    edge = [drawn.at(row, 15 + shift / 10) for row in range(12, 19) for shift in range(-3, 4)]
    assert max(blue - red for red, _, blue in edge) > 30, "the outline is there, and blue"


@pytest.mark.parametrize("new", [["yes", "no", None], ["yes", "unknown", None]])
def test_the_legend_of_other_formats_has_old_scars_where_there_are_some(tmp_path: Path, new: list[str | None]) -> None:
    record = {"settings": {"threshold": 0.5}, "notes": [], "seen_share": 1.0, "area_m2": 1e6}
    write_all(Outputs(tmp_path / "o.fgb"), Layers([compared(new)], [], 1.0, 1.0), record, Clock())
    assert ("not new: there before" in (tmp_path / "o.qml").read_text(encoding="utf-8")) == ("no" in new)


def test_a_style_of_the_users_own_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "prob.qml"
    mine.write_text("<qgis/>")
    done = write(tmp_path, "out.gpkg", prob="prob.tif", density="density.tif")
    assert mine.read_text() == "<qgis/>"
    assert f"QGIS takes the colours from {mine}" in done.message
    assert "probability 0.4 to 0.55" in (tmp_path / "density.qml").read_text(encoding="utf-8")


def test_our_own_style_is_replaced_with_its_result(tmp_path: Path) -> None:
    write(tmp_path, "out.gpkg", density="out.tif")
    before = (tmp_path / "out.qml").read_text(encoding="utf-8")
    assert "m²/km²" in before
    assert "note" not in write(tmp_path, "out.gpkg", prob="out.tif").message
    assert "m²/km²" not in (tmp_path / "out.qml").read_text(encoding="utf-8")


def test_two_rasters_cannot_share_their_colours(tmp_path: Path) -> None:
    wanted = Outputs(tmp_path / "o.gpkg", tmp_path / "r.tif", tmp_path / "r.tiff")
    with pytest.raises(OutputError, match="share"):
        check_outputs(wanted, overwrite=True)


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """``l4s-map`` of this tree."""
    path = tmp_path / "l4s-map"
    root = Path(l4s_geo.__file__).parents[1]
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m l4s_geo "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    from l4s_geo.data.synthetic import make_scene, write_scene

    return write_scene(make_scene(128, 128, 1), tmp_path)["scene"]


@pytest.fixture(scope="module")
def profile(home: dict[str, str]) -> Path:
    """A person's folder of QGIS with the script in its toolbox."""
    folder = Path(home["XDG_DATA_HOME"]) / "QGIS" / "QGIS3" / "profiles" / "default"
    (folder / "processing" / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "processing" / "scripts")
    (folder / "QGIS").mkdir()
    (folder / "QGIS" / "QGIS3.ini").write_text("[PythonPlugins]\nprocessing=true\n")
    return folder


def test_the_script_maps_a_scene_by_the_command(
    qgis_python: Path, home: dict[str, str], profile: Path, scene: Path, command: Path, tmp_path: Path
) -> None:
    # Debian's wrapper gives it an option that it does not know
    program = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
    if program is None:
        pytest.skip("no qgis_process on PATH (on Debian: apt-get install qgis)")
    # Libraries of QGIS's Python that are not those of the command's
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rasterio.py").write_text("raise ImportError('of another Python')")
    env = home | {"PYTHONPATH": str(tmp_path / "other"), "GDAL_DRIVER_PATH": str(tmp_path / "other")}

    def process(*args: str) -> subprocess.CompletedProcess[str]:
        return in_qgis([program, args[0], "script:l4smap", *args[1:]], env)

    said = process("help").stdout
    assert "Outlines the landslides" in said
    assert all(name in said for name in ("SCENE", "DEM", "AOI", "PRESET", "THRESHOLD", "MIN_AREA", "PROB", "OUT"))

    out, prob = tmp_path / "out.gpkg", tmp_path / "prob.tif"
    options = ("PRESET=3", "MIN_AREA=1000", f"OUT={out}", f"PROB={prob}", f"COMMAND={command}")
    done = process("run", "--", f"SCENE={scene}", f"DEM={scene.with_name('dem.tif')}", *options)
    assert done.returncode == 0, done.stderr
    found = gpd.read_file(out, layer="landslides")
    assert len(found) > 3
    assert f"COUNT:\t{len(found)}" in done.stdout
    assert found["area_m2"].min() >= 1000
    assert found["slope_mean"].notna().all()
    assert prob.with_suffix(".qml").exists()

    failed = process("run", "--", f"SCENE={scene}", "BANDS=B4,B3", f"OUT={tmp_path / 'bad.gpkg'}", f"COMMAND={command}")
    assert failed.returncode != 0
    assert "ERROR:\t--bands names 2 bands, but there are 12" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "bad.gpkg").exists()


def test_the_script_loads_its_results_in_their_colours(
    ask: Ask, profile: Path, scene: Path, command: Path, tmp_path: Path
) -> None:
    with rasterio.open(scene) as file:
        left, bottom, right, top = file.bounds
        crs = file.crs.to_string()
    half = box(left, bottom, (left + right) / 2, top)
    given = {"SCENE": str(scene), "COMMAND": str(command)}
    mapped = {"OUT": str(tmp_path / "a.gpkg"), "PROB": str(tmp_path / "b.tif"), "DENSITY": "TEMPORARY_OUTPUT"}
    limits = {"AOI": {"memory": half.wkt, "crs": crs}, "PRESET": 3, "THRESHOLD": 0.4}
    # Works for a minute unless it is told to stop
    slow = tmp_path / "slow"
    slow.write_text(
        f"#!/bin/sh\ntrap 'touch {tmp_path / 'told'}; exit 143' TERM\necho 'mapping: 9 steps' >&2\nsleep 60 & wait\n"
    )
    slow.chmod(0o755)
    other = {"OUT": str(tmp_path / "c.gpkg")}
    algorithm = {"algorithm": "script:l4smap"}
    loaded, stopped, missing, unclear = ask(
        "run_qgis_script.py",
        profile,
        requests=[
            algorithm | {"parameters": given | mapped | limits},
            algorithm | {"parameters": given | other | {"COMMAND": str(slow)}, "cancel": True},
            algorithm | {"parameters": given | other | {"COMMAND": str(tmp_path / "nowhere")}},
            algorithm | {"parameters": given | other | {"FOLDER": str(tmp_path)}},
        ],
    )
    assert "error" not in loaded
    assert [(source.rpartition("=")[2], renderer) for _, source, renderer in loaded["layers"][:2]] == [
        ("landslides", "graduatedSymbol"),
        ("not_seen", "singleSymbol"),
    ]
    assert [renderer for *_, renderer in loaded["layers"][2:]] == ["singlebandpseudocolor"] * 2
    found = gpd.read_file(tmp_path / "a.gpkg", layer="landslides")
    assert 0 < len(found) == loaded["results"]["COUNT"]
    assert found.within(half.buffer(0.1)).all(), "the area of interest, which is in memory only, was handed on"
    assert "Mapping" in loaded["said"]

    assert "Mapping" in stopped["said"]
    assert (tmp_path / "told").exists()
    assert "There is no command" in missing["error"]
    assert "Give one scene" in unclear["error"]
    assert not stopped["layers"]
    assert not [*tmp_path.glob("c.gpkg*")]
