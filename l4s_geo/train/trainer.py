"""Train one network on labelled scenes: options in, a model directory out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from l4s_geo.data.crops import Crop, CropSampler, crops_of_step, seed_of
from l4s_geo.inference import choose_device, choose_dtype
from l4s_geo.models import registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.progress import Progress
from l4s_geo.train.augment import Augmentation, augment
from l4s_geo.train.losses import cross_entropy_jaccard
from l4s_geo.train.record import Log, Record, load_state, plot, save_state
from l4s_geo.train.split import DataOptions, Split, load_split
from l4s_geo.train.validate import score, tune

#: Side of a raw crop; leaves room around a 128-pixel patch to be turned and scaled.
CROP = 224


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, for how long.

    Attributes:
        data: Scenes, holdouts, negatives.
        out: Model directory to write.
        name: Of the model.
        arch: A preset of ``l4s_geo.models.zoo``.
        minutes: Time budget; the learning-rate cycle is fitted into it. None: ``steps`` decide alone.
        steps: Most optimizer steps.
        batch_size: Patches a step.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of AdamW.
        ema: Decay of the averaged weights.
        seed: Of everything random.
        init: Model directory to start from.
        resume: Continue from the checkpoint in ``out``.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: ``auto``, ``fp32``, ``bf16``, ``fp16`` of the forward pass.
        threads: CPU threads; 0 leaves torch's choice.
        validate_minutes: Time between two validations (and checkpoints).
        patch: Side of the patches.
        augmentation: Strengths.
    """

    data: DataOptions
    out: Path
    name: str
    arch: str = "unet-resnet10t"
    minutes: float | None = None
    steps: int = 10_000
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    ema: float = 0.998
    seed: int = 1
    init: Path | None = None
    resume: bool = False
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    validate_minutes: float = 5.0
    patch: int = 128
    augmentation: Augmentation = field(default_factory=Augmentation)


def one_cycle(share: float) -> float:
    """Learning-rate factor after ``share`` of the run: linear warm-up over 5 %, then a cosine to 1 % (Smith 2018)."""
    if share < 0.05:
        return 0.04 + 0.96 * share / 0.05
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, (share - 0.05) / 0.95))))


@dataclass
class Run:
    """The moving parts of a training run."""

    net: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    device: torch.device
    dtype: torch.dtype
    step: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


