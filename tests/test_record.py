"""What a record says, and runs that are repeated from it: by the command, with a network whose answer is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner, Result
from geopandas.testing import assert_geodataframe_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapely.geometry import box

from l4s_geo.batch import Job, map_batch
from l4s_geo.cli import main
from l4s_geo.errors import InputError
from l4s_geo.models.card import CARD, Card
from l4s_geo.pipeline import MapOptions
from l4s_geo.progress import Silent
from l4s_geo.provenance import record as written
from l4s_geo.provenance.recorded import read_record
from tests.conftest import DATA, needs_data
from tests.test_pipeline import model, scene, write  # noqa: F401 (fixtures)

Json = dict[str, Any]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, args), "-q"])


def good(*args: str | Path) -> str:
    done = run(*args)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def refused(*args: str | Path) -> str:
    done = run(*args)
    assert done.exit_code == 2, done.stdout
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def load(path: Path) -> Json:
    content: Json = json.loads(path.read_text())
    return content


def edit(path: Path, change: Json) -> None:
    """Put other values into parts of a record."""
    content = load(path)
    for name, values in change.items():
        content[name] = content[name] | values if isinstance(values, dict) else values
    path.write_text(json.dumps(content))


def landslides(path: Path) -> gpd.GeoDataFrame:
    return gpd.read_file(path, layer="landslides") if path.suffix == ".gpkg" else gpd.read_file(path)


def pixels(path: Path) -> Any:
    with rasterio.open(path) as file:
        return file.read()


@pytest.fixture
def place(tmp_path: Path, scene: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder with a scene, a DEM, an area of interest and a map of them, made in it with relative paths."""
    monkeypatch.chdir(tmp_path)
    slope = np.add.outer(np.arange(300), np.arange(200))[None] * 5
    write(tmp_path / "dem.tif", slope, names=("dem",), dtype="int16", nodata=-9999)
    area = gpd.GeoDataFrame(geometry=[box(300_000, 2_597_000, 301_900, 2_600_000)], crs="EPSG:32651")
    area.to_file(tmp_path / "aoi.shp")
    good(
        scene.name, "--dem", "dem.tif", "--aoi", "aoi.shp", "--model", "bright", "--out", "out.gpkg",
        "--prob", "prob.tif", "--threshold", "0.6", "--overlap", "0.3", "--device", "cpu",
    )  # fmt: skip
    return tmp_path


def test_a_record_says_what_was_asked_for_of_which_files_and_models(place: Path) -> None:
    found = load(place / "out.gpkg.json")
    assert found["record"] == {"verb": "map", "format": 1, "folder": str(place), "repeats": None}
    assert found["options"]["threshold"] == 0.6
    assert found["options"]["dem"] == "dem.tif"
    assert not {"out", "prob", "density", "stac", "overwrite", "resume", "decided"} & {*found["options"]}
    dem = (place / "dem.tif").read_bytes()
    assert found["inputs"]["dem"] == {
        "path": "dem.tif",
        "bytes": len(dem),
        "files": [
            {"path": str(place / "dem.tif"), "bytes": len(dem), "sha256": hashlib.sha256(dem).hexdigest()},
        ],
    }
    assert [Path(f["path"]).suffix for f in found["inputs"]["aoi"]["files"]] == [".shp", ".shx", ".dbf", ".prj", ".cpg"]
    (used,) = found["models"]
    assert used["card_sha256"] == hashlib.sha256((place / "bright" / CARD).read_bytes()).hexdigest()
    assert used["sha256"] == {n.name: n.sha256 for n in Card.load(place / "bright").networks}
    assert found["computed"]["devices"] == ["cpu"]
    assert (found["output"], found["folder"]) == ("out.gpkg", str(place))


