"""Losses over landslide logits; pixels of unknown class (255) do not count."""

from __future__ import annotations

import torch
from torch.nn import functional as F

UNKNOWN = 255


def jaccard_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Soft Jaccard loss over the whole batch: ``1 - sum(p y) / sum(p + y - p y)`` (Rahman and Wang 2016, ISVC).

    Over the batch rather than per image: a patch without landslides then does not turn every faint probability into
    a loss of one.

    Args:
        logits: (N, 1, h, w).
        truth: (N, h, w) uint8 or int64: 0, 1, or 255 for unknown.
    """
    known = truth != UNKNOWN
    p = logits.squeeze(1).sigmoid()[known]
    y = (truth[known] == 1).to(p.dtype)
    both = (p * y).sum()
    return 1 - (both + 1) / ((p + y).sum() - both + 1)


def cross_entropy(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over the known pixels; arguments as in ``jaccard_loss``."""
    known = truth != UNKNOWN
    z = logits.squeeze(1)[known]
    if not z.numel():
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(z, (truth[known] == 1).to(z.dtype))


def cross_entropy_jaccard(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus batch Jaccard at equal weight: broad threshold curves and the better F1 of what we tried."""
    return cross_entropy(logits, truth) + jaccard_loss(logits, truth)
