"""Changes of a batch that mix its patches or hide parts of them: CutMix, cutout and mix-up.

They work on what the network sees, that is after normalization, geometry, colour and compression, where 0 stands for
"no data". Random numbers come from one generator on the CPU: equal seeds give equal batches on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from l4s_geo.data.patches import UNKNOWN
from l4s_geo.errors import InputError


@dataclass(frozen=True)
class Mixing:
    """What to do to a batch, in this order; each is off at 0.

    Attributes:
        cutmix: Share of the pairs of patches that swap a rectangle.
        cutout: Share of the patches that lose a square.
        cutout_side: Side of that square as a share of the patch's (in the paper a half for CIFAR-10, a quarter
            for CIFAR-100).
        mix_up: Parameter alpha of the Beta distribution of the shares (0.1 to 0.4 for ImageNet in the paper).

    Raises:
        InputError: A value out of its range.
    """

    cutmix: float = 0.0
    cutout: float = 0.0
    cutout_side: float = 0.25
    mix_up: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cutmix", "cutout", "cutout_side"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name!r} must be from 0 to 1, not {getattr(self, name)!r}.")
        if not 0 <= self.mix_up < float("inf"):
            raise InputError(f"'mix_up' must be 0 or more, not {self.mix_up!r}.")


@dataclass(frozen=True)
class Mixed:
    """Patches, and one or two truths that they are to be measured against.

    A mixed pixel has two truths. Rather than a soft truth, which many losses have no definition for, the loss itself is
    mixed: ``sum(share * loss(logits, truth))``. For cross-entropy this is the same as a soft truth.

    Attributes:
        image: (N, C, h, w).
        truths: Shares, which sum up to 1, and truths (N, h, w).
    """

    image: torch.Tensor
    truths: tuple[tuple[float, torch.Tensor], ...]

    def loss(self, of: Callable[..., torch.Tensor], logits: torch.Tensor, *more: torch.Tensor | None) -> torch.Tensor:
        """The loss of the network's answer to ``image``.

        Args:
            of: Takes logits, a truth and whatever is in ``more``.
            logits: (N, 1, h, w).
            more: Further outputs, such as the logits of whole images.
        """
        return torch.stack([share * of(logits, truth, *more) for share, truth in self.truths]).sum()


def mix(x: torch.Tensor, y: torch.Tensor, how: Mixing, generator: torch.Generator) -> Mixed:
    """CutMix, cutout and mix-up of patches (N, C, h, w) and truth (N, h, w), which are left as they are."""
    if how.cutmix:
        x, y = cutmix(x, y, how.cutmix, generator)
    if how.cutout:
        x, y = cutout(x, y, how.cutout, how.cutout_side, generator)
    return mix_up(x, y, how.mix_up, generator) if how.mix_up else Mixed(x, ((1.0, y),))


def rectangles(area: torch.Tensor, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Rectangles of the image's proportions, cut off at its border.

    Their centre may lie on any pixel (DeVries and Taylor 2017; Yun et al. 2019), so that all pixels near the border are
    covered as well; what is covered is therefore less than ``area`` on average.

    Args:
        area: (K,) share of the image, before the cut.
        height: Of the image, pixels.
        width: Of the image, pixels.
        generator: Of this batch.

    Returns:
        (K, height, width) bool.
    """

    def span(size: int) -> torch.Tensor:
        centre = torch.rand(len(area), 1, generator=generator) * size
        return (torch.arange(size) + 0.5 - centre).abs() < area.sqrt()[:, None] * size / 2

    return span(height)[:, :, None] & span(width)[:, None, :]


def cutout(
    x: torch.Tensor, y: torch.Tensor, share: float, side: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set a square of some patches to 0 (DeVries and Taylor 2017, arXiv 1708.04552).

    The paper classifies whole images, which keep their class. A hidden pixel has no class that the network could see,
    and 0 stands for "no data", which is never mapped: its truth becomes unknown, as hidden pixels are left out of the
    loss in French et al. 2020 (BMVC). What is learnt is to judge the pixels around without the hidden ones.

    Args:
        x: (N, C, h, w) patches.
        y: (N, h, w) truth.
        share: Of the patches.
        side: Of the square, as a share of the patch's.
        generator: Of this batch.
    """
    chosen = torch.rand(len(x), generator=generator) < share
    hidden = rectangles(chosen * side**2, x.shape[-2], x.shape[-1], generator).to(x.device)
    return x.masked_fill(hidden[:, None], 0), y.masked_fill(hidden, UNKNOWN)


def cutmix(
    x: torch.Tensor, y: torch.Tensor, share: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let patches swap a rectangle with its truth (Yun et al. 2019, ICCV; for segmentation French et al. 2020, BMVC).

    The area is uniform in 0..1, as in the paper (alpha = 1). The patches are drawn in pairs and both get the other's
    rectangle: no pixel of the batch is lost or seen twice, so the share of landslides stays. A truth goes with its
    pixels, the unknown as well.

    Args:
        x: (N, C, h, w) patches.
        y: (N, h, w) truth.
        share: Of the pairs.
        generator: Of this batch.
    """
    count = len(x)
    first, second = torch.randperm(count, generator=generator)[: count // 2 * 2].reshape(2, -1)
    partner = torch.arange(count)
    partner[first], partner[second] = second, first
    area = torch.rand(len(first), generator=generator) * (torch.rand(len(first), generator=generator) < share)
    swapped = torch.zeros(count, *y.shape[1:], dtype=torch.bool)
    swapped[first] = swapped[second] = rectangles(area, x.shape[-2], x.shape[-1], generator)
    partner, swapped = partner.to(x.device), swapped.to(x.device)
    return torch.where(swapped[:, None], x[partner], x), torch.where(swapped, y[partner], y)


def mix_up(x: torch.Tensor, y: torch.Tensor, alpha: float, generator: torch.Generator) -> Mixed:
    """Blend each patch with another one of the batch, all at one share (Zhang et al. 2018, ICLR).

    A blend of something known with something unknown is unknown: both truths are 255 there. Labelled and unlabelled
    patches are mixed alike, each among themselves or concatenated; the truth of unlabelled ones is what a teacher says:
    0, 1 and 255, or its probability.

    Args:
        x: (N, C, h, w) patches.
        y: (N, h, w) truth.
        alpha: The share is drawn from Beta(alpha, alpha).
        generator: Of this batch.
    """
    # torch's Beta distribution takes no generator.
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    share = float(rng.beta(alpha, alpha))
    other = torch.randperm(len(x), generator=generator).to(x.device)
    unknown = (y == UNKNOWN) | (y[other] == UNKNOWN)
    truths = ((share, y.masked_fill(unknown, UNKNOWN)), (1 - share, y[other].masked_fill(unknown, UNKNOWN)))
    return Mixed(torch.lerp(x[other], x, share), truths)
