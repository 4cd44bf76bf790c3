"""Which channels of a patch have a colour that may be changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from l4s_geo.scene.bands import TERRAIN_BANDS


def spectral_channels(bands: Sequence[str]) -> torch.Tensor:
    """True for the channels that are measured light, (C,) bool; slope and elevation do not change with haze or sun.

    Args:
        bands: Canonical band names in the order of the channels.
    """
    return torch.tensor([band not in TERRAIN_BANDS for band in bands])
