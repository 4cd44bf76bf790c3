"""Training by two processes: as one does it with batches in two parts, and with one set of files.

torchrun starts this file twice as a program; it trains in several ways, at last with an error in one process.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from l4s_geo.cli import main
from l4s_geo.data.crops import CropSampler, crops_of_step, load_area
from l4s_geo.errors import InputError
from l4s_geo.models import registry, zoo
from l4s_geo.progress import Silent
from l4s_geo.train import parallel, trainer
from l4s_geo.train.losses import cross_entropy
from l4s_geo.train.recipe import Stage
from l4s_geo.train.run import TrainOptions
from l4s_geo.train.trainer import train
from tests.test_train import BANDS, options, scene, tiny, write_labelled

__all__ = ["scene", "tiny"]

STEPS = 3


class Dropping(smp.Unet):
    """With dropout, which each process has to draw for its own patches."""

    def __init__(self, **args) -> None:
        super().__init__(**args)
        self.segmentation_head.insert(0, nn.Dropout2d(0.5))


ARGS = {"encoder_name": "tu-mobilenetv3_small_050", "decoder_channels": [16, 8], "encoder_depth": 2}
PRESETS = {"tiny": ("Dropping", ARGS), "other": ("Unet", ARGS)}


def plan(scene: Path, out: Path, **changes) -> TrainOptions:
    """Two networks by gradient descent, which does not blow up differences in rounding as Adam does."""
    base = replace(options(scene, out, steps=STEPS, validate_minutes=1e-9, device="cpu"), **changes)
    stages = (
        Stage(steps=2, optimizer="sgd", learning_rate=0.01),
        Stage(steps=1, optimizer="sgd", learning_rate=0.01, frozen=("encoder",)),
    )
    return replace(base, recipe=replace(base.recipe, networks=("tiny", "other"), stages=stages, patience=0))


def one_gradient(rank: int, world: int) -> list[torch.Tensor]:
    """Gradients of a fixed batch of four patches, of which each process sees its part."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(2, (4, 8, 8), generator=generator)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    loss = cross_entropy(net(x[rank::world]), y[rank::world])
    loss.backward()
    total = loss.detach()
    parallel.synchronize(net, total)
    return [total, *(p.grad for p in net.parameters())]


def work(folder: Path) -> None:
    """What each of the two processes does."""
    zoo.OWN["Dropping"] = Dropping
    zoo.PRESETS.update(PRESETS)
    out = plan(folder / "valley", folder / "whole")
    with parallel.processes("cpu"):
        rank = parallel.rank()
        torch.save(one_gradient(rank, 2), folder / f"gradient{rank}.pt")
        train_in_full(out, folder / f"run{rank}.pt")
        train_with_a_break(replace(out, out=folder / "cut"))
        steps = {"minutes": steps_in_time(replace(out, out=folder / "minutes", minutes=0.01, steps=None))}
        steps["patience"] = steps_with_patience(replace(out, out=folder / "patience", steps=99))
        torch.save(steps, folder / f"steps{rank}.pt")
    fail_in_one(folder)


def train_in_full(out: TrainOptions, path: Path) -> None:
    """Train from weights that differ between the processes at first; save what they end with."""
    build, start, runs = trainer._network, trainer._start, []

    def changed(o):
        net = build(o)
        for p in net.parameters():
            p.data += parallel.rank()
        return net

    def watched(*args):
        runs.append(start(*args))
        return runs[-1]

    trainer._network, trainer._start = changed, watched
    card = train(out, Silent())
    trainer._network, trainer._start = build, start
    torch.save({"card": card.to_dict(), "runs": [(r.net.state_dict(), r.average.state_dict()) for r in runs]}, path)


def train_with_a_break(out: TrainOptions) -> None:
    """Stop in the middle of the second network, then resume."""
    step, left = trainer._step, count(STEPS + 1, -1)

    def killed(*args):
        if next(left) < 0:
            raise KeyboardInterrupt
        return step(*args)

    trainer._step = killed
    with suppress(KeyboardInterrupt):
        train(out, Silent())
    trainer._step = step
    train(replace(out, resume=True), Silent())


def steps_in_time(out: TrainOptions) -> int:
    """Steps of a run by the clock, which stands still in the second process."""
    monotonic = trainer.time.monotonic
    if not parallel.is_first():
        trainer.time.monotonic = float
    found = train(alone(out), Silent()).training["steps"]
    trainer.time.monotonic = monotonic
    return found