def test_a_run_is_repeated_to_the_same_map_from_anywhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    said = good("--from", place / "out.gpkg.json", "--out", "again.gpkg", "--prob", "again.tif")
    assert f"note: repeats {place / 'out.gpkg.json'}\n" in said
    assert_geodataframe_equal(landslides(place / "out.gpkg"), landslides(elsewhere / "again.gpkg"))
    assert len(landslides(elsewhere / "again.gpkg"))
    assert np.array_equal(pixels(place / "prob.tif"), pixels(elsewhere / "again.tif"), equal_nan=True)
    first, again = load(place / "out.gpkg.json"), load(elsewhere / "again.gpkg.json")
    assert again["record"]["repeats"] == str(place / "out.gpkg.json")
    for part in ("settings", "normalization", "models", "scene"):
        assert again[part] == first[part]
    good("--from", "again.gpkg.json", "--out", "third.fgb")  # and that one again, in another format
    third = landslides(elsewhere / "third.fgb").sort_values("id", ignore_index=True)
    assert third.geometry.geom_equals(landslides(place / "out.gpkg").geometry).all()


def test_what_was_decided_is_kept_whatever_the_defaults_are_now(place: Path) -> None:
    edit(place / "out.gpkg.json", {"settings": {"min_area": 25_000.0}, "normalization": {"source": "of then"}})
    good("--from", "out.gpkg.json", "--out", "again.gpkg")
    assert landslides(place / "again.gpkg").area_m2.min() > 25_000
    assert load(place / "again.gpkg.json")["normalization"]["source"] == "of then"


def test_what_is_given_wins_over_the_record(place: Path) -> None:
    edit(place / "out.gpkg.json", {"normalization": {"source": "of then"}})

    def repeated(*args: str) -> Json:
        good("--from", "out.gpkg.json", "--out", "again.gpkg", "--overwrite", *args)
        return load(place / "again.gpkg.json")

    found = repeated("--threshold", "0.9")
    assert (found["settings"]["threshold"], found["settings"]["stride"]) == (0.9, 90)
    assert found["normalization"]["source"] == "of then"
    assert found["notes"][0] == "repeats out.gpkg.json, but for --threshold"
    found = repeated("--preset", "recall")  # which says itself what the threshold is
    assert (found["settings"]["threshold"], found["settings"]["min_area"]) == (0.2, 200)
    found = repeated("--preset", "recall", "--threshold", "0.7")
    assert found["settings"]["threshold"] == 0.7
    found = repeated("--s2-offset", "0")  # what changes how the scene is read changes its statistics
    assert found["normalization"]["source"] == "scene scene_20180911"


def test_another_scene_gets_the_same_settings_and_its_own_statistics(place: Path) -> None:
    darker = np.random.default_rng(3).normal(400, 40, (3, 120, 90)).clip(200, 500)
    darker[:, 30:60, 30:60] = 1100
    write(place / "other.tif", darker)
    good("other.tif", "--from", "out.gpkg.json", "--out", "other.gpkg")
    found, first = load(place / "other.gpkg.json"), load(place / "out.gpkg.json")
    assert found["settings"]["threshold"] == first["settings"]["threshold"] == 0.6
    assert found["normalization"]["source"] == "scene other"
    assert [*found["inputs"]] == ["scene"]
    assert "not taken from the record, for they belong to its scene: --aoi, --dem" in found["notes"]
    assert len(landslides(place / "other.gpkg")) == 1


def test_statistics_from_a_file_are_kept_for_another_scene_and_need_no_file(place: Path) -> None:
    good("check", "scene_20180911.tif", "--stats", "stats.json")
    good("scene_20180911.tif", "--model", "bright", "--normalize", "stats.json", "--out", "a.gpkg", "--device", "cpu")
    (place / "stats.json").unlink()
    write(place / "other.tif", np.full((3, 60, 60), 450.0))
    good("other.tif", "--from", "a.gpkg.json", "--out", "b.gpkg")
    assert load(place / "b.gpkg.json")["normalization"] == load(place / "a.gpkg.json")["normalization"]


