"""A training run: what is asked for, and its moving parts, which a checkpoint keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from l4s_geo.train.losses import Loss, compose
from l4s_geo.train.optimize import optimizer_of
from l4s_geo.train.recipe import Recipe
from l4s_geo.train.split import DataOptions


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, for how long.

    Attributes:
        data: Scenes, holdouts, negatives.
        out: Model directory to write.
        name: Of the model.
        recipe: Networks, losses, optimizers, augmentation.
        minutes: Time budget; stages and learning-rate cycles are fitted into it. None: ``steps`` decide alone.
        steps: Most optimizer steps of a network; None: those of the recipe, or as many as fit into ``minutes``.
        accumulate: Parts that a batch is cut into, to save memory.
        seed: Of everything random.
        init: Model directory to start from.
        resume: Continue from the checkpoint in ``out``.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: ``auto``, ``fp32``, ``bf16``, ``fp16`` of the forward pass.
        threads: CPU threads; 0 leaves torch's choice.
        validate_minutes: Time between two validations (and checkpoints).
        patch: Side of the patches.
    """

    data: DataOptions
    out: Path
    name: str
    recipe: Recipe
    minutes: float | None = None
    steps: int | None = None
    accumulate: int = 1
    seed: int = 1
    init: Path | None = None
    resume: bool = False
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    validate_minutes: float = 5.0
    patch: int = 128

    def share(self, steps: int, seconds: float) -> float:
        """How much of the budget is used, 0..1."""
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        most = self.steps or (None if self.minutes else self.recipe.steps)
        return min(1.0, max(steps / most if most else 0.0, by_time))

    def describe(self) -> dict[str, Any]:
        """For the card and for resuming: without paths."""
        values = asdict(self)
        hidden = ("out", "resume", "device", "threads")
        values = {k: v for k, v in values.items() if k not in hidden}
        return values | {"data": self.data.describe(), "init": self.init.name if self.init else None}


@dataclass
class Run:
    """The moving parts of a training run.

    ``best`` holds the weights that ``patience`` would go back to, ``recent`` the losses of the last steps.
    """

    net: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    loss: Loss
    device: torch.device
    dtype: torch.dtype
    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    best_f1: float = -1.0
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    stale: int = 0
    recent: deque[torch.Tensor] = field(default_factory=lambda: deque(maxlen=50))

    def enter(self, recipe: Recipe, stage: int) -> None:
        """Take up the optimizer and the loss of a stage."""
        self.stage = stage
        self.optimizer = optimizer_of(recipe.stages[stage], self.net)
        self.loss = compose(recipe.stages[stage].loss)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        plain = {name: getattr(self, name) for name in ("stage", "step", "seconds", "best_f1", "best", "stale")}
        modules = {name: getattr(self, name).state_dict() for name in ("net", "average", "optimizer")}
        return plain | modules

    def restore(self, recipe: Recipe, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.enter(recipe, int(state["stage"]))
        for name in ("net", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("step", "seconds", "best_f1", "best", "stale"):
            setattr(self, name, state[name])


def averaging(decay: float) -> Callable[[Any, Any, Any], None]:
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
