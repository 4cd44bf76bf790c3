"""Random changes of a batch of crops that a landslide stays a landslide under.

Geometry: turns, flips, scale, unequal pixel sides. Radiometry: gain and offset per band and common, gamma, haze that
varies over the patch, blur by resampling, noise. All work on linearly standardized values, before compression.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from l4s_geo.train.losses import UNKNOWN


@dataclass(frozen=True)
class Augmentation:
    """Strengths; each is a standard deviation or a half range as stated.

    The changes of brightness and colour are scaled by a number from 0 to 1 that is drawn for each crop: colour tells
    a scar from a river bed within a region, but less so in another region, and a network has to learn both.

    Attributes:
        affine_share: Share of crops that are turned by any angle and scaled; the others get flips and quarter turns.
        scale: Half range of the logarithm of the scale.
        stretch: Half range of the logarithm of the ratio of pixel sides.
        gain: Standard deviation of the logarithm of the common gain.
        gain_shift: Mean of that logarithm; below 0, because scars stand out less in most regions than in the one
            that gives most of the training pixels.
        band_gain: The same per band.
        offset: Standard deviation of the common offset, in scales of the region.
        band_offset: The same per band.
        gamma: Standard deviation of the logarithm of the exponent.
        haze: Half range of the smooth offset over the patch.
        noise: Largest standard deviation of the pixel noise.
    """

    affine_share: float = 0.5
    scale: float = 0.3
    stretch: float = 0.2
    gain: float = 0.25
    gain_shift: float = -0.08
    band_gain: float = 0.15
    offset: float = 0.12
    band_offset: float = 0.1
    gamma: float = 0.1
    haze: float = 0.3
    noise: float = 0.06


def affine(count: int, size: int, patch: int, how: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Sampling grids (count, patch, patch, 2) into crops of ``size`` pixels, in grid_sample's coordinates."""

    def uniform(half: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * half

    free = torch.rand(count, generator=generator) < how.affine_share
    quarter = torch.randint(4, (count,), generator=generator) * (torch.pi / 2)
    angle = torch.where(free, uniform(torch.pi), quarter)
    flip = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    zoom, stretch = uniform(how.scale).exp(), (uniform(how.stretch) / 2).exp()
    along, across = (torch.where(free, z, 1.0) for z in (zoom * stretch, zoom / stretch))
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros(count)
    matrix = torch.stack(
        [
            torch.stack([cos * along * flip, -sin * across, zero], 1),
            torch.stack([sin * along * flip, cos * across, zero], 1),
        ],
        1,
    )
    return F.affine_grid(matrix * (patch / size), [count, 1, patch, patch], align_corners=False)


def geometry(
    image: torch.Tensor,
    truth: torch.Tensor,
    valid: torch.Tensor,
    patch: int,
    how: Augmentation,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn, flip and scale crops (N, C, n, n), truth and valid (N, n, n): image bilinear, the rest nearest."""
    grid = affine(len(image), image.shape[-1], patch, how, generator)
    x = F.grid_sample(image, grid, mode="bilinear", align_corners=False)
    # One is added so that what lies outside of the crop (0) is told from the background (1).
    masks = torch.stack([truth.float() + 1, valid.float()], 1)
    masks = F.grid_sample(masks, grid, mode="nearest", align_corners=False)
    y = masks[:, 0].round().long() - 1
    return x, torch.where(y < 0, UNKNOWN, y), masks[:, 1] > 0.5


def radiometry(x: torch.Tensor, how: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Change brightness and colour of standardized patches (N, C, h, w)."""
    n, c = x.shape[:2]

    def normal(common: float, band: float) -> torch.Tensor:
        return (
            torch.randn(n, 1, 1, 1, generator=generator) * common + torch.randn(n, c, 1, 1, generator=generator) * band
        )

    much = torch.rand(n, 1, 1, 1, generator=generator)
    x = x * (much * (normal(how.gain, how.band_gain) + how.gain_shift)).exp()
    x = x + much * normal(how.offset, how.band_offset)
    x = x.sign() * (x.abs() + 1e-4) ** (much * normal(how.gamma, 0)).exp()
    haze = torch.rand(n, 1, 3, 3, generator=generator) * torch.rand(n, 1, 1, 1, generator=generator) * how.haze
    x = x + F.interpolate(haze, size=x.shape[-2:], mode="bicubic", align_corners=True)
    strength = torch.rand(n, 1, 1, 1, generator=generator) * how.noise
    return x + torch.randn(x.shape, generator=generator) * strength


def augment(
    image: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor, patch: int, how: Augmentation, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Geometry and radiometry together; equal seeds give equal batches.

    Args:
        image: (N, C, n, n) float32, linearly standardized.
        truth: (N, n, n) uint8: 0, 1, 255.
        valid: (N, n, n) bool.
        patch: Side of the patches to make.
        how: Strengths.
        seed: Of this batch.

    Returns:
        Patches (N, C, patch, patch), truth (N, patch, patch) int64, valid (N, patch, patch).
    """
    generator = torch.Generator().manual_seed(seed)
    x, y, seen = geometry(image, truth, valid, patch, how, generator)
    return radiometry(x, how, generator), torch.where(seen, y, UNKNOWN), seen
