"""Many scenes: lists, parts of lists, failures in between, and machines of a cluster that die."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from shapely.geometry import box

from l4s_geo.batch import BESIDE, Job, find_jobs, map_batch
from l4s_geo.cli import main
from l4s_geo.errors import InputError
from l4s_geo.pipeline import map_scene
from l4s_geo.progress import Silent
from l4s_geo.settings import MapOptions

from .test_pipeline import model, options, scene, write  # noqa: F401 (fixtures)


@pytest.fixture
def folder(scene: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Two good scenes and a broken one between them."""
    out = tmp_path / "scenes"
    out.mkdir()
    whole = scene.read_bytes()
    for name, content in {"a.tif": whole, "b.tif": whole[:5000], "c.tif": whole}.items():
        (out / name).write_bytes(content)
    return out


def test_patterns_lists_and_paths_name_scenes(folder: Path, tmp_path: Path) -> None:
    assert [j.name for j in find_jobs([str(folder / "*.tif")])] == ["a", "b", "c"]
    (folder / "list.txt").write_text("# mine\na.tif\n\n/elsewhere/x y.tif\nhttps://host/z.tif?key=1\n")
    assert find_jobs([str(folder / "list.txt")]) == [
        Job(str(folder / "a.tif"), "a"),
        Job("/elsewhere/x y.tif", "x y"),
        Job("https://host/z.tif?key=1", "z"),
    ]
    (folder / "list.csv").write_text("scene,dem,name\na.tif,dem.tif,first\na.tif,,second\n")
    assert find_jobs([str(folder / "list.csv"), "d.tif"]) == [
        Job(str(folder / "a.tif"), "first", str(folder / "dem.tif")),
        Job(str(folder / "a.tif"), "second"),
        Job("d.tif", "d"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.txt", "a.tif\nother/a.tif\n", "written as a"),
        ("l.csv", "path\na.tif\n", "needs scene"),
        ("l.csv", "scene,name\n,x\n", "without a scene"),
        ("l.txt", "# nothing\n", "lists no scene"),
        ("l.csv", None, "cannot be read"),
        ("*.nothing", None, "No file is named"),
    ],
)
def test_bad_lists_are_refused(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        find_jobs([str(tmp_path / name)])


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_parts_of_a_list_are_the_list(folder: Path, n: int) -> None:
    words = [str(folder / "*.tif"), "d.tif", "e.tif"]
    parts = [find_jobs(words, (i, n)) for i in range(1, n + 1)]
    assert sorted(j.name for part in parts for j in part) == ["a", "b", "c", "d", "e"]


def run(*args: str) -> Any:
    return CliRunner().invoke(main, ["batch", *args, "--dtype", "fp32", "--device", "cpu", "-q"])


def test_a_failure_does_not_stop_the_rest(folder: Path, model: str, tmp_path: Path) -> None:  # noqa: F811
    args = [str(folder / "*.tif"), "--out", str(tmp_path / "maps"), "--model", model, "--prob"]
    done = run(*args)
    assert done.exit_code == 2
    assert "2 mapped, 1 failed" in done.output
    assert "b.tif" in done.output
    assert "Traceback" not in done.output
    written = {f"{name}.{e}" for name in "ac" for e in ("gpkg", "gpkg.json", "tif", "tif.json", "qml")}
    assert {p.name for p in (tmp_path / "maps").iterdir()} == written
    assert len(gpd.read_file(tmp_path / "maps" / "c.gpkg", layer="landslides")) == 2
    (folder / "b.tif").write_bytes((folder / "a.tif").read_bytes())
    before = (tmp_path / "maps" / "a.gpkg").stat().st_mtime_ns
    again = run(*args, "--resume", "--json")
    assert again.exit_code == 0
    states = {Path(s["scene"]).name: s["state"] for s in json.loads(again.stdout)["scenes"]}
    assert states == {"a.tif": "there already", "b.tif": "mapped", "c.tif": "there already"}
    assert (tmp_path / "maps" / "a.gpkg").stat().st_mtime_ns == before


def test_all_that_a_map_can_have_beside_it(folder: Path, model: str, tmp_path: Path) -> None:  # noqa: F811
    flags = [f"--{name}" for name in BESIDE]
    done = run(str(folder / "a.tif"), "--out", str(tmp_path / "maps"), "--model", model, "--format", "fgb", *flags)
    assert done.exit_code == 0, done.output
    ends = (".fgb", ".tif", "-density.tif", ".html", ".png")
    records = {f"a{end}{more}" for end in ends for more in ("", ".json")}
    others = {"a-item.json", "a-item-model.json", "a.qml", "a-density.qml"}
    assert {p.name for p in (tmp_path / "maps").iterdir()} == records | others
    item = json.loads((tmp_path / "maps" / "a-item.json").read_text())
    assert {Path(asset["href"]).name for asset in item["assets"].values()} >= {f"a{end}" for end in ends}


def test_networks_are_loaded_once(folder: Path, model: str, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    from l4s_geo.models import registry

    load, loaded = registry.load_network, []
    monkeypatch.setattr(registry, "load_network", lambda m, n: loaded.append(n.name) or load(m, n))
    jobs = find_jobs([str(folder / "a.tif"), str(folder / "c.tif")])
    states = [o.state for o in map_batch(jobs, tmp_path, options("", model, tmp_path), Silent())]
    assert states == ["mapped", "mapped"]
    assert loaded == ["bright0", "bright1"]


@pytest.mark.parametrize("given", ["0/3", "4/3", "1", "a/b"])
def test_parts_that_are_none_are_refused(given: str, tmp_path: Path) -> None:
    done = run("s.tif", "--out", str(tmp_path), "--split", given)
    assert done.exit_code == 2
    assert "i/n" in done.output


def test_without_a_cluster_ray_is_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = run(str(folder / "a.tif"), "--out", str(tmp_path / "maps"), "--ray", "127.0.0.1:1")
    assert done.exit_code == 2
    assert "No Ray cluster" in done.output


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A Ray cluster of three machines, which are processes here."""
    pytest.importorskip("ray", reason="needs the extra [ray]")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_a_cluster_gives_the_same_bytes_though_a_machine_dies(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l4s_geo import cluster

    rng = np.random.default_rng(3)
    image = rng.normal(900, 300, (3, 1500, 140)).clip(300, 3000)
    image[:, 400:600, :60] = 0
    write(tmp_path / "scene.tif", image)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "STRIP", 100)
    cells = gpd.GeoSeries([box(300_000, 2_585_500, 301_000, 2_599_500)], crs="EPSG:32651")
    cells.to_file("area.gpkg")
    cells.buffer(-400).to_file("lake.gpkg")
    local = MapOptions(
        "scene.tif", Path("local.fgb"), prob=Path("local.tif"), device="cpu", crf=False, threshold=0.3,
        aoi="area.gpkg", masks=("lake.gpkg",),
    )  # fmt: skip
    map_scene(local, Silent())
    with cluster.on_ray(nodes.address) as source:
        assert isinstance(source, cluster.Cluster)
        assert len(source.actors) == 3

        def dying(*args: Any) -> Any:
            for number, rows in enumerate(source(*args)):
                if number == 4:
                    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
                yield rows

        job = Job("scene.tif", "far")
        (outcome,) = map_batch([job], tmp_path, local, Silent(), extension=".fgb", also=["prob"], source=dying)
        assert outcome.state == "mapped", outcome.error
        assert len(source.actors) == 2
        broken = Job("missing.tif", "missing")
        (outcome,) = map_batch([broken], tmp_path, local, Silent(), source=source)
        assert outcome.state == "failed"
    assert (tmp_path / "far.fgb").read_bytes() == (tmp_path / "local.fgb").read_bytes()
    with rasterio.open("far.tif") as far, rasterio.open("local.tif") as near:
        assert np.array_equal(far.read(), near.read(), equal_nan=True)
