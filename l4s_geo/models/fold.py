"""Networks made ready for prediction: batch norm folded into the convolutions before it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

#: Side of the picture that shows which convolution feeds which batch norm; every network of the zoo takes it.
_SIDE = 64

#: Largest difference of logits, relative to their spread, that rounding explains (float32).
_TOLERANCE = 1e-3


def for_inference(network: nn.Module, in_channels: int) -> nn.Module:
    """A copy of a network without the batch norms that follow a convolution; they become part of its weights.

    One small picture is sent through to see which layer feeds which, so that it does not matter how a network is
    written. Where the copy does not answer as the network does, the network itself is returned.

    Args:
        network: On the CPU, float32, evaluation mode; maps (N, in_channels, h, w) to logits (N, 1, h, w).
        in_channels: Number of bands.
    """
    picture = torch.randn(1, in_channels, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    folded = deepcopy(network)
    with torch.no_grad():
        pairs = _pairs(folded, picture)
        names = {module: name for name, module in folded.named_modules()}
        for conv, norm in pairs:
            _absorb(conv, norm)
            # timm's BatchNormAct2d is a batch norm, dropout and activation in one
            rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
            folded.set_submodule(names[norm], nn.Sequential(*rest) if rest else nn.Identity())
        before, after = network(picture), folded(picture)
    same = (after - before).abs().max() <= _TOLERANCE * before.std()
    return folded if same else network


def _pairs(network: nn.Module, picture: torch.Tensor) -> list[tuple[_ConvNd, _BatchNorm]]:
    """Convolutions and the batch norms that take their output, each called once."""
    made: list[tuple[torch.Tensor, _ConvNd]] = []  # keeps the outputs, so that no address is used twice
    pairs: list[tuple[_ConvNd, _BatchNorm]] = []
    calls: list[nn.Module] = []

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls.append(module)
        if isinstance(module, _ConvNd):
            made.append((output, module))
        elif isinstance(module, _BatchNorm):
            pairs.extend((conv, module) for y, conv in made if y is inputs[0])

    layers = [m for m in network.modules() if isinstance(m, (_ConvNd, _BatchNorm))]
    hooks = [m.register_forward_hook(see) for m in layers]
    try:
        network(picture)
    finally:
        for hook in hooks:
            hook.remove()
    return [(c, n) for c, n in pairs if calls.count(c) == calls.count(n) == 1 and n.running_mean is not None]


def _absorb(conv: _ConvNd, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, conv.transposed
    )
