"""``l4s-map adapt``: what it leaves behind, its guard, its choice of statistics, and that it goes on after a kill."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from rasterio.transform import from_origin
from shapely.geometry import box

from l4s_geo.adapt import loop, method, rounds
from l4s_geo.adapt.labels import RIM
from l4s_geo.calibration import Calibration
from l4s_geo.cli import main
from l4s_geo.data.synth_l4s import write_synthetic
from l4s_geo.models import registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.normalize import Normalizer, fit
from l4s_geo.progress import Silent
from l4s_geo.train import trainer
from tests.test_train import BANDS, write_labelled

PLACE = from_origin(3e5, 2.6e6, 10, 10)  # of what write_labelled writes
STAGE = """
title = "tiny"
source = "tests"
batch_size = 2
[[stages]]
steps = 2
"""
ROUND = """
[[rounds]]
select = { method = "top-share", share = 1.0 }
"""
THREE = 'normalizations = ["scene", "centre", "model"]\n'


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """Networks small enough to train in seconds."""
    args = {"encoder_name": "tu-mobilenetv3_small_050", "decoder_channels": [16, 8], "encoder_depth": 2}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tiny", "other"):
            patch.setitem(zoo.PRESETS, name, ("Unet", args))
        yield


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """Model m, trained on valley; hill, dell and flat, which it has not seen, the last without landslides; methods."""
    folder = tmp_path_factory.mktemp("place")
    write_labelled(folder / "valley")
    write_labelled(folder / "hill", h=160, w=150, seed=1)
    write_labelled(folder / "dell", h=132, w=128, seed=2)
    (folder / "flat").mkdir()
    noise = np.random.default_rng(3).normal(500, 30, (3, 150, 140)).astype(np.uint16)
    write_image(folder / "flat" / "rgb.tif", noise)
    (folder / "one.toml").write_text(STAGE + ROUND)
    (folder / "two.toml").write_text(STAGE + ROUND + ROUND)
    recipe = 'networks = ["tiny"]\nema = 0.9\n' + STAGE.replace("steps = 2", "steps = 40\nlearning_rate = 5e-3")
    (folder / "recipe.toml").write_text(recipe.replace("batch_size = 2", "batch_size = 4"))
    made = run_in(folder, "train", "--recipe", "recipe.toml", "--data", "valley", "--threads", 1, "--out", "m")
    assert made.exit_code == 0, made.output
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Without pictures."""
    monkeypatch.setattr(loop, "write_report", lambda report, out: out / "report.html")
    monkeypatch.setattr(trainer, "plot", lambda *a: None)


