"""Random changes of a batch of crops that a landslide stays a landslide under.

Geometry: turns, flips, scale, unequal pixel sides. Radiometry: gain and offset per band and common, saturation,
sharpness. Landslides are also pasted into patches that have none. All work on linearly standardized values, before
compression.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from l4s_geo.data.patches import UNKNOWN


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
        saturation: Standard deviation of the logarithm of what multiplies each band's difference from the mean of the
            bands: scars are grey in one region and brown in another.
        sharpness: Half range of the side weights of a three-pixel filter, which blurs (above 0) or sharpens (below):
            renderings of the same ground differ in that.
        paste_share: Share of the patches without landslides that get those of another patch.
    """

    affine_share: float = 0.5
    scale: float = 0.3
    stretch: float = 0.2
    gain: float = 0.25
    gain_shift: float = -0.15
    band_gain: float = 0.05
    offset: float = 0.1
    band_offset: float = 0.05
    saturation: float = 0.25
    sharpness: float = 0.12
    paste_share: float = 0.8


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


def resharpen(x: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """Filter patches (N, C, h, w) along both axes with (side, 1 - 2 side, side), one weight per patch (N,)."""
    n, c, h, w = x.shape
    kernel = torch.stack([side, 1 - 2 * side, side], 1).repeat_interleave(c, 0)[:, None]  # (N * C, 1, 3)
    flat = F.pad(x.reshape(1, n * c, h, w), (1, 1, 1, 1), mode="replicate")
    flat = F.conv2d(flat, kernel[:, :, None, :], groups=n * c)
    return F.conv2d(flat, kernel[:, :, :, None], groups=n * c).reshape(n, c, h, w)


def radiometry(x: torch.Tensor, how: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Change brightness and colour of standardized patches (N, C, h, w)."""
    n, c = x.shape[:2]

    def normal(common: float, band: float) -> torch.Tensor:
        return (
            torch.randn(n, 1, 1, 1, generator=generator) * common + torch.randn(n, c, 1, 1, generator=generator) * band
        )

    much = torch.rand(n, 1, 1, 1, generator=generator)
    x = resharpen(x, (torch.rand(n, generator=generator) * 2 - 1) * how.sharpness)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (much * normal(how.saturation, 0)).exp()
    x = x * (much * (normal(how.gain, how.band_gain) + how.gain_shift)).exp()
    return x + much * normal(how.offset, how.band_offset)


def paste(
    x: torch.Tensor, y: torch.Tensor, seen: torch.Tensor, share: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the landslides of other patches of the batch into a share of those that have none (Ghiasi et al. 2021, CVPR).

    Scenes without landslides look unlike the labelled regions. Left as they are, they teach a network that nothing is
    a landslide where the land looks foreign.

    Args:
        x: (N, C, h, w) patches.
        y: (N, h, w) truth.
        seen: (N, h, w) valid pixels.
        share: Of the patches without landslides that get some.
        generator: Of this batch.
    """
    scars = (y == 1) & seen
    has = scars.flatten(1).any(1)
    chosen = ~has & (torch.rand(len(y), generator=generator) < share)
    if not has.any() or not chosen.any():
        return x, y
    givers = has.nonzero().squeeze(1)
    giver = givers[torch.randint(len(givers), (int(chosen.sum()),), generator=generator)]
    pasted = scars[giver] & seen[chosen]
    # A border of one pixel is mixed, as the sensor would mix it.
    weight = F.avg_pool2d(pasted[:, None].float(), 3, stride=1, padding=1) * seen[giver][:, None]
    x, y = x.clone(), y.clone()
    x[chosen] = weight * x[giver] + (1 - weight) * x[chosen]
    y[chosen] = torch.where(pasted, 1, y[chosen])
    return x, y


def augment(
    image: torch.Tensor,
    truth: torch.Tensor,
    valid: torch.Tensor,
    patch: int,
    how: Augmentation,
    spectral: torch.Tensor,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Geometry and radiometry together; equal seeds give equal batches.

    Args:
        image: (N, C, n, n) float32, linearly standardized.
        truth: (N, n, n) uint8: 0, 1, 255.
        valid: (N, n, n) bool.
        patch: Side of the patches to make.
        how: Strengths.
        spectral: (C,) bool, channels whose brightness and colour change; slope and elevation do not.
        seed: Of this batch.

    Returns:
        Patches (N, C, patch, patch), truth (N, patch, patch) int64, valid (N, patch, patch).
    """
    generator = torch.Generator().manual_seed(seed)
    x, y, seen = geometry(image, truth, valid, patch, how, generator)
    if spectral.any():
        x[:, spectral] = radiometry(x[:, spectral], how, generator)
    x, y = paste(x, torch.where(seen, y, UNKNOWN), seen, how.paste_share, generator)
    return x, y, seen