def steps_with_patience(out: TrainOptions) -> int:
    """Steps of a run whose score, known to the first process only, is best at the second validation."""
    figures, score = iter([0.1, 0.5, 0.4, 0.3]), trainer.score
    trainer.score = lambda *a: {"f1": next(figures)}
    out = alone(out)
    found = train(replace(out, recipe=replace(out.recipe, patience=2)), Silent()).training["steps"]
    trainer.score = score
    return found


def alone(out: TrainOptions) -> TrainOptions:
    return replace(out, recipe=replace(out.recipe, networks=("tiny",)))


def fail_in_one(folder: Path) -> None:
    """The command, with a loss that is no number in the second process."""
    loss = trainer._loss
    if os.environ["RANK"] == "1":
        trainer._loss = lambda *a: loss(*a) * float("nan")
    words = f"train --data {folder}/valley --out {folder}/failed --arch tiny --steps 2 --device cpu --threads 1"
    main([*words.split(), "--synthetic", "0", "--batch-size", "4", "-q"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder in which two processes worked, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    write_labelled(folder / "valley")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, "-m", "tests.test_parallel", str(folder)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (folder / "steps1.pt").exists(), done.stderr
    return folder, done


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.setitem(zoo.OWN, "Dropping", Dropping)
    for name, preset in PRESETS.items():
        monkeypatch.setitem(zoo.PRESETS, name, preset)


def load(folder, name):
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_parts_of_a_step_make_up_its_crops(scene):
    area = load_area(str(scene), BANDS, compression="asinh", resolution=10)
    sampler = CropSampler([area], [], 0.0, 64)
    whole = crops_of_step(sampler, 5, 7, seed=1)
    for part in range(3):
        crops = crops_of_step(sampler, 5, 7, seed=1, part=part, parts=3)
        assert all(np.array_equal(a.image, b.image) for a, b in zip(crops, whole[part::3], strict=True))


def test_a_batch_of_fewer_patches_than_parts_is_refused(scene, tmp_path, tiny):
    with pytest.raises(InputError, match="--batch-size 5"):
        train(options(scene, tmp_path / "m", accumulate=5), Silent())
    assert not (tmp_path / "m").exists()


def test_two_halves_of_a_batch_have_the_gradient_of_the_whole(two):
    for found in load(two[0], "gradient"):
        for a, b in zip(found, one_gradient(0, 1), strict=True):
            torch.testing.assert_close(a, b)


def test_both_processes_have_the_same_weights_and_statistics(two):
    first, second = load(two[0], "run")
    assert len(first["runs"]) == 2
    for a, b in zip(first["runs"], second["runs"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert first["card"] == second["card"]


def test_two_processes_learn_what_one_does_from_batches_in_two_parts(two, tmp_path, networks):
    folder, _ = two
    one = alone(plan(folder / "valley", tmp_path / "one", accumulate=2, validate_minutes=60))
    card = train(one, Silent())
    found = registry.load_network(registry.find(str(one.out)), card.networks[0])
    both = registry.find(str(folder / "whole" / "tiny"))
    expected = registry.load_network(both, both.card.networks[0])
    for (name, p), q in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)


def test_one_set_of_files_is_written(two):
    out = two[0] / "whole"
    made = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    each = {f"{n}/{f}" for n in ("tiny", "other") for f in (f"{n}.safetensors", "card.json", "curve.png", "log.csv")}
    assert made == each | {"card.json", "tiny.safetensors", "other.safetensors"}
    with (out / "tiny" / "log.csv").open() as f:
        assert [int(r["step"]) for r in csv.DictReader(f)] == [*range(1, STEPS + 1)]


def test_a_run_that_was_stopped_resumes_to_the_same_weights(two):
    whole, cut = (registry.find(str(two[0] / name)).card.networks for name in ("whole", "cut"))
    assert whole == cut


def test_the_first_process_decides_when_training_ends(two):
    first, second = load(two[0], "steps")
    assert first == second
    assert first["minutes"] > 0
    assert first["patience"] == 4


def test_an_error_in_one_process_ends_both_with_one_message(two):
    folder, done = two
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "bad-batch1.pt" in done.stderr
    assert "bug in l4s-map" not in done.stderr
    assert not (folder / "failed" / "card.json").exists()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