def test_folders_may_be_moved_together(place: Path) -> None:
    new = place.parent / f"{place.name} moved"
    place.rename(new)
    try:
        good("--from", new / "out.gpkg.json", "--out", new / "again.gpkg")
        assert_geodataframe_equal(landslides(new / "out.gpkg"), landslides(new / "again.gpkg"))
    finally:
        new.rename(place)


def test_inputs_and_models_may_be_given_in_their_new_place(place: Path) -> None:
    for name in ("scene_20180911.tif", "dem.tif", "bright"):
        (place / name).rename(place / f"new_{name}")
    assert "scene_20180911.tif, which is not there" in refused("--from", "out.gpkg.json", "--out", "a.gpkg")
    scene_ = "new_scene_20180911.tif"
    assert "dem.tif, which is not there" in refused(scene_, "--from", "out.gpkg.json", "--out", "a.gpkg")
    moved = [scene_, "--from", "out.gpkg.json", "--out", "a.gpkg", "--dem", "new_dem.tif"]
    assert "say where with --model" in refused(*moved)
    edit(place / "out.gpkg.json", {"normalization": {"source": "of then"}})
    good(*moved, "--model", "new_bright")
    found = load(place / "a.gpkg.json")
    assert (found["notes"][0], found["normalization"]["source"]) == ("repeats out.gpkg.json", "of then")
    first, again = (landslides(place / name).drop(columns="scene") for name in ("out.gpkg", "a.gpkg"))
    assert_geodataframe_equal(first, again)


def test_an_input_that_has_changed_is_refused(place: Path) -> None:
    dem = place / "dem.tif"
    before = dem.read_bytes()
    dem.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    said = refused("--from", "out.gpkg.json", "--out", "a.gpkg")
    assert "dem.tif has changed since out.gpkg.json was written (same size, other SHA-256)" in said
    dem.write_bytes(before + b"\0")
    said = refused("--from", "out.gpkg.json", "--out", "a.gpkg")
    assert f"({len(before)} bytes then, {len(before) + 1} now)" in said
    assert not list(place.glob("a.gpkg*"))
    good("--from", "out.gpkg.json", "--out", "a.gpkg", "--dem", "dem.tif")  # as it is now
    (place / "aoi.prj").unlink()
    assert "stood for 5 files" in refused("--from", "out.gpkg.json", "--out", "b.gpkg", "--dem", "dem.tif")


def test_another_model_is_refused(place: Path) -> None:
    card = place / "bright" / CARD
    before = card.read_text()
    card.write_text(before.replace('"balanced": 0.5', '"balanced": 0.4'))
    assert "its card has other checksums" in refused("--from", "out.gpkg.json", "--out", "a.gpkg")
    card.write_text(before)
    edit(place / "out.gpkg.json", {"models": [load(place / "out.gpkg.json")["models"][0] | {"sha256": {"n": "0"}}]})
    assert "its weights have other checksums" in refused("--from", "out.gpkg.json", "--out", "a.gpkg")
    good("--from", "out.gpkg.json", "--out", "a.gpkg", "--model", "bright")
    assert load(place / "a.gpkg.json")["notes"][0] == "repeats out.gpkg.json, but for --model"


def test_other_versions_are_a_note(place: Path) -> None:
    edit(place / "out.gpkg.json", {"versions": {"gdal": "2.0"}, "computed": {"dtype": "float8"}})
    said = good("--from", "out.gpkg.json", "--out", "a.gpkg")
    assert "note: results may differ a little: gdal 2.0 then" in said
    assert "dtype float8 then" in said


def test_a_pattern_of_files_is_the_same_files(place: Path) -> None:
    values = pixels(place / "scene_20180911.tif")
    for band, name in zip(values, ("B4", "B3", "B2"), strict=True):
        write(place / f"post_{name}.tif", band[None], names=(name,))
    good("post_B*.tif", "--model", "bright", "--out", "bands.gpkg", "--device", "cpu")
    assert len(load(place / "bands.gpkg.json")["inputs"]["scene"]["files"]) == 3
    good("--from", "bands.gpkg.json", "--out", "again.gpkg")
    assert_geodataframe_equal(landslides(place / "bands.gpkg"), landslides(place / "again.gpkg"))
    write(place / "post_B8.tif", values[:1], names=("B8",))
    said = refused("--from", "bands.gpkg.json", "--out", "b.gpkg")
    assert "stood for 3 files when bands.gpkg.json was written, and stands for 4 now" in said


def test_records_of_a_batch_are_repeated(place: Path) -> None:
    options = MapOptions("", place, models=("bright",), device="cpu")
    (done,) = map_batch([Job("scene_20180911.tif", "one")], place / "maps", options, Silent())
    assert done.state == "mapped", done.error
    good("--from", "maps/one.gpkg.json", "--out", "again.gpkg")
    assert_geodataframe_equal(landslides(place / "maps" / "one.gpkg"), landslides(place / "again.gpkg"))


def test_a_repeated_run_is_taken_up_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("l4s_geo.pipeline.vectorize", interrupted)
        assert run("--from", "out.gpkg.json", "--out", "a.gpkg").exit_code == 130
    good("--from", "out.gpkg.json", "--out", "a.gpkg", "--resume")
    assert_geodataframe_equal(landslides(place / "out.gpkg"), landslides(place / "a.gpkg"))


def test_outputs_are_never_taken_from_a_record(place: Path) -> None:
    precious = place / "precious.tif"
    precious.write_text("precious")
    for name in ("out", "prob", "density", "overwrite"):
        edit(place / "out.gpkg.json", {"options": {name: str(precious)}})
        assert f"options that this version does not know ({name})" in refused(
            "--from", "out.gpkg.json", "--out", "a.gpkg"
        )
        content = load(place / "out.gpkg.json")
        del content["options"][name]
        (place / "out.gpkg.json").write_text(json.dumps(content))
    assert "--out" in refused("--from", "out.gpkg.json")
    assert "Give --overwrite" in refused("--from", "out.gpkg.json", "--out", "out.gpkg")
    assert precious.read_text() == "precious"


def test_an_input_that_no_option_names_is_refused(place: Path) -> None:
    edit(place / "out.gpkg.json", {"options": {"dem": None}})
    assert "is damaged: it has the input dem" in refused("--from", "out.gpkg.json", "--out", "a.gpkg")


def test_crf_is_repeated_only_where_it_is_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(place / "out.gpkg.json", {"settings": {"crf": {"threshold": 0.6, "hi": 0.95}}})
    monkeypatch.setattr("l4s_geo.crf.available", lambda: False)
    assert "repeat without: --no-crf" in refused("--from", "out.gpkg.json", "--out", "a.gpkg")
    good("--from", "out.gpkg.json", "--out", "a.gpkg", "--no-crf")
    assert load(place / "a.gpkg.json")["settings"]["crf"] is None


