"""Recipes: those of the package can be used, and a user's own are checked field by field."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from l4s_geo.cli import main
from l4s_geo.errors import InputError
from l4s_geo.models import zoo
from l4s_geo.train import recipe as recipes
from l4s_geo.train.colour import spectral_channels
from l4s_geo.train.pseudo import Certain

GOOD = """
title = "mine"
source = "here"
networks = ["unet-resnet10t"]
[[stages]]
steps = 10
loss = { cross-entropy = 1 }
"""

ROUND = """
[[rounds]]
select = { method = "confident", level = 0.7 }
"""


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_of_the_package_loads_and_its_networks_fit_its_bands(name):
    recipe = recipes.load(name)
    assert recipe.source
    assert recipe.title
    for network in recipe.networks:
        zoo.preset(network, recipe.bands)
    assert spectral_channels(recipe.bands).any()


def test_stages_share_the_budget_by_their_steps():
    recipe = recipes.parse(
        {"title": "t", "source": "s", "networks": ["unet"], "stages": [{"steps": 10}, {"steps": 30}]}, "test"
    )
    assert recipe.steps == 40
    assert recipe.stage_at(0) == (0, 0.0)
    assert recipe.stage_at(0.125) == (0, 0.5)
    assert recipe.stage_at(0.25) == (1, 0.0)
    assert recipe.stage_at(1.0) == (1, 1.0)


def test_the_winners_teach_themselves_as_they_published():
    kingdrone, seek, tanmlh = (recipes.load(n) for n in ("kingdrone", "seek", "tanmlh"))
    assert {(r.select.method, r.select.level, r.warm) for r in kingdrone.rounds} == {("confident", 0.7, True)}
    assert kingdrone.domain_norm
    assert [(r.select.method, r.select.share, r.warm) for r in seek.rounds] == [("top-share", 1.0, True)]
    (taught,) = tanmlh.rounds
    assert (tanmlh.networks, taught.networks) == (("hrnet-w18-x2",), ("deeplabv3plus-resnext50-x2",))
    assert taught.select == Certain(background=0.9, landslide=0.7, passes=10, dropout=0.3)
    assert not taught.warm
    assert tanmlh.mixing.mix_up > 0


def test_other_networks_also_learn_in_the_rounds():
    changed = recipes.changed(recipes.load("tanmlh"), networks=("unet-resnet18",))
    assert [(r.networks, r.teachers) for r in changed.rounds] == [((), ())]


def test_a_recipe_of_ones_own_is_read_from_a_file(tmp_path):
    recipe = recipes.load(written(tmp_path, GOOD))
    assert recipe.title == "mine"
    assert recipe.stages[0].steps == 10
    changed = recipes.changed(recipe, networks=("unet",), bands=("B4",), batch_size=4, learning_rate=0.5)
    assert changed == recipes.Recipe(
        "mine", "here", ("unet",), (recipes.Stage(10, {"cross-entropy": 1}, learning_rate=0.5),), bands=("B4",),
        batch_size=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("steps", "stepps"), r"mine\.toml, stage 1 has no field 'stepps' \(did you mean 'steps'\?\)"),
        (GOOD.replace("networks", "network"), r"no field 'network' \(did you mean 'networks'\?\)"),
        (GOOD.replace("steps = 10", 'steps = "many"'), "stage 1: steps must be a whole number, not 'many'"),
        (GOOD.replace('source = "here"', ""), "lacks 'source'"),
        (GOOD.replace("cross-entropy", "cross-entropie"), "stage 1: There is no loss called 'cross-entropie'"),
        (GOOD.replace("resnet10t", "resnet10"), "unknown network 'unet-resnet10' .did you mean 'unet-resnet10t'"),
        (GOOD.replace("cross-entropy = 1", "image-level = 1"), "needs networks with an output for whole images"),
        (GOOD + 'schedule = "cosin"', "schedule cannot be 'cosin' .did you mean 'cosine'"),
        (GOOD + "learning_rate = -1", "must be above 0"),
        (GOOD + "[mixing]\ncutmix = 2", r"\[mixing\]: 'cutmix' must be from 0 to 1"),
        (GOOD + "[augmentation]\nblur = 2", r"\[augmentation\] has no field 'blur'"),
        ('normalization = "mars"\n' + GOOD, "normalization cannot be 'mars'"),
        ("batch_size = 1\n" + GOOD, "batch_size cannot be 1"),
        ("pretrained = 1\n" + GOOD, "pretrained must be true or false"),
        (GOOD.partition("[[")[0], "needs at least one stage"),
        ("title = ", "cannot be read"),
        (GOOD + ROUND.replace("confident", "sure"), "round 1: method of select cannot be 'sure'"),
        (GOOD + ROUND.replace("level", "levle"), r"round 1, select has no field 'levle' .did you mean 'level'"),
        (GOOD + ROUND.replace("0.7", "0.2"), "round 1, select: 'level' must be over 0.5"),
        (GOOD + ROUND.replace("select", "selects"), "round 1 must say which pixels get a label"),
        (GOOD + ROUND + "lenght = 1", "round 1 has no field 'lenght' .did you mean 'length'"),
        (GOOD + ROUND + "length = 0", "round 1: length must be above 0"),
        (GOOD + ROUND + 'networks = ["unet-x"]', "unknown network 'unet-x'"),
        (GOOD + ROUND + 'networks = ["unet"]', "round 1: unet cannot be among its warm networks"),
        (GOOD + ROUND + 'teachers = ["unet"]', "round 1: unet cannot be among its teachers"),
        ("rounds = 3\n" + GOOD, "write every round as a table"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        recipes.load(written(tmp_path, text))


def test_an_unknown_recipe_ends_the_command_with_what_there_is(tmp_path):
    found = CliRunner().invoke(main, ["train", "--recipe", "baselin", "--data", "x", "--out", str(tmp_path / "m")])
    assert found.exit_code == 2
    assert "did you mean 'baseline'" in found.output
    assert not (tmp_path / "m").exists()


def test_recipes_are_listed():
    found = CliRunner().invoke(main, ["models", "recipes", "--json"])
    assert set(json.loads(found.stdout)["recipes"]) == set(recipes.names()) >= {"bundled", "kingdrone", "seek"}
