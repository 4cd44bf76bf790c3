"""The U-Net that the organisers of Landslide4Sense measured as their baseline."""

from __future__ import annotations

from itertools import pairwise

import torch
from timm.layers.conv_bn_act import ConvNormAct
from torch import nn
from torch.nn import functional as F


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(ConvNormAct(in_channels, out_channels, 3), ConvNormAct(out_channels, out_channels, 3))


class OrganisersUnet(nn.Module):
    """U-Net of Ronneberger et al. 2015 (MICCAI), figure 1: 23 convolutional layers, four poolings, skips concatenated.

    As in the organisers' code, convolutions are padded and followed by batch norm, so the logits have the size of the
    input. They count 23 layers, as the U-Net paper does; that includes its four up-convolutions, which their code
    replaces by bilinear interpolation.

    Args:
        in_channels: Number of bands.
        width: Channels at full resolution; they double with every pooling.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        upwards = [*pairwise(reversed(widths))]
        self.down = nn.ModuleList(_double(a, b) for a, b in pairwise([in_channels, *widths]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in upwards)
        self.join = nn.ModuleList(_double(a, b) for a, b in upwards)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, h, w) of (N, C, h, w); h and w are multiples of 16."""
        skips: list[torch.Tensor] = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits
