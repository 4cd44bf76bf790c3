"""Self-training: pseudo-labels as labelled scenes, rounds that learn from them, and going on after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from torch import nn

from l4s_geo.cli import main
from l4s_geo.data.crops import CropSampler, crops_of_step, load_area
from l4s_geo.data.synth_l4s import write_synthetic
from l4s_geo.errors import InputError, OutputError
from l4s_geo.models import domain_norm, registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.progress import Silent
from l4s_geo.scene import open_scene
from l4s_geo.train import recipe as recipes
from l4s_geo.train import trainer
from l4s_geo.train.rounds import train_rounds
from l4s_geo.train.run import TrainOptions
from l4s_geo.train.split import DataOptions
from l4s_geo.train.targets import copy_target, find_targets
from l4s_geo.train.teacher import DropoutEnsemble
from tests.test_train import BANDS, write_labelled

RECIPE = """
title = "tiny"
source = "tests"
networks = ["tiny"]
batch_size = 4
[[stages]]
steps = 3
learning_rate = 5e-3
"""
ROUND = """
[[rounds]]
select = { method = "top-share", share = 0.8 }
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Networks small enough to train in seconds."""
    args = {"encoder_name": "tu-mobilenetv3_small_050", "decoder_channels": [16, 8], "encoder_depth": 2}
    for name in ("tiny", "other"):
        monkeypatch.setitem(zoo.PRESETS, name, ("Unet", args))


@pytest.fixture
def scenes(tmp_path):
    """A labelled scene and one to adapt to."""
    write_labelled(tmp_path / "valley")
    write_labelled(tmp_path / "hill", h=200, w=140, seed=1)
    return tmp_path


def options(scenes, text=RECIPE + ROUND, **changes):
    path = scenes / "recipe.toml"
    path.write_text(text)
    data = DataOptions((str(scenes / "valley"),))
    base = TrainOptions(
        data, scenes / "m", "m", recipes.load(str(path)), threads=1, validate_minutes=60, dtype="fp32", patch=32
    )
    return replace(base, **changes)


def labels_of(folder):
    with rasterio.open(folder / "labels.tif") as file:
        return file.read(1)


def test_a_round_learns_from_labels_on_disk_and_its_model_maps(scenes):
    (scenes / "mine.toml").write_text(RECIPE.replace("steps = 3", "steps = 30") + ROUND)
    command = ["train", "--recipe", "mine.toml", "--data", "valley", "--validate", "rows:1-1", "--threads", "1"]
    found = run_in(scenes, [*command, "--unlabelled", "hill/rgb.tif", "--out", "m"])
    assert found.exit_code == 0, found.output
    out = scenes / "m"
    card = Card.load(out)
    (entry,) = card.training["rounds"]
    assert entry["select"] == {"method": "top-share", "share": 0.8, "balanced": True}
    assert (entry["teachers"], entry["networks"]) == (["tiny"], ["tiny"])
    assert card.networks[0].sha256 == Card.load(out / "round-1").networks[0].sha256
    assert card.networks[0].sha256 != Card.load(out / "round-0").networks[0].sha256
    # the pseudo-labels are a labelled scene of all rows, on the pixels of the target
    area = load_area(str(out / "round-1" / "pseudo" / "hill"), BANDS, compression="asinh", resolution=10)
    truth = load_area(str(scenes / "hill"), BANDS, compression="asinh", resolution=10)
    assert np.array_equal(area.image, truth.image)
    assert np.array_equal(area.valid, truth.valid)
    counts = entry["selected"]["hill"]
    assert [int((area.truth == c).sum()) for c in (0, 1)] == [counts["background"], counts["landslide"]]
    assert sum(counts.values()) == truth.valid.sum()
    known = (area.truth < 2) & (truth.truth < 2)
    assert (area.truth == truth.truth)[known].mean() > 0.95
    assert not list(out.rglob("answer.tif"))
    mapped = run_in(scenes, ["hill/rgb.tif", "--model", "m", "--out", "hill.gpkg", "--json"])
    assert mapped.exit_code == 0, mapped.output
    assert json.loads(mapped.stdout)["landslides"] > 0


def run_in(folder: Path, arguments: list[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(main, arguments)


def test_a_killed_run_goes_on_in_the_round_where_it_was(scenes, monkeypatch):
    whole = train_rounds(options(scenes, out=scenes / "whole"), [str(scenes / "hill/rgb.tif")], Silent())
    step, labelled = trainer._step, []

    def killed(o, run, sampler):
        if o.out.name == "round-1" and run.step == 1:
            raise KeyboardInterrupt
        return step(o, run, sampler)

    monkeypatch.setattr(trainer, "_step", killed)
    wanted = options(scenes)
    with pytest.raises(KeyboardInterrupt):
        train_rounds(wanted, [str(scenes / "hill/rgb.tif")], Silent())
    monkeypatch.setattr(trainer, "_step", step)
    monkeypatch.setattr("l4s_geo.train.teacher.predict", lambda *a, **k: labelled.append(a))
    log = scenes / "m" / "round-0" / "log.csv"
    before = log.stat().st_mtime_ns
    with pytest.raises(OutputError, match="--resume"):
        train_rounds(wanted, [str(scenes / "hill/rgb.tif")], Silent())
    card = train_rounds(replace(wanted, resume=True), [str(scenes / "hill/rgb.tif")], Silent())
    assert not labelled
    assert log.stat().st_mtime_ns == before
    assert card.networks[0].sha256 == whole.networks[0].sha256
    assert card.training["rounds"] == whole.training["rounds"]


def test_without_unlabelled_scenes_only_the_supervised_training_is_done(scenes):
    (scenes / "mine.toml").write_text(RECIPE + ROUND)
    found = run_in(scenes, ["train", "--recipe", "mine.toml", "--data", "valley", "--out", "m"])
    assert found.exit_code == 0, found.output
    assert "only the supervised training" in found.output
    assert not list((scenes / "m").glob("round-*"))
    assert "rounds" not in Card.load(scenes / "m").training


@pytest.mark.parametrize(
    ("text", "unlabelled", "message"),
    [
        (RECIPE, "hill/rgb.tif", "does not learn from unlabelled scenes"),
        (RECIPE + ROUND, "hill/rgb.tif@metres", "There is no file"),
        (RECIPE + ROUND, "nothing.tif", "There is no file 'nothing.tif'"),
        ('bands = ["B4", "B8"]\n' + RECIPE + ROUND, "hill/rgb.tif", "also needs B8"),
        (RECIPE + ROUND, "chips", "holds chips"),
    ],
)
def test_targets_that_cannot_be_used_are_refused_before_any_training(scenes, text, unlabelled, message):
    (scenes / "mine.toml").write_text(text)
    (scenes / "chips" / "images").mkdir(parents=True)
    command = ["train", "--recipe", "mine.toml", "--data", "valley", "--out", "m", "--unlabelled", unlabelled]
    found = run_in(scenes, command)
    assert found.exit_code == 2
    assert message in found.output
    assert not (scenes / "m").exists()


def test_another_network_is_taught_by_uncertainty(scenes):
    text = (
        RECIPE
        + """
