"""Architectures by name. segmentation-models-pytorch supplies them, timm their encoders."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import segmentation_models_pytorch as smp
from torch import nn

from l4s_geo.errors import ModelError

#: Small networks (up to 7 million parameters) that train on a CPU; the names are what ``train --arch`` takes.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet-resnet10t": ("Unet", {"encoder_name": "tu-resnet10t", "decoder_channels": [128, 64, 48, 32, 16]}),
    "unet-regnety004": (
        "Unet",
        {"encoder_name": "tu-regnety_004", "decoder_channels": [128, 64, 48, 32, 16]},
    ),
    "unet-mobilenetv4s": (
        "Unet",
        {"encoder_name": "tu-mobilenetv4_conv_small", "decoder_channels": [128, 64, 48, 32, 16]},
    ),
    "unet-resnet18": ("Unet", {"encoder_name": "resnet18", "decoder_channels": [128, 64, 48, 32, 16]}),
    "fpn-resnet18": ("FPN", {"encoder_name": "resnet18"}),
    "segformer-b0": ("Segformer", {"encoder_name": "mit_b0"}),
}


def build(architecture: str, args: dict[str, Any], in_channels: int) -> nn.Module:
    """A network with one output channel (the landslide logit) at the resolution of its input, random weights.

    Args:
        architecture: A class of segmentation-models-pytorch.
        args: Its arguments, as the card records them.
        in_channels: Number of bands.

    Raises:
        ModelError: The architecture or its arguments are not known.
    """
    try:
        net: nn.Module = getattr(smp, architecture)(encoder_weights=None, in_channels=in_channels, classes=1, **args)
    except (AttributeError, TypeError, KeyError, RuntimeError) as e:
        raise ModelError(
            f"Cannot build network {architecture} with {args}: {shorten(str(e), 200)}. "
            "The model may need a newer l4s-geo."
        ) from e
    return net


def preset(name: str) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of a preset.

    Raises:
        ModelError: There is no such preset.
    """
    if name not in PRESETS:
        raise ModelError(f"Unknown network {name!r}; there are {', '.join(PRESETS)}.")
    architecture, args = PRESETS[name]
    return architecture, dict(args)