def train(options: TrainOptions, progress: Progress) -> Card:
    """Train a network and write its model directory.

    The directory holds ``card.json``, the averaged weights, ``log.csv``, ``curve.png`` and, until the run is
    complete, ``checkpoint.pt``.

    Raises:
        InputError: Data or options that cannot be used.
        ModelError: The model to start from does not fit.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    split = load_split(options.data, options.seed)
    run = _start(options)
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "log.csv", keep=run.step > 0)
    progress.start(f"training {options.arch}", 1000)
    shown = 0
    for record in _steps(options, run, split):
        share = int(1000 * _share(options, run))
        progress.advance(share - shown)
        shown = share
        if record is not None:
            log.write(record)
            save_state(run.state(), options.out / "checkpoint.pt")
    progress.finish()
    card = _finish(options, run, split)
    plot(log.path, options.out / "curve.png")
    (options.out / "checkpoint.pt").unlink(missing_ok=True)
    return card


def _start(options: TrainOptions) -> Run:
    torch.manual_seed(options.seed)
    device = choose_device(options.device)
    net = _network(options).to(device).to(memory_format=torch.channels_last)
    average = AveragedModel(net, multi_avg_fn=_averaging(options.ema), use_buffers=True)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
    run = Run(net, average, optimizer, device, choose_dtype(options.dtype, device))
    checkpoint = options.out / "checkpoint.pt"
    if options.resume and checkpoint.is_file():
        run.restore(load_state(checkpoint, device))
    return run


def _averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average whose decay grows from 0.1, so that the first random weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        n = int(count)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        for a, c in zip(averaged, current, strict=True):
            if a.is_floating_point():
                a.lerp_(c.to(a.dtype), weight)
            else:
                a.copy_(c)

    return update


def _network(options: TrainOptions) -> nn.Module:
    if options.init is not None:
        model = registry.find(str(options.init))
        return registry.load_network(model, model.card.networks[0])
    architecture, args = zoo.preset(options.arch)
    return zoo.build(architecture, args, len(options.data.bands))


def _share(options: TrainOptions, run: Run) -> float:
    by_steps = run.step / options.steps
    by_time = run.seconds / (60 * options.minutes) if options.minutes else 0.0
    return min(1.0, max(by_steps, by_time))


def _steps(options: TrainOptions, run: Run, split: Split) -> Iterator[Record | None]:
    """Run the steps; yields None after each, and a record after each validation."""
    sampler = CropSampler(split.train, split.negatives, options.data.negative_share, CROP)
    losses: list[torch.Tensor] = []
    validated, first = run.seconds, run.step
    while (share := _share(options, run)) < 1.0:
        started = time.monotonic()
        rate = options.learning_rate * one_cycle(share)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        losses.append(_step(options, run, sampler))
        run.step += 1
        run.seconds += time.monotonic() - started
        due = run.seconds - validated >= 60 * options.validate_minutes
        if due or _share(options, run) >= 1.0:
            speed = (run.step - first) * options.batch_size / (run.seconds - validated)
            scores = {
                name: score(run.average.module, areas, run, options.patch) for name, areas in split.watched.items()
            }
            loss = float(torch.stack(losses).mean())
            yield Record(run.step, run.seconds / 60, rate, loss, speed, scores)
            losses, validated, first = [], run.seconds, run.step
        else:
            yield None


def _step(options: TrainOptions, run: Run, sampler: CropSampler) -> torch.Tensor:
    crops = crops_of_step(sampler, run.step, options.batch_size, options.seed)
    x, y = make_batch(crops, options, seed_of(options.seed, run.step, "augment"))
    x = x.to(run.device, memory_format=torch.channels_last, non_blocking=True)
    run.net.train()
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        logits = run.net(x)
    loss = cross_entropy_jaccard(logits.float(), y.to(run.device, non_blocking=True))
    run.optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(run.net.parameters(), 3.0)
    run.optimizer.step()
    run.average.update_parameters(run.net)
    return loss.detach()


def make_batch(crops: list[Crop], options: TrainOptions, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Augmented, compressed patches (N, C, patch, patch) float32 and their truth (N, patch, patch) int64."""
    x, y, seen = augment(
        torch.from_numpy(np.stack([c.image for c in crops])),
        torch.from_numpy(np.stack([c.truth for c in crops])),
        torch.from_numpy(np.stack([c.valid for c in crops])),
        options.patch,
        options.augmentation,
        seed,
    )
    if options.data.compression == "asinh":
        x = x.asinh()
    return x * seen[:, None], y


def _finish(options: TrainOptions, run: Run, split: Split) -> Card:
    net = run.average.module.eval()
    architecture, args = zoo.preset(options.arch)
    network = registry.save_network(net, options.out, options.arch, architecture, args)
    thresholds, metrics = tune([net], split.validation, run.device, run.dtype, options.patch)
    settings = asdict(options)
    settings.update(data=options.data.describe(), out="", init=options.init.name if options.init else None)
    card = Card(
        name=options.name,
        version="1",
        licence="Apache-2.0",
        networks=(network,),
        bands=options.data.bands,
        input_units="dn",
        compression=options.data.compression,
        statistics=split.statistics.to_dict(),
        resolution_m=options.data.resolution,
        scale=1.0,
        thresholds=thresholds,
        threshold_split=", ".join(options.data.validate) or "not tuned",
        training={"settings": settings, "steps": run.step, "minutes": round(run.seconds / 60, 1)},
        metrics=metrics,
    )
    card.save(options.out)
    return card