[[rounds]]
networks = ["other"]
teachers = ["tiny"]
warm = false
select = { method = "certain", passes = 3 }
"""
    )
    card = train_rounds(options(scenes, text), [str(scenes / "hill/rgb.tif")], Silent())
    assert [n.name for n in card.networks] == ["other"]
    (entry,) = card.training["rounds"]
    counts = entry["selected"]["hill"]
    assert (entry["teachers"], entry["networks"]) == (["tiny"], ["other"])
    assert counts["not used"] > 0
    assert 0.69 < (counts["background"] + counts["landslide"]) / sum(counts.values()) < 0.92


def test_dropout_gives_uncertainty_that_a_seed_repeats():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 1, 1)
            nn.init.ones_(self.first.weight)
            nn.init.zeros_(self.first.bias)

        def forward(self, x):
            return self.first(x)

    ensemble = DropoutEnsemble([Constant()], torch.device("cpu"), torch.float32, passes=200, rate=0.3)
    x = np.ones((1, 1, 8, 8), np.float32)
    torch.manual_seed(3)
    first = ensemble(x)
    torch.manual_seed(3)
    assert np.array_equal(ensemble(x), first)
    # a logit of 1 becomes 0 or 1 / 0.7: variance 0.7 * 0.3 / 0.7**2
    assert first[0, 1].mean() == pytest.approx(0.3 / 0.7, rel=0.05)
    assert first[0, 0].mean() == pytest.approx(0.3 * 0.5 + 0.7 / (1 + np.exp(-1 / 0.7)), rel=0.05)


def test_dropout_follows_the_convolution_that_sees_the_bands():
    recipe = recipes.load("tanmlh")
    (network,) = recipe.networks
    net = zoo.build(*zoo.preset(network, recipe.bands), len(recipe.bands))
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == len(recipe.bands)


def test_the_budget_is_divided_by_length(scenes, monkeypatch):
    text = RECIPE + ROUND + "length = 2.0\n" + ROUND
    seen = []

    def noted(part, progress, targets):
        seen.append((part.out.name, part.steps, part.minutes, part.init and part.init.name, len(targets)))
        part = replace(part, steps=1, minutes=None, init=None)
        return trainer.train(part, progress, targets)

    monkeypatch.setattr("l4s_geo.train.rounds.train", noted)
    train_rounds(options(scenes, text), [str(scenes / "hill/rgb.tif")], Silent())
    train_rounds(options(scenes, text, minutes=8.0, out=scenes / "n"), [str(scenes / "hill/rgb.tif")], Silent())
    assert seen == [
        ("round-0", None, None, None, 0),
        ("round-1", 6, None, "round-0", 1),
        ("round-2", 3, None, "round-1", 1),
        ("round-0", None, 2.0, None, 0),
        ("round-1", None, 4.0, "round-0", 1),
        ("round-2", None, 2.0, "round-1", 1),
    ]


def test_holdouts_by_rows_do_not_reach_into_targets(scenes, monkeypatch):
    samplers = []
    monkeypatch.setattr(trainer, "CropSampler", lambda areas, *a: samplers.append(areas) or CropSampler(areas, *a))
    wanted = options(scenes)
    wanted = replace(wanted, data=replace(wanted.data, holdout=("rows:1-1",), validate=("valley:100-128",)))
    train_rounds(wanted, [str(scenes / "hill/rgb.tif")], Silent())
    valley, hill = samplers[1]
    assert not valley.valid[100:].any()
    assert hill.valid[128:].any()
    assert (hill.truth[128:] < 2).any()


def test_domains_have_their_own_statistics_and_the_target_s_are_kept(scenes, monkeypatch):
    step, seen = trainer._step, []

    def watched(o, run, sampler):
        crops = crops_of_step(sampler, run.step, 8, 1)
        seen.append({c.domain for c in crops})
        found = step(o, run, sampler)
        layers = [m for m in run.net.modules() if isinstance(m, domain_norm.DomainNorm)]
        assert bool(layers) == (o.out.name == "round-1")
        return found

    monkeypatch.setattr(trainer, "_step", watched)
    text = "domain_norm = true\n" + RECIPE.replace("steps = 3", "steps = 8") + ROUND
    card = train_rounds(options(scenes, text), [str(scenes / "hill/rgb.tif")], Silent())
    assert all(len(domains) == 1 for domains in seen)
    assert set.union(*seen[:8]) == {0}
    assert set.union(*seen[8:]) == {0, 1}
    net = registry.load_network(registry.find(str(scenes / "m")), card.networks[0])
    assert not any(isinstance(m, domain_norm.DomainNorm) for m in net.modules())


def test_patches_are_one_target_and_stay_apart(tmp_path):
    write_synthetic(tmp_path / "l4s", 10, "traindata", 1, Silent())
    (target,) = find_targets([str(tmp_path / "l4s")], BANDS, 10)
    image = copy_target(target, tmp_path / "copy", BANDS, 10)
    with open_scene(image) as scene:
        pixels, valid = scene.read(scene.grid.window(), BANDS)
    assert valid.shape == (2 * 2 * 128, 128)
    blocks = valid.reshape(4, 128, 128)
    assert blocks[::2].all()
    assert not blocks[1::2].any()
    assert pixels[:, :128].std() > 0
    text = RECIPE + ROUND
    write_labelled(tmp_path / "valley")
    card = train_rounds(options(tmp_path, text), [str(tmp_path / "l4s")], Silent())
    counts = card.training["rounds"][0]["selected"]["l4s"]
    assert sum(counts.values()) == 2 * 128**2
    found = labels_of(tmp_path / "m" / "round-1" / "pseudo" / "l4s").reshape(4, 128, 128)
    assert (found[1::2] == 255).all()
    assert (found[::2] < 2).any()


def test_targets_of_one_name_stay_apart(scenes):
    path = str(scenes / "hill" / "rgb.tif")
    names = [t.name for t in find_targets([path, path, f"{scenes / 'valley'}@dn"], BANDS, 10)]
    assert len(set(names)) == 3
    assert names[0] == "hill"


def test_a_scene_in_other_units_is_copied_as_digital_numbers(scenes, raster):
    values = np.random.default_rng(0).uniform(0.01, 0.4, (3, 40, 50)).astype(np.float32)
    path = raster("far.tif", values, names=BANDS)
    with pytest.raises(InputError, match="--units reflectance"):
        find_targets([str(path)], BANDS, 10)
    (target,) = find_targets([f"{path}@reflectance"], BANDS, 10)
    with rasterio.open(copy_target(target, scenes / "copy", BANDS, 10)) as file:
        assert file.descriptions == BANDS
        assert np.allclose(file.read(), values * 10000, atol=0.51)
