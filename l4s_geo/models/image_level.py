"""A U-Net that also says, while it learns, whether a patch holds a landslide at all."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import torch


class ImageLevelUnet(smp.Unet):  # type: ignore[misc]
    """U-Net of segmentation-models-pytorch with a classifier on the pooled features of its encoder.

    The network of team SEEK (Ghorbanzadeh et al. 2022, IEEE JSTARS 15): the image-level loss makes the encoder tell
    patches with landslides from those without. In evaluation mode it maps as any other network.

    Args:
        in_channels: Number of bands.
        args: Of the U-Net.
    """

    def __init__(self, in_channels: int, **args: Any) -> None:
        super().__init__(in_channels=in_channels, aux_params={"classes": 1, "pooling": "avg"}, **args)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, 1, h, w) of (N, C, h, w); in training mode also the logits (N, 1) of whole patches."""
        pixels, images = super().forward(x)
        return (pixels, images) if self.training else pixels
