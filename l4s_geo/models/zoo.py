"""Architectures by name: those of segmentation-models-pytorch, with encoders of timm, and ours that it lacks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

from l4s_geo.errors import ModelError
from l4s_geo.models.hrnet import HRNet
from l4s_geo.models.image_level import ImageLevelUnet
from l4s_geo.models.multispectral import FINE_BANDS, MultispectralUnet
from l4s_geo.models.organisers import OrganisersUnet

#: What segmentation-models-pytorch does not have.
OWN: dict[str, type[nn.Module]] = {c.__name__: c for c in (HRNet, ImageLevelUnet, MultispectralUnet, OrganisersUnet)}

#: Logits (N, 1, h, w), and what a network says about whole images beside them.
Answer = torch.Tensor | tuple[torch.Tensor, ...]

_SMALL = [128, 64, 48, 32, 16]


def _swin(size: str) -> dict[str, Any]:
    # windows of 7x7 at every input size: any other number changes the shape of the pretrained weights
    return {"encoder_name": f"tu-swin_{size}_patch4_window7_224", "strict_img_size": False}


#: The names are what ``train --arch`` takes, also with a working scale such as ``-x2``. The first block is small (up to
#: 7 million parameters) and trains on a CPU;
#: the second holds the networks of the Landslide4Sense competition (Ghorbanzadeh et al. 2022, IEEE JSTARS 15).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet-resnet10t": ("Unet", {"encoder_name": "tu-resnet10t", "decoder_channels": _SMALL}),
    "unet-regnety004": ("Unet", {"encoder_name": "tu-regnety_004", "decoder_channels": _SMALL}),
    "unet-mobilenetv4s": ("Unet", {"encoder_name": "tu-mobilenetv4_conv_small", "decoder_channels": _SMALL}),
    "unet-resnet18": ("Unet", {"encoder_name": "resnet18", "decoder_channels": _SMALL}),
    "fpn-resnet18": ("FPN", {"encoder_name": "resnet18"}),
    "imagelevel-resnet10t": ("ImageLevelUnet", {"encoder_name": "tu-resnet10t", "decoder_channels": _SMALL}),
    "segformer-b0": ("Segformer", {"encoder_name": "mit_b0"}),
    # the organisers' baseline
    "unet": ("OrganisersUnet", {}),
    # Kingdrone: Swin U-Net, EfficientNetV2 U-Net, SegFormer; further ResU-Net, HRNet-OCR
    "unet-swin-tiny": ("Unet", _swin("tiny")),
    "unet-swin-base": ("Unet", _swin("base")),
    "unet-efficientnetv2s": ("Unet", {"encoder_name": "tu-tf_efficientnetv2_s"}),
    "segformer-b2": ("Segformer", {"encoder_name": "mit_b2", "decoder_segmentation_channels": 768}),
    "unet-resnet50": ("Unet", {"encoder_name": "resnet50"}),
    "hrnet-w18-ocr": ("HRNet", {"encoder_name": "hrnet_w18", "ocr": True}),
    "hrnet-w48-ocr": ("HRNet", {"encoder_name": "hrnet_w48", "ocr": True}),
    # SEEK: the Swin U-Nets with an image-level output while they learn
    "swinls-tiny": ("ImageLevelUnet", _swin("tiny")),
    "swinls-base": ("ImageLevelUnet", _swin("base")),
    # Tanmlh
    "deeplabv3plus-resnet50": ("DeepLabV3Plus", {"encoder_name": "resnet50"}),
    "deeplabv3plus-resnext50": ("DeepLabV3Plus", {"encoder_name": "resnext50_32x4d"}),
    "hrnet-w18": ("HRNet", {"encoder_name": "hrnet_w18"}),
    "hrnet-w48": ("HRNet", {"encoder_name": "hrnet_w48"}),
    # sklgp
    "multispectral-unet": ("MultispectralUnet", {}),
}


def build(
    architecture: str, args: dict[str, Any], in_channels: int, encoder_weights: str | bool | None = None
) -> nn.Module:
    """A network that maps (N, C, h, w) to landslide logits (N, 1, h, w); h and w are multiples of 32.

    ``ImageLevelUnet`` answers with two outputs in training mode. For weights from a hub call ``pretrained.build``.

    Args:
        architecture: A name of ``OWN``, or a class of segmentation-models-pytorch.
        args: Its arguments, as the card records them.
        in_channels: Number of bands.
        encoder_weights: What ``pretrained.build`` asks the encoder to load; None: random weights.

    Raises:
        ModelError: The architecture or its arguments are not known.
    """
    try:
        kind = OWN[architecture] if architecture in OWN else getattr(smp, architecture)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise AttributeError(f"{architecture} is not a network")
        backbone = {} if kind in (MultispectralUnet, OrganisersUnet) else {"encoder_weights": encoder_weights}
        net: nn.Module = kind(in_channels=in_channels, **backbone, **args)
    except (AttributeError, TypeError, KeyError, ValueError, RuntimeError) as e:
        raise ModelError(
            f"Cannot build network {architecture} with {args}: {shorten(str(e), 200)}. "
            "The model may need a newer l4s-geo."
        ) from e
    return net


def at_scale(net: nn.Module, scale: float) -> nn.Module:
    """The same network, which resizes patches by ``scale`` and its logits back.

    The winners of Landslide4Sense enlarged the patches 2.5 to 4 times: landslides of a few pixels are lost to an
    encoder that starts with strides. Parameters keep their names, so that weights fit at any scale.
    """
    if scale == 1.0:
        return net

    def enlarge(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return F.interpolate(inputs[0], scale_factor=scale, mode="bilinear", align_corners=False)

    def reduce(_: nn.Module, inputs: tuple[torch.Tensor], found: Answer) -> Answer:
        logits, *more = found if isinstance(found, tuple) else (found,)
        size = [round(n / scale) for n in inputs[0].shape[-2:]]
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return (logits, *more) if more else logits

    net.register_forward_pre_hook(enlarge)
    net.register_forward_hook(reduce)
    return net


def split_scale(name: str) -> tuple[str, float]:
    """Preset and working scale of a network's name.

    Of ``unet-resnet18-x2``, which enlarges patches twice, these are ``unet-resnet18`` and 2.
    """
    found = re.fullmatch(r"(.+)-x(\d+(?:\.\d+)?)", name)
    return (found[1], float(found[2])) if found else (name, 1.0)


def preset(name: str, bands: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of a preset.

    Args:
        name: Of ``PRESETS``, with or without a working scale.
        bands: Names of the input bands, in order; ``multispectral-unet`` looks up its high-resolution bands in them.

    Raises:
        ModelError: There is no such preset, or it cannot work on these bands.
    """
    name, _ = split_scale(name)
    if name not in PRESETS:
        raise ModelError(f"Unknown network {name!r}; there are {', '.join(PRESETS)}.")
    architecture, args = PRESETS[name]
    if architecture != "MultispectralUnet":
        return architecture, dict(args)
    fine = [bands.index(b) for b in FINE_BANDS if b in bands]
    if not fine:
        raise ModelError(
            f"Network {name} needs at least one of {', '.join(FINE_BANDS)}; the bands are "
            f"{', '.join(bands) or 'not known'}. Add one, or choose another network."
        )
    return architecture, {**args, "fine": fine}
