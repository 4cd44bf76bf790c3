"""The multi-spectral U-Net of team sklgp (Landslide4Sense 2022, special prize): fine bands keep their resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.layers.conv_bn_act import ConvNormAct
from torch import nn
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import InvertedResidual  # type: ignore[import-untyped]

#: Bands that Sentinel-2 measures at 10 m, for the high-resolution branch.
FINE_BANDS = ("B2", "B3", "B4", "B8")


class SMU(nn.Module):
    """Smooth maximum unit (Biswas et al. 2022, CVPR): ``((1 + a) x + (1 - a) x erf(m (1 - a) x)) / 2``.

    A leaky ReLU of slope ``alpha`` whose corner is smooth; the sharpness ``mu`` is learnt. ``mu`` begins at 1: from
    much larger values (a hard corner) it gets no gradient, and float16 weights cannot hold them.

    Args:
        alpha: Slope for large negative inputs.
        mu: First value of the sharpness.
    """

    def __init__(self, alpha: float = 0.25, mu: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.mu = nn.Parameter(torch.tensor(mu))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as ``x``."""
        a = self.alpha
        return ((1 + a) * x + (1 - a) * x * torch.erf(self.mu * (1 - a) * x)) / 2


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(ConvNormAct(in_channels, out_channels, 3, stride=stride, apply_act=False), SMU())


class Residual(nn.Module):
    """Two convolutions around which the input goes (He et al. 2016, CVPR), with SMU in place of ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _conv(channels, channels), ConvNormAct(channels, channels, 3, apply_act=False)
        )
        self.activation = SMU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as ``x``."""
        y: torch.Tensor = self.activation(x + self.convolutions(x))
        return y


class ResidualUnet(nn.Module):
    """Three downsamplings by strided convolution, bilinear upsampling, skips added; features at full resolution.

    Args:
        in_channels: Number of bands.
        widths: Channels at each of the four resolutions, the finest first.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(in_channels, widths[0]), Residual(widths[0]))
        self.down = nn.ModuleList(nn.Sequential(_conv(a, b, stride=2), Residual(b)) for a, b in pairwise(widths))
        upwards = [*pairwise(reversed(widths))]
        self.narrow = nn.ModuleList(ConvNormAct(a, b, 1, apply_act=False) for a, b in upwards)
        self.join = nn.ModuleList(Residual(b) for _, b in upwards)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, widths[0], h, w) of (N, C, h, w); h and w are multiples of 8."""
        skips = [self.stem(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        y: torch.Tensor = skips.pop()
        for narrow, join in zip(self.narrow, self.join, strict=True):
            # narrowed before it is enlarged: the same result (both are linear) from a quarter of the work
            y = F.interpolate(narrow(y), scale_factor=2, mode="bilinear", align_corners=False)
            y = join(y + skips.pop())
        return y


class MultispectralUnet(nn.Module):
    """Multi-spectral U-Net (Ghorbanzadeh et al. 2022, IEEE JSTARS 15, the section on team sklgp).

    The high-resolution branch sees the 10 m bands through inverted residuals (Sandler et al. 2018, CVPR) and never
    downsamples; the general branch sees all bands through a residual U-Net. Their features, ``width`` channels each,
    are concatenated. The number of blocks, their expansion and the general branch's deeper widths (2, 3 and 4 times
    ``width``) are ours.

    Args:
        in_channels: Number of bands.
        fine: Positions of ``FINE_BANDS`` among the bands; ``zoo.preset`` fills them in.
        width: Channels of each branch's features.
        blocks: Inverted residuals in the high-resolution branch.

    Raises:
        ValueError: ``fine`` names no band, or one that is not there.
    """

    def __init__(self, in_channels: int, fine: Sequence[int], width: int = 128, blocks: int = 3) -> None:
        super().__init__()
        if not fine or not {*fine} <= {*range(in_channels)}:
            raise ValueError(f"high-resolution bands at {[*fine]} of {in_channels}")
        self.fine = [*fine]
        channels = [len(self.fine), *[width] * blocks]
        self.high = nn.Sequential(*(InvertedResidual(a, b, stride=1, expand_ratio=4) for a, b in pairwise(channels)))
        self.general = ResidualUnet(in_channels, [width * i for i in (1, 2, 3, 4)])
        self.head = nn.Conv2d(2 * width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, h, w) of (N, C, h, w); h and w are multiples of 8."""
        features = torch.cat([self.high(x[:, self.fine]), self.general(x)], dim=1)
        logits: torch.Tensor = self.head(features)
        return logits