def test_other_files_are_refused_by_what_they_are(place: Path) -> None:
    good("polygonize", "prob.tif", "--out", "poly.gpkg")
    said = refused("--from", "poly.gpkg.json", "--out", "a.gpkg")
    assert "written by `l4s-map polygonize`" in said
    assert "Give the record beside the probabilities" in said
    made = load(place / "poly.gpkg.json")
    assert made["inputs"]["prob"]["files"][0]["sha256"] == written.fingerprint(place / "prob.tif")["sha256"]  # type: ignore[index]
    assert made["probabilities"]["options"] == load(place / "prob.tif.json")["options"]
    texts = {
        "nothing.json": (None, "cannot be read"),
        "folder": ("", "cannot be read"),
        "broken.json": ('{"record":', "it is no JSON"),
        "deep.json": ("[" * 100_000, "no JSON"),
        "binary.json": ("\udcff\udcfe", "no JSON"),
        "list.json": ("[]", "other JSON"),
        "foreign.json": ('{"type": "FeatureCollection"}', "is no record of a run"),
        "item.json": ('{"type": "Feature", "assets": {}}', "it names no record"),
        "remote.json": ('{"type": "Feature", "assets": {"record": {"href": "https://a/b"}}}', "it names no record"),
        "empty.json": ('{"record": {"verb": "map", "format": 1}}', "is damaged"),
        "new.json": ('{"record": {"verb": "map", "format": 2}, "versions": {"l4s_geo": "9.1"}}', "l4s-map 9.1"),
        "big.json": (" " * (17 << 20), "larger than"),
    }
    for name, (text, hint) in texts.items():
        if name == "folder":
            (place / name).mkdir()
        elif text is not None:
            (place / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        assert hint in refused("--from", name, "--out", "a.gpkg"), name
    old = {k: v for k, v in load(place / "out.gpkg.json").items() if k not in ("record", "options")}
    (place / "old.json").write_text(json.dumps(old))
    assert "did not keep all options" in refused("--from", "old.json", "--out", "a.gpkg")
    assert not list(place.glob("a.gpkg*"))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_record_is_refused_or_harmless(place: Path, data: st.DataObject) -> None:
    content = load(place / "out.gpkg.json")
    content |= {"result": {}, "notes": []}
    part = data.draw(st.sampled_from([*content]))
    inside = content[part]
    if isinstance(inside, dict) and inside and data.draw(st.booleans()):
        inside[data.draw(st.sampled_from([*inside]))] = data.draw(ANY)
    else:
        content[part] = data.draw(ANY)
    (place / "damaged.json").write_text(json.dumps(content))
    before = {p.name for p in place.iterdir()}
    done = run("--from", "damaged.json", "--out", "no/where.gpkg")  # so that what is accepted does not run either
    assert done.exit_code == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    assert {p.name for p in place.iterdir()} == before


def test_checksums_are_given_up_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(64 << 20))
    with pytest.raises(InputError), written.inputs_of(dem=tmp_path / "large") as described:
        raise InputError("no")
    assert described.result()["dem"]["files"] == [] or described.done()


def test_sources_of_a_vrt_count_and_what_viewers_write_does_not(place: Path) -> None:
    (place / "scene.vrt").write_text(
        '<VRTDataset rasterXSize="200" rasterYSize="300"><SRS>EPSG:32651</SRS>'
        "<GeoTransform>300000, 10, 0, 2600000, 0, -10</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">scene_20180911.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (place / "scene_20180911.tif.aux.xml").write_text("<PAMDataset/>")
    found = [p.name for p in written.files_of([str(place / "scene.vrt")])]
    assert found == ["scene.vrt", "scene_20180911.tif"]
    (place / "scene.vrt.msk").write_bytes(b"")
    assert "scene.vrt.msk" in [p.name for p in written.files_of([str(place / "scene.vrt")])]


@needs_data
def test_a_real_scene_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = min((DATA / "bigearthnet").rglob("*_B02.tif")).parent
    good(folder, "--out", "a.gpkg", "--prob", "a.tif", "--threshold", "0.2")
    assert len(load(tmp_path / "a.gpkg.json")["inputs"]["scene"]["files"]) >= 12
    good("--from", "a.gpkg.json", "--out", "b.gpkg", "--prob", "b.tif")
    assert_geodataframe_equal(landslides(tmp_path / "a.gpkg"), landslides(tmp_path / "b.gpkg"))
    assert np.array_equal(pixels(tmp_path / "a.tif"), pixels(tmp_path / "b.tif"), equal_nan=True)


def test_reading_a_record_needs_no_options_that_were_left_open(place: Path) -> None:
    found = read_record(place / "out.gpkg.json").options
    assert "density" not in found
    assert found["scene"] == str(place / "scene_20180911.tif")
    assert found["models"] == [str(place / "bright")]