def write_image(path, values, names=BANDS):
    h, w = values.shape[1:]
    profile = {"crs": "EPSG:32651", "transform": PLACE, "width": w, "height": h, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", count=len(values), nodata=0, **profile) as file:
        file.write(values)
        file.descriptions = names
    return path


def run_in(folder, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(main, [str(a) for a in arguments])


def adapt(place, out, *arguments, scenes=("hill/rgb.tif",)):
    """The command on small numbers; a later option wins."""
    few = ("--model", "m", "--method", "one.toml", "--steps", 2, "--batch-size", 2, "--threads", 1, "--dtype", "fp32")
    return run_in(place, "adapt", *scenes, *few, "--out", out, *arguments)


def done(place, out, *arguments, **more):
    """The same, which must end well; what it says for programs."""
    found = adapt(place, out, "--json", *arguments, **more)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def labels_of(folder):
    with rasterio.open(folder / "labels.tif") as file:
        return file.read(1)


def cells(path, parts, **columns):
    """Polygons around pixels (row, column, end row, end column)."""
    corners = [(*(PLACE * (c, r)), *(PLACE * (c1, r1))) for r, c, r1, c1 in parts]
    shapes = [box(x, y1, x1, y) for x, y, x1, y1 in corners]
    gpd.GeoDataFrame(columns, geometry=shapes, crs=32651).to_file(path)
    return path


def weights(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors"))}


def burnt(parts, values, shape=(160, 150)):
    """Given labels with the rims of landslides (no landslide within a rim), and where an outline is."""
    found, outlined = np.full(shape, 255, np.uint8), np.zeros(shape, np.bool_)
    for (r, c, r1, c1), value in zip(parts, values, strict=True):
        if value:
            found[r - RIM : r1 + RIM, c - RIM : c1 + RIM] = 0
        found[r:r1, c:c1] = value
        outlined[r:r1, c:c1] = True
    return found, outlined


def test_an_adapted_model_maps_and_its_folder_tells_all_without_paths(place, tmp_path):
    files = ["--model", place / "m", "--method", place / "one.toml", "--source", place / "valley"]
    area = cells(tmp_path / "aoi.gpkg", [(-9, -9, 200, 200)])
    truth = ["--truth", place / "hill" / "labels.tif"]
    scenes = (place / "hill" / "rgb.tif",)
    found = adapt(place, tmp_path / "mine", "--json", *files, "--aoi", area, *truth, "--seed", 3, scenes=scenes)
    assert found.exit_code == 0, found.output
    assert len(found.stdout.splitlines()) == 1
    summary, out = json.loads(found.stdout), tmp_path / "mine"
    card, start = Card.load(out), Card.load(place / "m")
    assert summary["adapted"] is card.adapted is True
    assert summary["kept"] == card.training["kept"] == 1
    assert (card.name, card.normalization, card.statistics) == ("mine", "scene", start.statistics)
    assert card.training["from"] == {"name": "m", "version": "1", "sha256": {"tiny": start.networks[0].sha256}}
    assert card.networks[0].sha256 != start.networks[0].sha256
    assert card.networks[0].sha256 == Card.load(out / "round-1").networks[0].sha256
    assert summary["threshold"] == card.thresholds["balanced"]
    settings = card.training["settings"]
    assert (settings["scenes"], settings["method"], settings["seed"]) == (["hill"], "one.toml", 3)
    for name in ("card.json", "report.json", "report.html"):
        text = (out / name).read_text()
        assert str(place) not in text
        assert str(tmp_path) not in text
    names = {p.name for p in out.rglob("*")}
    assert {"targets", "answers", "doubts", "before", "checkpoint.pt", "image.tif"}.isdisjoint(names)
    assert {"card.json", "report.json", "report.html", "tiny.safetensors", "labels.tif"} <= names
    # the figures are those of the map, counted here
    mapped = run_in(
        place, "hill/rgb.tif", "--model", out, "--out", tmp_path / "a.gpkg", "--prob", tmp_path / "a.tif", "--json"
    )
    assert mapped.exit_code == 0, mapped.output
    assert json.loads(mapped.stdout)["landslides"] > 5
    with rasterio.open(tmp_path / "a.tif") as file:
        prob = file.read(1)
    known = labels_of(place / "hill") < 2
    a, b = prob[known] >= card.thresholds["balanced"], labels_of(place / "hill")[known] == 1
    figures = summary["rounds"][1]["figures"]
    assert figures["precision"] == pytest.approx((a & b).sum() / a.sum(), abs=0.002)
    assert figures["recall"] == pytest.approx((a & b).sum() / b.sum(), abs=0.002)
    assert summary["before"] == summary["rounds"][0]["figures"]
    assert figures["f1"] > 0.8


def test_without_json_it_says_what_came_of_it(place, tmp_path, quick):
    found = adapt(place, tmp_path / "mine", "--truth", "hill/labels.tif")
    assert found.exit_code == 0, found.output
    assert "Model mine in" in found.stdout
    assert "Round 1 is kept; all rounds were safe." in found.stdout
    assert "round 1: precision 0." in found.stdout
    assert "learning" in found.stderr or "training" in found.stderr


@pytest.mark.parametrize("more", ["alone", "source", "labels"])
@pytest.mark.parametrize("name", sorted(p.stem for p in method.METHODS.glob("*.toml")))
def test_every_method_runs(place, tmp_path, quick, name, more):
    extra = {
        "alone": [],
        "source": ["--source", "valley", "--rounds", 1],
        "labels": ["--labels", cells(tmp_path / "l.gpkg", [(30, 30, 50, 50)]), "--rounds", 1],
    }[more]
    found = done(place, tmp_path / "a", "--method", name, "--steps", 1, *extra)
    wanted = method.load(name, ("tiny",), BANDS, 1 if extra else None).recipe.rounds
    # little was learnt in one step, so nothing can have become worse
    assert [r["number"] for r in found["rounds"]] == [*range(len(wanted) + 1)]
    assert found["kept"] == len(wanted)
    assert weights(tmp_path / "a") != weights(place / "m")
    counts = found["rounds"][1]["selected"]["hill"]
    assert min(counts["background"], counts["landslide"]) > 0


def test_methods_differ_in_what_they_select_and_how_they_go_on(place, tmp_path, quick, monkeypatch):
    """The fixed teacher labels every round; otherwise the model of the round before does."""
    looks = []
    answer = rounds.answer
    monkeypatch.setattr(
        rounds, "answer", lambda t, i, path, *a: looks.append(path.parts[-3:-1]) or answer(t, i, path, *a)
    )
    done(place, tmp_path / "a", "--method", "mc-dropout", "--rounds", 2)
    assert [folder for folder, kind in looks if kind == "doubts"] == ["round-0"]
    first, second = (labels_of(tmp_path / "a" / f"round-{i}" / "pseudo" / "hill") for i in (1, 2))
    assert np.array_equal(first, second)
    seen = first[(labels_of(place / "hill") < 2)]
    assert 0.8 < (seen < 2).mean() < 0.95


def test_several_scenes_are_learnt_from_together(place, tmp_path, quick):
    truth = ["--truth", "hill/labels.tif", "--truth", "dell/labels.tif"]
    found = done(place, tmp_path / "a", *truth, scenes=("hill/rgb.tif", "dell/rgb.tif@dn"))
    assert set(found["rounds"][1]["selected"]) == {"hill", "dell"}
    assert sum(sum(n.values()) for n in found["rounds"][1]["selected"].values()) == 160 * 150 + 132 * 128 - 2 * 20**2
    assert found["rounds"][0]["figures"]["f1"] > 0.9
    swapped = adapt(place, tmp_path / "b", *truth[2:], *truth[:2], scenes=("hill/rgb.tif", "dell/rgb.tif"))
    assert swapped.exit_code == 0, swapped.output
    assert "f1 0." in swapped.stdout
    assert "f1 0.9" not in swapped.stdout


def test_patches_are_learnt_from_and_reported(place, tmp_path):
    write_synthetic(tmp_path / "l4s", 10, "traindata", 1, Silent())
    found = done(place, tmp_path / "a", "--source", tmp_path / "l4s", scenes=("hill/rgb.tif", tmp_path / "l4s"))
    assert sum(found["rounds"][1]["selected"]["l4s"].values()) == 2 * 128**2
    assert labels_of(tmp_path / "a" / "round-1" / "pseudo" / "l4s").shape == (4 * 128, 128)
    assert (tmp_path / "a" / "report.html").stat().st_size > 10_000


def test_another_network_learns_from_the_model_and_an_ensemble_stays_one(place, tmp_path, quick, monkeypatch):
    inits = []
    train = rounds.train
    monkeypatch.setattr(rounds, "train", lambda o, *a: inits.append(o.init and o.init.name) or train(o, *a))
    monkeypatch.setattr(rounds, "faults", lambda *a: [])  # two steps do not make a network
    done(place, tmp_path / "pair", "--arch", "tiny", "--arch", "other")
    monkeypatch.setattr(loop, "nothing_to_learn", lambda *a: [])
    done(place, tmp_path / "next", "--model", tmp_path / "pair")
    assert inits == [None, "round-0"]
    for name in ("pair", "next"):
        assert [n.name for n in Card.load(tmp_path / name).networks] == ["tiny", "other"]
        assert set(weights(tmp_path / name)) == {"tiny.safetensors", "other.safetensors"}
    mapped = run_in(place, "hill/rgb.tif", "--model", tmp_path / "next", "--out", tmp_path / "a.gpkg")
    assert mapped.exit_code == 0, mapped.output


def test_given_polygons_win_and_are_shown_alone_as_well(place, tmp_path, quick, monkeypatch):
    parts, values = [(20, 20, 40, 40), (60, 60, 70, 100), (100, 10, 110, 30)], [1, 0, 1]
    labels = cells(tmp_path / "l.gpkg", parts, landslide=values)
    given, outlined = burnt(parts, values)
    seen = []
    train = rounds.train
    monkeypatch.setattr(rounds, "train", lambda o, p, a, w: seen.extend(a) or train(o, p, a, w))
    found = done(place, tmp_path / "a", "--labels", labels, "--truth", "hill/labels.tif", "--method", "two.toml")
    for number in (1, 2):
        pseudo = tmp_path / "a" / f"round-{number}" / "pseudo"
        whole, near = labels_of(pseudo / "hill"), labels_of(pseudo / "hill-given")
        assert np.array_equal(whole[given < 2], given[given < 2])
        rows, columns = np.nonzero(given < 2)
        around = np.zeros(given.shape, np.bool_)
        for r, c in zip(rows, columns, strict=True):
            around[max(0, r - 32) : r + 33, max(0, c - 32) : c + 33] = True
        assert not around.all()
        assert np.array_equal(near, np.where(around, whole, 255))
    assert [a.name for a in seen] == ["hill", "hill-given"] * 2
    # and no figure counts them: of the starting model, whose map is easily made
    run_in(
        place,
        "hill/rgb.tif",
        "--model",
        "m",
        "--out",
        tmp_path / "m.gpkg",
        "--prob",
        tmp_path / "m.tif",
        "--dtype",
        "fp32",
        "--overlap",
        0.25,
    )
    with rasterio.open(tmp_path / "m.tif") as file:
        mapped = file.read(1) >= 0.5
    truth = labels_of(place / "hill")
    figures = []
    for known in (truth < 2, (truth < 2) & ~outlined):
        a, b = mapped[known], truth[known] == 1
        figures.append([(a & b).sum() / a.sum(), (a & b).sum() / b.sum()])
    first = found["rounds"][0]["figures"]
    assert [first["precision"], first["recall"]] == pytest.approx(figures[1], abs=2e-4)
    assert figures[0] != pytest.approx(figures[1], abs=1e-3)
    asked = run_in(
        place, "evaluate", tmp_path / "m.tif", "hill/labels.tif", "--exclude", labels, "--json"
    )  # fmt: skip
    assert json.loads(asked.stdout)["precision"] == pytest.approx(figures[1][0], abs=1e-6)


def test_labels_help_where_the_model_maps_nothing(place, tmp_path, quick):
    """Without labels there is nothing to learn there; with them the rounds are made."""
    card = replace(Card.load(place / "m"), thresholds=dict.fromkeys(("balanced", "recall", "precision"), 1.0))
    shutil.copytree(place / "m", tmp_path / "shy")
    card.save(tmp_path / "shy")
    assert done(place, tmp_path / "a", "--model", tmp_path / "shy")["rounds"][1:] == []
    labels = cells(tmp_path / "l.gpkg", [(20, 20, 40, 40)])
    found = done(place, tmp_path / "b", "--model", tmp_path / "shy", "--labels", labels)
    assert len(found["rounds"]) == 2


def test_what_is_outside_or_masked_is_not_learnt_from_nor_counted_in_statistics(place, tmp_path, quick):
    """Half of the scene is made ten times as bright: the answers are those of a scene without it."""
    with rasterio.open(place / "hill" / "rgb.tif") as file:
        values = file.read()
    bright, cut = values.copy(), values.copy()
    bright[:, 90:] *= 10
    cut[:, 90:] = 0
    write_image(tmp_path / "bright.tif", bright)
    write_image(tmp_path / "cut.tif", cut)
    write_image(tmp_path / "cloud.tif", np.where(np.arange(160)[:, None] < 90, 0, 1).repeat(150, 1)[None], ("cloud",))
    inside = cells(tmp_path / "aoi.gpkg", [(0, 0, 90, 150)])
    ways = {
        "aoi": (["--aoi", inside], "bright.tif"),
        "mask": (["--mask", tmp_path / "cloud.tif"], "bright.tif"),
        "cut": ([], "cut.tif"),
        "nothing": ([], "bright.tif"),
    }
    found = {}
    for way, (options, scene) in ways.items():
        done(place, tmp_path / way, *options, scenes=(tmp_path / scene,))
        found[way] = labels_of(tmp_path / way / "round-1" / "pseudo" / scene.removesuffix(".tif"))
    for way in ("aoi", "mask"):
        assert (found[way][90:] == 255).all()
        assert np.array_equal(found[way], found["cut"])
        assert weights(tmp_path / way) == weights(tmp_path / "cut")
    assert not np.array_equal(found["nothing"][:90], found["cut"][:90])


def test_a_small_area_of_interest_at_the_edge_can_be_learnt_from(place, tmp_path, quick):
    area = cells(tmp_path / "aoi.gpkg", [(129, 129, 139, 139), (130, 20, 160, 100)])
    found = done(place, tmp_path / "a", "--aoi", area)
    assert sum(found["rounds"][1]["selected"]["hill"].values() if found["rounds"][1:] else [2500]) == 2500


def spoilt(bias, rounds_=(1, 2)):
    """Stands for a training that collapses: its network answers the same everywhere."""
    train = rounds.train

    def fake(options, progress, areas, withheld):
        card = train(options, progress, areas, withheld)
        if int(options.out.name.removeprefix("round-")) not in rounds_:
            return card
        (network,) = card.networks
        net = registry.load_network(registry.Model(card, options.out), network)
        last = net.segmentation_head[0]
        last.weight.data.zero_()
        last.bias.data.fill_(bias)
        network = registry.save_network(net, options.out, network.name, network.architecture, network.args)
        card = replace(card, networks=(network,))
        card.save(options.out)
        return card

    return fake


@pytest.mark.parametrize(("bias", "word"), [(9.0, "grew"), (-9.0, "shrank")])
def test_a_round_that_collapses_is_refused(place, tmp_path, monkeypatch, bias, word):
    monkeypatch.setattr(rounds, "train", spoilt(bias))
    found = done(place, tmp_path / "a", "--method", "two.toml")
    assert (found["adapted"], found["kept"], len(found["rounds"])) == (False, 0, 2)
    card = Card.load(tmp_path / "a")
    assert card.adapted is False
    assert "No round was safe" in card.training["verdict"]
    assert word in card.training["verdict"]
    assert weights(tmp_path / "a") == weights(place / "m")
    assert card.thresholds == Card.load(place / "m").thresholds
    assert card.training["rounds"][1]["faults"]
    assert word in (tmp_path / "a" / "report.html").read_text()


def test_the_round_before_the_collapse_is_kept(place, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(rounds, "train", spoilt(9.0, rounds_=(2,)))
    found = done(place, tmp_path / "a", "--method", "two.toml", "--rounds", 3)
    assert (found["adapted"], found["kept"], len(found["rounds"])) == (True, 1, 3)
    assert "Round 1 is kept; the one after it was not safe" in found["verdict"]
    assert weights(tmp_path / "a") == weights(tmp_path / "a" / "round-1")
    assert Card.load(tmp_path / "a").thresholds == Card.load(tmp_path / "a" / "round-1").thresholds


LINE = {"method": "platt", "slope": 0.5, "intercept": -1.0}


@pytest.fixture
def calibrated(place, tmp_path):
    """Model m with a calibration."""
    shutil.copytree(place / "m", tmp_path / "calibrated")
    start = Card.load(place / "m").calibrated(LINE)
    start.save(tmp_path / "calibrated")
    return start


@pytest.mark.parametrize("collapses", [False, True])
def test_only_a_model_that_has_not_learnt_keeps_its_calibration(
    place, tmp_path, quick, monkeypatch, calibrated, collapses
):
    if collapses:
        monkeypatch.setattr(rounds, "train", spoilt(9.0))
    found = done(place, tmp_path / "a", "--model", tmp_path / "calibrated")
    card, same = Card.load(tmp_path / "a"), done(place, tmp_path / "b")
    assert found["kept"] == same["kept"] == (0 if collapses else 1)
    assert found["rounds"] == same["rounds"]
    if collapses:
        assert "It expects an F1 of 0." in found["verdict"]
        assert card.calibration == calibrated.calibration
        assert card.thresholds == calibrated.thresholds
    else:
        assert card.calibration == {}
        assert card.thresholds == Card.load(tmp_path / "b").thresholds


def test_a_model_that_has_learnt_its_doubts_is_taken_at_its_word(place, tmp_path, quick, calibrated):
    soft = ROUND.replace("top-share", "soft").replace(", share = 1.0", "")
    (tmp_path / "soft.toml").write_text(STAGE + soft)
    verdicts = {
        name: done(place, tmp_path / name, "--method", tmp_path / "soft.toml", "--model", model)["verdict"]
        for name, model in (("a", tmp_path / "calibrated"), ("b", place / "m"))
    }
    labels = [labels_of(tmp_path / name / "round-1" / "pseudo" / "hill") for name in "ab"]
    assert np.array_equal(*labels)  # it learns what the networks say
    for name in "ab":
        card = Card.load(tmp_path / name)
        assert Calibration.from_dict(card.calibration) == Calibration()
        assert card.calibration == {"method": "self-training"}
    was, now = re.search(r"expected F1 of the map was (0\.\d\d) and is (0\.\d\d)", verdicts["a"]).groups()
    assert f"expected F1 of the map is {now}" in verdicts["b"]  # nobody knows what the plain model is worth
    for model, expected in (("calibrated", was), ("a", now)):
        out = ("--out", tmp_path / f"{model}.gpkg", "--report", tmp_path / f"{model}.html")
        made = run_in(place, "hill/rgb.tif", "--model", tmp_path / model, *out, "--json")
        assert json.loads(made.stdout)["expected_f1"] == pytest.approx(float(expected), abs=0.03)
        learnt = "learnt its own doubts" in (tmp_path / f"{model}.html").read_text()
        assert learnt is (model == "a")


def test_where_the_model_finds_nothing_no_round_is_tried(place, tmp_path, monkeypatch):
    """A scene without landslides: nothing is made up."""
    shutil.copytree(place / "m", tmp_path / "m")
    replace(Card.load(place / "m"), normalization="model").save(tmp_path / "m")
    monkeypatch.setattr(rounds, "train", lambda *a: pytest.fail("it trained"))
    truth = cells(tmp_path / "truth.gpkg", [(10, 10, 20, 20)])
    found = done(place, tmp_path / "a", "--model", tmp_path / "m", "--truth", truth, scenes=("flat/rgb.tif",))
    assert (found["adapted"], found["kept"], len(found["rounds"])) == (False, 0, 1)
    assert "cannot teach itself" in found["verdict"]
    assert "fewer than the 200" in found["verdict"]
    assert weights(tmp_path / "a") == weights(place / "m")
    # of a map of nothing the precision is not defined, and NaN is no JSON
    json.loads((tmp_path / "a" / "card.json").read_text(), parse_constant=pytest.fail)
    assert found["before"] == {"recall": 0, "f1": 0}
    command = ["flat/rgb.tif", "--model", tmp_path / "a", "--out", tmp_path / "a.gpkg", "--json"]
    assert json.loads(run_in(place, *command).stdout)["landslides"] == 0


@pytest.mark.parametrize(
    ("own", "looks", "chosen"),
    [
        ("scene", {"scene": (0.10, 0.80), "centre": (0.10, 0.86), "model": (0.1, 0.84)}, "centre"),
        ("scene", {"scene": (0.10, 0.80), "centre": (0.10, 0.86), "model": (0.1, 0.90)}, "model"),
        ("scene", {"scene": (0.10, 0.80), "centre": (0.10, 0.84), "model": (0.1, 0.84)}, "scene"),
        ("scene", {"scene": (0.10, 0.80), "centre": (0.41, 0.95), "model": (0.39, 0.9)}, "model"),
        ("model", {"scene": (0.10, 0.90), "centre": (0.10, 0.80), "model": (0.1, 0.82)}, "scene"),
        ("model", {"scene": (0.10, 0.85), "centre": (0.10, 0.80), "model": (0.1, 0.82)}, "model"),
    ],
)
def test_the_steadiest_statistics_are_chosen_if_they_gain_enough(
    place, tmp_path, quick, monkeypatch, own, looks, chosen
):
    shutil.copytree(place / "m", tmp_path / "m")
    replace(Card.load(place / "m"), normalization=own).save(tmp_path / "m")
    (tmp_path / "three.toml").write_text(THREE + STAGE + ROUND)
    monkeypatch.setattr(rounds, "under_other_light", lambda teacher, *a: looks[teacher.card.normalization])
    monkeypatch.setattr(loop, "nothing_to_learn", lambda *a: ["enough was seen"])
    reports = []
    monkeypatch.setattr(loop, "write_report", lambda report, out: reports.append(report) or out / "report.html")
    command = ["--model", tmp_path / "m", "--method", tmp_path / "three.toml"]
    found = done(place, tmp_path / "a", *command, "--truth", "hill/labels.tif")
    card = Card.load(tmp_path / "a")
    assert found["normalization"] == card.normalization == chosen
    assert card.adapted is (chosen != own)
    assert ("standardized by" in found["verdict"]) is (chosen != own)
    assert reports[0].normalization == {name: consistency for name, (_, consistency) in looks.items()}
    assert weights(tmp_path / "a") == weights(place / "m")
    same = reports[0].figures_before == reports[0].rounds[0].figures
    assert same is (chosen == own)
    if (own, chosen) == ("scene", "centre"):  # before is what the given model says, not with other statistics
        paths = tmp_path / "a.gpkg", "--prob", tmp_path / "a.tif"
        run_in(place, "hill/rgb.tif", "--model", tmp_path / "m", "--dtype", "fp32", "--overlap", 0.25, "--out", *paths)
        asked = json.loads(run_in(place, "evaluate", tmp_path / "a.tif", "hill/labels.tif", "--json").stdout)
        assert found["before"]["f1"] == pytest.approx(asked["f1"], abs=1e-4)


@pytest.mark.parametrize("way", ["centre", "blend"])
def test_statistics_of_the_scene_and_of_the_model_are_mixed(place, tmp_path, way):
    shutil.copytree(place / "m", tmp_path / "m")
    card = Card.load(place / "m")
    center, scale = {"centre": 9000.0, "blend": 900.0}[way], (75.0, 150.0, 300.0)
    training = Normalizer(BANDS, (center,) * 3, scale, "asinh")
    replace(card, statistics=training.to_dict(), normalization=way).save(tmp_path / "m")
    with rasterio.open(place / "hill" / "rgb.tif") as file:
        values, valid = file.read().astype(np.float32), file.dataset_mask() > 0
    own = fit([(values, valid)], BANDS, "asinh")
    by_hand = {
        "centre": replace(own, scale=scale),
        "blend": replace(
            own,
            center=tuple(round(0.85 * c + 0.15 * center, 3) for c in own.center),
            scale=tuple(round(0.85 * s + 0.15 * t, 3) for s, t in zip(own.scale, scale, strict=True)),
        ),
    }
    by_hand[way].save(tmp_path / "hand.json")
    found = {}
    for name, normalize in (
        ("card", []),
        ("option", ["--normalize", way]),
        ("hand", ["--normalize", tmp_path / "hand.json"]),
        ("scene", ["--normalize", "scene"]),
    ):
        paths = [tmp_path / f"{name}.gpkg", "--prob", tmp_path / f"{name}.tif"]
        mapped = run_in(place, "hill/rgb.tif", "--model", tmp_path / "m", *normalize, "--out", *paths)
        assert mapped.exit_code == 0, mapped.output
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            found[name] = np.nan_to_num(file.read(1))
    assert np.array_equal(found["card"], found["option"])
    assert np.allclose(found["card"], found["hand"], atol=1e-4)
    assert not np.allclose(found["card"], found["scene"], atol=0.01)


RESUMED = STAGE + '[[rounds]]\nselect = { method = "certain", passes = 3 }\n' + ROUND
SCENES = ("hill/rgb.tif", "dell/rgb.tif")


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """An adaptation in one go."""
    (place / "resumed.toml").write_text(RESUMED)
    folder = tmp_path_factory.mktemp("whole") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_report", lambda report, out: out / "report.html")
        done(place, folder, "--method", "resumed.toml", scenes=SCENES)
    return folder


def interrupt(monkeypatch, where, name, at):
    """Raises KeyboardInterrupt in the call that ``at`` is true for."""
    function, state = getattr(where, name), {"on": True}

    def call(*arguments, **named):
        if state["on"] and at(*arguments):
            state["on"] = False
            raise KeyboardInterrupt
        return function(*arguments, **named)

    monkeypatch.setattr(where, name, call)


POINTS = {
    "copying": (loop, "copy_target", lambda target, *a: target.name == "dell"),
    "labelling": (
        rounds,
        "answer",
        lambda target, image, path, *a: path.parts[-2:] == ("doubts", "dell.tif"),
    ),
    "training": (trainer, "_step", lambda options, run, sampler: options.out.name == "round-2" and run.step == 1),
    "looking": (rounds, "answer", lambda target, image, path, *a: "round-1" in path.parts and target.name == "dell"),
    "tidying": (loop, "_tidy", lambda *a: True),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_goes_on_to_the_same_model(place, whole, tmp_path, quick, monkeypatch, point):
    interrupt(monkeypatch, *POINTS[point])
    if point == "training":
        monkeypatch.setattr(rounds, "VALIDATE", 0.0)  # a checkpoint after every step
    out, command = tmp_path / "a", ["--method", "resumed.toml"]
    killed = adapt(place, out, *command, scenes=SCENES)
    assert killed.exit_code == 130, killed.output
    refused = adapt(place, out, *command, scenes=SCENES)
    assert refused.exit_code == 2
    assert "not empty" in refused.output or "--resume" in refused.output
    refused = adapt(place, out, *command, "--resume", "--seed", 2, "--steps", 3, scenes=SCENES)
    assert refused.exit_code == 2
    assert "other settings (steps, seed)" in refused.output
    refused = adapt(place, out, *command, "--resume", "--device", "cuda:7", scenes=SCENES)
    assert refused.exit_code == (0 if point == "tidying" else 2)
    assert (out / "adapt.json").is_file()
    if point == "training":
        assert (out / "round-2" / "checkpoint.pt").is_file()
        before = (out / "round-1" / "tiny.safetensors").stat().st_mtime_ns
    done(place, out, *command, "--resume", scenes=SCENES)
    if point == "training":
        assert (out / "round-1" / "tiny.safetensors").stat().st_mtime_ns == before
    assert weights(out) == weights(whole)
    assert (out / "card.json").read_text() == (whole / "card.json").read_text()
    assert not (out / "targets").exists()


def test_a_run_that_is_done_says_so_again(place, tmp_path, quick, monkeypatch):
    first = done(place, tmp_path / "a", "--truth", "hill/labels.tif")
    before = (tmp_path / "a" / "card.json").read_bytes(), weights(tmp_path / "a")
    monkeypatch.setattr(rounds, "train", lambda *a: pytest.fail("it trained"))
    assert done(place, tmp_path / "a", "--resume", "--truth", "hill/labels.tif") == first
    assert ((tmp_path / "a" / "card.json").read_bytes(), weights(tmp_path / "a")) == before
    assert not (tmp_path / "a" / "targets").exists()
    assert adapt(place, tmp_path / "a").exit_code == 2


REFUSED = {
    "method": (["--method", "progresive"], "did you mean 'progressive'?"),
    "no rounds": (["--method", "flat.toml"], "no rounds"),
    "bad field": (["--method", "field.toml"], "passes"),
    "truths": (["--truth", "hill/labels.tif", "--truth", "hill/labels.tif"], "1 scenes and 2 --truth"),
    "truth missing": (["--truth", "none.tif"], "There is no file 'none.tif'"),
    "truth elsewhere": (["--truth", "away.gpkg"], "Nothing to compare"),
    "bands": (["--bands", "B4,B3,B8"], "B2"),
    "model": (["--model", "none"], "Unknown model 'none'"),
    "weights": (["--model", "broken"], "tiny.safetensors are missing"),
    "source": (["--source", "none"], "none"),
    "labels elsewhere": (["--labels", "away.gpkg"], "do not overlap the scenes"),
    "aoi elsewhere": (["--aoi", "away.gpkg"], "does not overlap"),
    "network": (["--arch", "unet-tinny"], "unknown network"),
    "device": (["--device", "cuda:7"], "cuda"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(place, tmp_path, quick, case):
    (place / "flat.toml").write_text(STAGE)
    (place / "field.toml").write_text(STAGE + ROUND.replace("share", "passes"))
    cells(place / "away.gpkg", [(9000, 9000, 9010, 9010)])
    if case == "weights" and not (place / "broken").exists():
        (place / "broken").mkdir()
        shutil.copy(place / "m" / "card.json", place / "broken")
    options, message = REFUSED[case]
    found = adapt(place, tmp_path / "a", *options)
    assert found.exit_code == 2, found.output
    assert message in found.output
    assert found.output.count("error:") == 1
    assert "Traceback" not in found.output
    assert not (tmp_path / "a").exists()


def test_a_used_place_is_refused_and_an_empty_folder_is_left_empty(place, tmp_path, quick):
    (tmp_path / "file").write_text("mine")
    found = adapt(place, tmp_path / "file")
    assert (found.exit_code, "is a file" in found.output) == (2, True)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for more in ([], ["--resume"]):
        found = adapt(place, tmp_path / "full", *more)
        assert (found.exit_code, "not empty" in found.output) == (2, True)
    (tmp_path / "empty").mkdir()
    assert adapt(place, tmp_path / "empty", "--labels", "hill/rgb.tif").exit_code == 2
    assert not any((tmp_path / "empty").iterdir())


def test_patience_withholds_rows_and_ends_early(place, tmp_path, quick, monkeypatch):
    (tmp_path / "patient.toml").write_text("patience = 2\n" + STAGE + ROUND)
    monkeypatch.setattr(rounds, "VALIDATE", 0.0)  # looks after every step
    labels = cells(tmp_path / "l.gpkg", [(20, 20, 40, 40), (140, 60, 150, 80)])
    seen = []
    train = rounds.train
    monkeypatch.setattr(rounds, "train", lambda o, p, a, w: seen.append((a, w)) or train(o, p, a, w))
    monkeypatch.setattr(trainer, "_scores", best_at_first(trainer._scores))
    done(place, tmp_path / "a", "--method", tmp_path / "patient.toml", "--steps", 30, "--labels", labels)
    ((areas, withheld),) = seen
    end = 160 - int(0.15 * 160)
    assert [a.name for a in areas] == ["hill", "hill-given"]
    for area in areas:
        assert (area.truth[:end] < 2).any()
        assert (area.truth[end:] == 255).all()
    (watched,) = withheld
    assert watched.truth.shape == (160 - end, 150)
    assert (watched.truth < 2).any()
    log = (tmp_path / "a" / "round-1" / "log.csv").read_text().splitlines()
    assert len(log) == 1 + 3  # the best one, and two without a better one


def best_at_first(scores):
    """Scores that only fall."""
    count = iter(range(100))

    def found(options, run, split):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "score", lambda *a: {"f1": 0.9 - 0.1 * next(count), "threshold": 0.5})
            return scores(options, run, split)

    return found


def test_targets_are_learnt_from_on_disk_and_all_rows_without_patience(place, tmp_path, quick, monkeypatch):
    seen = []
    train = rounds.train
    monkeypatch.setattr(rounds, "train", lambda o, p, a, w: seen.append((o, a, w)) or train(o, p, a, w))
    done(place, tmp_path / "a", "--source", "valley", scenes=SCENES)
    ((options, areas, withheld),) = seen
    assert sorted((a.name, a.domain) for a in areas) == [("dell", 1), ("hill", 1)]
    assert not any(isinstance(x, np.ndarray) for a in areas for x in (a.image, a.truth, a.valid))
    hill = next(a for a in areas if a.name == "hill")
    assert hill.image.shape == (3, 160, 150)
    assert (hill.truth[150:] < 2).any()
    assert withheld == []
    assert options.data.scenes == ("valley",)
