"""Domain-specific batch norm (Chang et al. 2019, CVPR): statistics per domain, all other weights shared.

The winners of Landslide4Sense 2022 call it cross-sensor normalization. A batch holds patches of one domain:

    net = convert(net, domains=2)
    with use(net, 1):
        logits = net(patches_of_domain_1)
    plain = collapse(net, 1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from l4s_geo.errors import ModelError


class DomainNorm(nn.Module):
    """One batch norm (statistics, scale and shift) per domain; all begin as copies of ``norm``.

    Attributes:
        norms: One per domain.
        domain: The one that is used now; ``use`` chooses it.
    """

    def __init__(self, norm: nn.Module, domains: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(deepcopy(norm) for _ in range(domains))
        self.domain = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as ``x``."""
        y: torch.Tensor = self.norms[self.domain](x)
        return y


def convert(net: nn.Module, domains: int) -> nn.Module:
    """A copy of a network with every batch norm made domain-specific; domain 0 is in use.

    Raises:
        ModelError: The network has no batch norm, or there is no domain.
    """
    if domains < 1 or not any(isinstance(m, _BatchNorm) for m in net.modules()):
        raise ModelError(
            f"Cannot make batch norm specific to {domains} domains: there must be at least one, and the network must "
            "have batch norm. Use another network, or train without domains."
        )
    return _replace(deepcopy(net), _BatchNorm, lambda norm: DomainNorm(norm, domains))


@contextmanager
def use(net: nn.Module, domain: int) -> Iterator[None]:
    """Let a converted network normalize for ``domain`` inside the ``with`` block.

    Raises:
        ModelError: The network has no such domain.
    """
    layers = _layers(net, domain)
    before = [layer.domain for layer in layers]
    for layer in layers:
        layer.domain = domain
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.domain = old


def collapse(net: nn.Module, domain: int) -> nn.Module:
    """A plain copy of a converted network, as its architecture builds it, that normalizes for ``domain``.

    Raises:
        ModelError: The network has no such domain.
    """
    _layers(net, domain)
    return _replace(deepcopy(net), DomainNorm, lambda layer: layer.norms[domain])


def _layers(net: nn.Module, domain: int) -> list[DomainNorm]:
    layers = [m for m in net.modules() if isinstance(m, DomainNorm)]
    known = len(layers[0].norms) if layers else 0
    if not 0 <= domain < known:
        raise ModelError(f"The network has no domain {domain}: it was trained on {known} (counted from 0).")
    return layers


def _replace(net: nn.Module, kind: type[nn.Module], new: Callable[[Any], nn.Module]) -> nn.Module:
    for name, child in net.named_children():
        setattr(net, name, new(child) if isinstance(child, kind) else _replace(child, kind, new))
    return net
