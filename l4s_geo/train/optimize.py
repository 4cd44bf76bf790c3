"""Optimizers and learning-rate schedules of a training stage."""

from __future__ import annotations

import math

import torch
from torch import nn

from l4s_geo.train.recipe import Stage


def optimizer_of(stage: Stage, net: nn.Module) -> torch.optim.Optimizer:
    """The stage's optimizer over the parts of the network that learn in it; weight decay spares biases and norms."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(f"{f}." for f in stage.frozen)))
    learning = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=0.9, nesterov=True)
    kind = torch.optim.AdamW if stage.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=stage.learning_rate, fused=True)


def rate_factor(stage: Stage, share: float) -> float:
    """Learning rate after ``share`` of the stage, as a factor on its highest.

    ``one-cycle``: a cosine to 1 % (Smith 2018, arXiv 1803.09820); ``cosine``: to 0 (Loshchilov and Hutter 2017,
    arXiv 1608.03983); ``restarts``: their warm restarts, three cycles each twice as long as the one before; ``poly``:
    ``(1 - share) ** 0.9`` (Chen et al. 2018, DeepLab); ``constant``. All after a linear warm-up.
    """
    if share < stage.warm_up:
        return 0.04 + 0.96 * share / stage.warm_up
    rest = min(1.0, (share - stage.warm_up) / (1 - stage.warm_up))
    if stage.schedule == "constant":
        return 1.0
    if stage.schedule == "poly":
        return float((1 - rest) ** 0.9)
    if stage.schedule == "restarts":
        start, length = 0.0, 1 / 7
        while rest >= start + length and rest < 1:
            start, length = start + length, 2 * length
        rest = (rest - start) / length if rest < 1 else 1.0
    floor = 0.01 if stage.schedule == "one-cycle" else 0.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * rest))
