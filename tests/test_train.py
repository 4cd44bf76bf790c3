"""Training: what it learns from, that it learns, and that it goes on after a kill."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from l4s_geo.data.crops import UNKNOWN, CropSampler, crops_of_step, cut, load_area
from l4s_geo.errors import InputError, ModelError
from l4s_geo.models import registry, zoo
from l4s_geo.progress import Silent
from l4s_geo.train.augment import Augmentation, augment, geometry
from l4s_geo.train.join import join
from l4s_geo.train.losses import cross_entropy, cross_entropy_jaccard, jaccard_loss
from l4s_geo.train.split import DataOptions, load_split
from l4s_geo.train.trainer import TrainOptions, one_cycle, train

BANDS = ("B4", "B3", "B2")
PLAIN = Augmentation(
    affine_share=0, gain=0, gain_shift=0, band_gain=0, offset=0, band_offset=0, gamma=0, haze=0, noise=0
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
    base = TrainOptions(
        data,
        out,
        "tiny-model",
        arch="tiny",
        steps=60,
        batch_size=4,
        threads=1,
        validate_minutes=60,
        dtype="fp32",
    )
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


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"labels\.tif"):
        load_split(DataOptions((str(tmp_path),)), seed=0)


def test_crops_depend_on_seed_and_step_only(scene):
    area = load_area(str(scene), BANDS, compression="asinh", resolution=10)
    sampler = CropSampler([area], [], 0.0, 64)
    first, again, other = (crops_of_step(sampler, s, 3, seed=5) for s in (7, 7, 8))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.image, b.image) for a, b in zip(first, other, strict=True))


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
    x, y, valid = augment(torch.ones(16, 3, 20, 20), truth, torch.ones(16, 20, 20, dtype=torch.bool), 20, how, 3)
    assert x.shape == (16, 3, 20, 20)
    assert set(y.unique().tolist()) == {0, UNKNOWN}
    assert torch.equal(y == UNKNOWN, ~valid)


def test_losses_match_their_float64_definition_and_ignore_unknown_pixels():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 1, 8, 8))
    truth = rng.choice([0, 1, UNKNOWN], (3, 8, 8))
    known = truth != UNKNOWN
    p = 1 / (1 + np.exp(-z[:, 0][known]))
    y = (truth[known] == 1).astype(float)
    logits, target = torch.from_numpy(z).float(), torch.from_numpy(truth)
    entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    overlap = 1 - ((p * y).sum() + 1) / ((p + y - p * y).sum() + 1)
    assert cross_entropy(logits, target).item() == pytest.approx(entropy, rel=1e-5)
    assert jaccard_loss(logits, target).item() == pytest.approx(overlap, rel=1e-5)
    assert cross_entropy_jaccard(logits, target).item() == pytest.approx(entropy + overlap, rel=1e-5)
    changed = logits.clone()
    changed[:, 0][~torch.from_numpy(known)] += 9
    assert cross_entropy_jaccard(changed, target).item() == cross_entropy_jaccard(logits, target).item()
    assert cross_entropy_jaccard(logits, torch.full_like(target, UNKNOWN)).item() == 0


def test_learning_rate_warms_up_and_falls():
    rates = [one_cycle(s / 100) for s in range(101)]
    assert rates[0] < 0.1
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(0.01)
    assert sorted(rates[5:], reverse=True) == rates[5:]


def test_training_learns_and_writes_a_model_that_loads(scene, tmp_path, tiny):
    card = train(options(scene, tmp_path / "m", learning_rate=5e-3), Silent())
    (figures,) = card.metrics.values()
    assert figures["balanced"]["f1"] > 0.8
    assert card.thresholds["recall"] <= card.thresholds["balanced"] <= card.thresholds["precision"]
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
