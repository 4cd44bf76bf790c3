"""HRNet for segmentation, with or without object-contextual representations; timm supplies the backbone."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers.conv_bn_act import ConvNormAct
from torch import nn
from torch.nn import functional as F


class OCRHead(nn.Module):
    """Object-contextual representations (Yuan et al. 2020, ECCV, section 3).

    Soft object regions (landslide and background) pool the pixels' features; every pixel then attends to the regions.
    The channels are the paper's. The regions are learnt through the logits alone: the paper's auxiliary loss
    on them would need a second output.

    Args:
        in_channels: Channels of the backbone's features.
        channels: Of the pixels' representation.
        key_channels: Of the attention.
        regions: Number of soft object regions, one per class.
    """

    def __init__(self, in_channels: int, channels: int = 512, key_channels: int = 256, regions: int = 2) -> None:
        super().__init__()
        self.regions = nn.Sequential(ConvNormAct(in_channels, in_channels, 1), nn.Conv2d(in_channels, regions, 1))
        self.pixels = ConvNormAct(in_channels, channels, 3)
        self.query = nn.Sequential(ConvNormAct(channels, key_channels, 1), ConvNormAct(key_channels, key_channels, 1))
        self.key = nn.Sequential(ConvNormAct(channels, key_channels, 1), ConvNormAct(key_channels, key_channels, 1))
        self.value = ConvNormAct(channels, key_channels, 1)
        self.context = ConvNormAct(key_channels, channels, 1)
        self.augmented = ConvNormAct(2 * channels, channels, 1)
        self.logits = nn.Conv2d(channels, 1, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, h, w) of features (N, in_channels, h, w)."""
        pixels = self.pixels(features)
        shares = self.regions(features).flatten(2).softmax(dim=-1)
        # (N, channels, regions, 1): a picture of one region a pixel, for the convolutions
        objects = torch.einsum("nkp,ncp->nck", shares, pixels.flatten(2))[..., None]
        query, key, value = (
            f(x).flatten(2).transpose(1, 2)
            for f, x in ((self.query, pixels), (self.key, objects), (self.value, objects))
        )
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        context = self.context(seen.reshape(*seen.shape[:2], *pixels.shape[2:]))
        logits: torch.Tensor = self.logits(self.augmented(torch.cat([context, pixels], dim=1)))
        return logits


class HRNet(nn.Module):
    """HRNetV2 (Wang et al. 2020, IEEE TPAMI, figure 4b): four resolutions, concatenated at a quarter of the input's.

    Args:
        in_channels: Number of bands.
        encoder_name: An HRNet of timm.
        ocr: Put an ``OCRHead`` on it (HRNet-OCR) in place of two 1x1 convolutions.
        encoder_weights: Load timm's pretrained weights.
    """

    def __init__(
        self, in_channels: int, encoder_name: str, ocr: bool = False, encoder_weights: str | bool | None = None
    ) -> None:
        super().__init__()
        encoder: Any = timm.create_model(
            encoder_name,
            pretrained=bool(encoder_weights),
            features_only=True,
            feature_location="",
            out_indices=(1, 2, 3, 4),
            in_chans=in_channels,
        )
        self.encoder = encoder
        channels = sum(encoder.feature_info.channels())
        plain = nn.Sequential(ConvNormAct(channels, channels, 1), nn.Conv2d(channels, 1, 1))
        self.head = OCRHead(channels) if ocr else plain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, h, w) of (N, C, h, w); h and w are multiples of 32."""
        finest, *coarser = self.encoder(x)
        size = finest.shape[-2:]
        enlarged = (F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in coarser)
        logits = self.head(torch.cat([finest, *enlarged], dim=1))
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
