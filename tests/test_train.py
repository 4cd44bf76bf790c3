"""Training: what it learns from, that it learns, and that it goes on after a kill."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from rasterio.transform import from_origin

from l4s_geo.data import l4s
from l4s_geo.data.crops import TARGET_SHARE, CropSampler, crops_of_step, cut, load_area
from l4s_geo.data.patches import UNKNOWN
from l4s_geo.data.synth_l4s import write_synthetic
from l4s_geo.errors import InputError, ModelError
from l4s_geo.models import registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.progress import Silent
from l4s_geo.train import recipe as recipes
from l4s_geo.train.augment import Augmentation, augment, geometry, paste, resharpen
from l4s_geo.train.join import join
from l4s_geo.train.optimize import optimizer_of, rate_factor
from l4s_geo.train.recipe import Stage
from l4s_geo.train.run import TrainOptions
from l4s_geo.train.split import DataOptions, load_split, parse_block
from l4s_geo.train.trainer import train

BANDS = ("B4", "B3", "B2")
PLAIN = Augmentation(
    affine_share=0, gain=0, gain_shift=0, band_gain=0, offset=0, band_offset=0, saturation=0, sharpness=0, paste_share=0
)


def write_labelled(folder, h=256, w=160, seed=0):
    """Dark ground with bright square landslides; the lower right corner is nodata, a column is unknown."""
    rng = np.random.default_rng(seed)
    image = rng.normal(500, 30, (3, h, w))
    truth = np.zeros((h, w), np.uint8)
    for r, c in rng.integers(0, (h - 12, w - 12), (40, 2)):
        truth[r : r + 12, c : c + 12] = 1
    image[:, truth == 1] += 400
    image[:, -20:, -20:] = 0
    truth[:, :4] = UNKNOWN
    folder.mkdir()
    place = {"crs": "EPSG:32651", "transform": from_origin(3e5, 2.6e6, 10, 10), "width": w, "height": h}
    with rasterio.open(folder / "rgb.tif", "w", driver="GTiff", count=3, dtype="uint16", nodata=0, **place) as f:
        f.write(image.astype(np.uint16))
        f.descriptions = BANDS
    with rasterio.open(folder / "labels.tif", "w", driver="GTiff", count=1, dtype="uint8", nodata=255, **place) as f:
        f.write(truth, 1)
    return folder


@pytest.fixture
def scene(tmp_path):
    return write_labelled(tmp_path / "valley")


@pytest.fixture
def tiny(monkeypatch):
    """A network small enough to train in seconds."""
    args = {"encoder_name": "tu-mobilenetv3_small_050", "decoder_channels": [16, 8], "encoder_depth": 2}
    monkeypatch.setitem(zoo.PRESETS, "tiny", ("Unet", args))


def options(scene, out, **changes):
    data = DataOptions((str(scene),), validate=("valley:192-256",))
    recipe = recipes.parse(
        {"title": "tiny", "source": "tests", "networks": ["tiny"], "batch_size": 4, "stages": [{"steps": 60}]}, "test"
    )
    recipe = recipes.changed(recipe, learning_rate=changes.pop("learning_rate", None))
    base = TrainOptions(data, out, "tiny-model", recipe, threads=1, validate_minutes=60, dtype="fp32")
    return replace(base, **changes)


def test_held_out_rows_are_never_seen(scene):
    data = DataOptions((str(scene),), holdout=("valley:0-64",), validate=("valley:192-256",))
    split = load_split(data, seed=0)
    (area,) = split.train
    for part in (np.s_[:64], np.s_[192:]):
        assert (area.truth[part] == UNKNOWN).all()
        assert not area.valid[part].any()
        assert not area.image[:, part].any()
    assert area.labelled > 0
    assert split.validation[0].truth.shape == (64, 160)
    whole = load_area(str(scene), BANDS, compression="asinh", resolution=10)
    assert area.normalizer.pixels < whole.normalizer.pixels


@pytest.mark.parametrize("block", ["valley", "valley:9-3", "hill:0-3"])
def test_bad_blocks_are_refused(scene, block):
    with pytest.raises(InputError):
        load_split(DataOptions((str(scene),), holdout=(block,)), seed=0)


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"no raster"])
def test_damaged_labels_are_refused(scene, damage):
    labels = scene / "labels.tif"
    rasterio.shutil.copy(labels, scene / "cog.tif", driver="COG")  # its directory comes first, and is all there
    labels.write_bytes(damage((scene / "cog.tif").read_bytes()))
    with pytest.raises(InputError, match=r"labels\.tif cannot be read .* complete"):
        load_area(str(scene), BANDS, compression="asinh", resolution=10.0)


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"labels\.tif"):
        load_split(DataOptions((str(tmp_path),)), seed=0)


def test_crops_depend_on_seed_and_step_only(scene):
    area = load_area(str(scene), BANDS, compression="asinh", resolution=10)
    sampler = CropSampler([area], [], 0.0, 64)
    first, again, other = (crops_of_step(sampler, s, 3, seed=5) for s in (7, 7, 8))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.image, b.image) for a, b in zip(first, other, strict=True))


def test_targets_get_their_share_of_the_crops_however_small_they_are(scene):
    area = load_area(str(scene), BANDS, compression="asinh", resolution=10)
    small = replace(area.rows(0, 64), name="target", domain=1)
    seen_often = replace(small, name="given", weight=3.0)
    sampler = CropSampler([area, small, seen_often], [area], 0.2, 64)
    rng = np.random.default_rng(1)
    drawn = [sampler.draw(rng)[0].name for _ in range(4000)]
    shares = {name: drawn.count(name) / len(drawn) for name in ("target", "given")}
    assert shares["target"] == pytest.approx(TARGET_SHARE / 4, abs=0.03)
    assert shares["given"] == pytest.approx(TARGET_SHARE * 3 / 4, abs=0.03)
    assert CropSampler([small], [], 0.0, 64).weights.tolist() == [1.0]


def test_a_crop_over_the_border_is_unknown_there(scene):
    area = load_area(str(scene), BANDS, compression="asinh", resolution=10)
    crop = cut(area, -10, 150, 32)
    assert (crop.truth[:10] == UNKNOWN).all()
    assert (crop.truth[:, 10:] == UNKNOWN).all()
    assert not crop.valid[:10].any()
    assert np.array_equal(crop.truth[10:, :10], area.truth[:22, 150:])


def test_flips_and_turns_move_pixels_without_changing_them():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.integers(0, 2, (8, 32, 32)).astype(np.uint8))
    image = truth[:, None].float() * 3
    x, y, valid = geometry(
        image, truth, torch.ones(8, 32, 32, dtype=torch.bool), 16, PLAIN, torch.Generator().manual_seed(1)
    )
    assert valid.all()
    assert torch.allclose(x[:, 0], y.float() * 3, atol=1e-4)
    middle = truth[:, 8:24, 8:24].long()
    views = [torch.rot90(m, k, (1, 2)) for m in (middle, middle.flip(2)) for k in range(4)]
    assert all(any(torch.equal(y[i], v[i]) for v in views) for i in range(8))
    assert len({next(k for k, v in enumerate(views) if torch.equal(y[i], v[i])) for i in range(8)}) > 2


def test_scaling_brings_in_unknown_pixels_not_background():
    truth = torch.zeros(16, 20, 20, dtype=torch.uint8)
    how = Augmentation(affine_share=1, scale=0.5)
    x, y, valid = augment(
        torch.ones(16, 3, 20, 20), truth, torch.ones(16, 20, 20, dtype=torch.bool), 20, how, torch.tensor([True] * 3), 3
    )
    assert x.shape == (16, 3, 20, 20)
    assert set(y.unique().tolist()) == {0, UNKNOWN}
    assert torch.equal(y == UNKNOWN, ~valid)


def test_resharpening_blurs_or_sharpens_but_keeps_flat_ground():
    step = torch.zeros(3, 1, 8, 8)
    step[..., 4:] = 1
    blurred, same, sharpened = (x[0] for x in resharpen(step, torch.tensor([0.1, 0.0, -0.1])))
    assert torch.allclose(blurred, torch.tensor([0, 0, 0, 0.1, 0.9, 1, 1, 1]).expand(8, 8), atol=1e-6)
    assert torch.equal(same, step[1, 0])
    assert sharpened.min() == pytest.approx(-0.1)
    assert sharpened.max() == pytest.approx(1.1)
    assert torch.allclose(resharpen(torch.full((2, 3, 5, 5), 7.0), torch.tensor([0.2, -0.2])), torch.tensor(7.0))


def test_colour_changes_leave_terrain_alone():
    x, truth, valid = torch.rand(4, 3, 16, 16), torch.zeros(4, 16, 16), torch.ones(4, 16, 16, dtype=torch.bool)
    how = Augmentation(affine_share=0)
    still = replace(PLAIN, affine_share=0)
    spectral = torch.tensor([True, True, False])
    changed, _, _ = augment(x.clone(), truth.byte(), valid, 16, how, spectral, 5)
    plain, _, _ = augment(x.clone(), truth.byte(), valid, 16, still, spectral, 5)
    assert torch.equal(changed[:, 2], plain[:, 2])
    assert not torch.allclose(changed[:, :2], plain[:, :2], atol=0.01)


def test_pasted_landslides_bring_their_pixels_and_their_truth():
    x = torch.arange(3.0)[:, None, None, None].expand(3, 2, 16, 16)
    y = torch.zeros(3, 16, 16, dtype=torch.int64)
    y[0, 4:10, 4:10] = 1
    seen = torch.ones(3, 16, 16, dtype=torch.bool)
    y[2, :, :6], seen[2, :, :6] = UNKNOWN, False
    changed, truth = paste(x, y, seen, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(changed[0], x[0])
    assert torch.equal(truth[1], y[0])
    assert (changed[1, :, 5:9, 5:9] == 0).all()
    assert torch.equal(truth[2] == 1, (y[0] == 1) & seen[2])
    assert (truth[2, :, :6] == UNKNOWN).all()
    assert (changed[1, :, 12:] == 1).all()
    assert torch.equal(paste(x, y, seen, 0.0, torch.Generator())[1], y)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "poly"])
def test_learning_rate_warms_up_and_falls(schedule):
    stage = Stage(schedule=schedule)
    rates = [rate_factor(stage, s / 100) for s in range(101)]
    assert rates[0] < 0.1
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates.index(max(rates)) == 5
    assert rates[-1] <= 0.01
    assert sorted(rates[5:], reverse=True) == rates[5:]


def test_restarts_come_back_to_the_peak_after_cycles_that_double():
    stage = Stage(schedule="restarts", warm_up=0)
    rates = [rate_factor(stage, s / 700) for s in range(701)]
    peaks = [s for s in range(1, 700) if rates[s - 1] < rates[s] > rates[s + 1]]
    assert peaks == [100, 300]
    assert rates[0] == rates[100] == rates[300] == pytest.approx(1)
    assert rates[700] == pytest.approx(0)


def test_frozen_parts_do_not_learn(tiny):
    net = zoo.build(*zoo.preset("tiny"), 3)
    before = {k: v.clone() for k, v in net.named_parameters()}
    optimizer = optimizer_of(Stage(frozen=("encoder",)), net)
    net(torch.randn(2, 3, 64, 64)).mean().backward()
    optimizer.step()
    moved = {k for k, v in net.named_parameters() if not torch.equal(v, before[k])}
    assert moved
    assert not any(k.startswith("encoder.") for k in moved)
    optimizer_of(Stage(), net)
    assert all(p.requires_grad for p in net.parameters())


def test_training_learns_and_writes_a_model_that_loads(scene, tmp_path, tiny):
    card = train(options(scene, tmp_path / "m", learning_rate=5e-3), Silent())
    (figures,) = card.metrics.values()
    assert figures["balanced"]["f1"] > 0.8
    assert card.thresholds["recall"] <= card.thresholds["balanced"] <= card.thresholds["precision"]
    assert card.calibration["split"] == "valley:192-256"
    assert card.calibration["slope"] > 0
    model = registry.find(str(tmp_path / "m"))
    assert json.dumps(model.card.to_dict()) == json.dumps(card.to_dict())
    net = registry.load_network(model, card.networks[0])
    assert net(torch.zeros(1, 3, 128, 128)).shape == (1, 1, 128, 128)
    assert (tmp_path / "m" / "curve.png").stat().st_size > 1000
    assert not (tmp_path / "m" / "checkpoint.pt").exists()
    with (tmp_path / "m" / "log.csv").open() as f:
        assert [int(r["step"]) for r in csv.DictReader(f)] == [60]


def test_a_killed_run_resumes_to_the_same_weights(scene, tmp_path, tiny, monkeypatch):
    whole = train(options(scene, tmp_path / "whole", steps=6, validate_minutes=1e-9), Silent())
    from l4s_geo.train import trainer

    step = trainer._step

    def killed(o, run, sampler):
        if run.step == 4:
            raise KeyboardInterrupt
        return step(o, run, sampler)

    monkeypatch.setattr(trainer, "_step", killed)
    cut_short = options(scene, tmp_path / "cut", steps=6, validate_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(cut_short, Silent())
    monkeypatch.setattr(trainer, "_step", step)
    resumed = train(replace(cut_short, resume=True), Silent())
    assert resumed.networks[0].sha256 == whole.networks[0].sha256
    with (tmp_path / "cut" / "log.csv").open() as f:
        assert [int(r["step"]) for r in csv.DictReader(f)] == [1, 2, 3, 4, 5, 6]


def test_synthetic_scenes_come_with_and_without_landslides(scene):
    split = load_split(DataOptions((str(scene),), synthetic=2, synthetic_landslides=1), 3)
    assert [bool((a.truth == 1).any()) for a in split.negatives] == [False, False, True]


def test_regions_and_rows_of_patches_are_held_out(tmp_path):
    scenes = tuple(str(write_labelled(tmp_path / name, seed=i)) for i, name in enumerate(("north", "south")))
    split = load_split(DataOptions(scenes, validate=("region:south",)), 0)
    assert [a.name for a in split.train] == ["north"]
    assert [a.truth.shape for a in split.validation] == [(256, 160)]
    split = load_split(DataOptions(scenes, holdout=("rows:1-1",)), 0)
    assert [a.name for a in split.train] == ["north", "south"]
    for area in split.train:
        assert (area.truth[128:] == UNKNOWN).all()
        assert (area.truth[:128] != UNKNOWN).any()


@pytest.mark.parametrize("part", ["region:east", "rows:9-12", "south:900-1000"])
def test_what_is_not_there_cannot_be_held_out(tmp_path, part):
    scene = str(write_labelled(tmp_path / "south"))
    with pytest.raises(InputError, match="regions are south"):
        load_split(DataOptions((scene,), holdout=(part,)), 0)


@pytest.mark.parametrize("part", ["region:", "rows:4", "south:20-10", "south", ""])
def test_parts_that_cannot_be_read_are_refused(part):
    with pytest.raises(InputError, match="is written region:NAME"):
        parse_block(part)


def test_holding_out_everything_is_refused(scene):
    with pytest.raises(InputError, match="No labelled landslide is left"):
        load_split(DataOptions((str(scene),), holdout=("region:valley",)), 0)


def test_a_folder_of_patches_is_learnt_from(tmp_path, tiny):
    write_synthetic(tmp_path / "l4s", 6, "traindata", 1, Silent())
    data = DataOptions((str(tmp_path / "l4s"),), validate=("region:valley",))
    with pytest.raises(InputError, match="regions are l4s"):
        load_split(data, 0)
    split = load_split(replace(data, validate=()), 0)
    assert len(split.train) == 6
    assert len({a.normalizer for a in split.train}) == 1
    recipe = options("", tmp_path).recipe
    card = train(TrainOptions(replace(data, validate=()), tmp_path / "m", "m", recipe, steps=2, threads=1), Silent())
    assert card.bands == BANDS


def test_the_complete_training_set_is_put_back_into_its_regions(tmp_path, monkeypatch):
    write_synthetic(tmp_path / "l4s", 3, "images", 1, Silent())
    monkeypatch.setitem(l4s.COUNTS, "train", 3)
    (area,) = load_split(DataOptions((str(tmp_path / "l4s"),)), 0).train
    assert area.name == "taitung"
    assert area.truth.shape == (74 * 128, 41 * 128)
    assert area.valid[:128, : 3 * 128].mean() > 0.9
    assert not area.valid[128:].any()


def test_an_ensemble_is_trained_joined_and_resumed(scene, tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(zoo.PRESETS, "other", zoo.PRESETS["tiny"])
    both = options(scene, tmp_path / "m", steps=3)
    both = replace(both, recipe=replace(both.recipe, networks=("tiny-x2", "other-x2")))
    card = train(both, Silent())
    assert [n.name for n in card.networks] == ["tiny-x2", "other-x2"]
    assert card.networks[0].sha256 != card.networks[1].sha256
    assert registry.find(str(tmp_path / "m")).card.networks[0].scale == 2.0
    before = (tmp_path / "m" / "tiny-x2" / "log.csv").stat().st_mtime_ns
    assert train(replace(both, resume=True), Silent()) == card
    assert (tmp_path / "m" / "tiny-x2" / "log.csv").stat().st_mtime_ns == before


def test_stages_change_loss_optimizer_and_what_learns(scene, tmp_path, tiny, monkeypatch):
    from l4s_geo.train import trainer

    seen = []
    step = trainer._step

    def watched(o, run, sampler):
        seen.append((run.stage, type(run.optimizer).__name__, len(run.loss.pixel)))
        return step(o, run, sampler)

    monkeypatch.setattr(trainer, "_step", watched)
    base = options(scene, tmp_path / "m", steps=6)
    first = Stage(steps=10, loss={"cross-entropy": 1, "lovasz": 1})
    second = Stage(steps=20, loss={"cross-entropy": 1}, optimizer="sgd", learning_rate=1e-3, frozen=("encoder",))
    train(replace(base, recipe=replace(base.recipe, stages=(first, second))), Silent())
    assert seen == [(0, "AdamW", 2)] * 2 + [(1, "SGD", 1)] * 4


def test_patience_stops_early_with_the_best_weights(scene, tmp_path, tiny, monkeypatch):
    from l4s_geo.train import trainer

    figures = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.2])
    monkeypatch.setattr(trainer, "score", lambda *a: {"f1": next(figures), "threshold": 0.5, "f1_at_0.5": 0})
    base = options(scene, tmp_path / "m", steps=50, validate_minutes=1e-9)
    card = train(replace(base, recipe=replace(base.recipe, patience=2)), Silent())
    assert card.training["steps"] == 4


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(scene, tmp_path, tiny):
    bad = options(scene, tmp_path / "m", learning_rate=1e30)
    with pytest.raises(ModelError, match=r"bad-batch\.pt"):
        train(bad, Silent())
    assert torch.load(tmp_path / "m" / "bad-batch.pt", weights_only=True)["image"].shape == (4, 3, 128, 128)


def test_damaged_weights_are_refused(scene, tmp_path, tiny):
    card = train(options(scene, tmp_path / "m", steps=1), Silent())
    weights = tmp_path / "m" / card.networks[0].weights
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    model = registry.find(str(tmp_path / "m"))
    with pytest.raises(ModelError, match="checksum"):
        registry.load_network(model, card.networks[0])


def test_unknown_model_and_network_are_refused(tmp_path):
    with pytest.raises(ModelError, match="Unknown model"):
        registry.find(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="Unknown network"):
        zoo.preset("resnet-9000")


def test_joined_models_average_and_get_thresholds_and_a_crf_of_their_own(scene, tmp_path, tiny):
    for name, seed in (("a", 1), ("b", 2)):
        train(options(scene, tmp_path / name, steps=25, seed=seed, learning_rate=5e-3), Silent())
        card = json.loads((tmp_path / name / "card.json").read_text())
        (network,) = card["networks"]
        weights = tmp_path / name / network["weights"]
        weights.rename(weights.with_name(f"{name}.safetensors"))
        network |= {"name": name, "weights": f"{name}.safetensors"}
        (tmp_path / name / "card.json").write_text(json.dumps(card))
    data = DataOptions((str(scene),), validate=("valley:192-256",))
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    card = join(names, data, tmp_path / "both", "both")
    model = registry.find(str(tmp_path / "both"))
    assert [n.name for n in model.card.networks] == ["a", "b"]
    for network in model.card.networks:
        registry.load_network(model, network)
    assert card.crf["tried"] > 5
    assert 0 < card.crf["f1_with"] <= 1
    with pytest.raises(ModelError, match="same name"):
        join(names[:1] * 2, data, tmp_path / "twice", "twice")
    for way in ("blend", "centre", "model"):  # tuned on what the networks see in a map
        for folder in (tmp_path / "a", tmp_path / "b"):
            part = Card.load(folder)
            far = {**part.statistics, "center": [9000.0] * 3, "scale": [5.0] * 3}
            replace(part, normalization=way, statistics=far).save(folder)
        other = join(names, data, tmp_path / way, way)
        assert (other.normalization, other.statistics["center"]) == (way, [9000.0] * 3)
        assert other.metrics != card.metrics
