"""Losses over landslide logits, and their sums as a recipe writes them; pixels of unknown class (255) do not count.

All losses are computed in float32 whatever the network's type, and are 0 with zero gradients where nothing is known.
Truth is 0, 1 or 255; it may also be a probability, which the cross-entropies and the Jaccard loss take as it is and the
others as landslide from 0.5 on.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from segmentation_models_pytorch.losses import FocalLoss
from torch.nn import functional as F

from l4s_geo.data.patches import UNKNOWN
from l4s_geo.errors import InputError, ModelError, meant

Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over the known pixels.

    torch's function on the known pixels alone: ``SoftBCEWithLogitsLoss`` of segmentation-models-pytorch divides by the
    number of all pixels, so that its loss shrinks with the share that is known.

    Args:
        logits: (N, 1, h, w), of any floating type.
        truth: (N, h, w): 0, 1 (or between), 255 for unknown.

    Returns:
        A scalar, float32.
    """
    z, y = _known(logits, truth)
    return _mean(_entropy(z, y))


def weighted_cross_entropy(logits: torch.Tensor, truth: torch.Tensor, *, positive: float = 5.0) -> torch.Tensor:
    """Cross-entropy in which a landslide pixel counts ``positive`` times, divided by the sum of the weights.

    This is what ``torch.nn.CrossEntropyLoss`` makes of class weights 1 : ``positive``; the size of the loss, and so
    the learning rate that fits, hardly depends on the weight. Arguments as in ``cross_entropy``.
    """
    z, y = _known(logits, truth)
    weight = 1 + (positive - 1) * y
    return (weight * _entropy(z, y)).sum() / weight.sum().clamp(min=1e-6)


def balanced_cross_entropy(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with landslide pixels weighted by Nneg / Npos of their own image (SwinLS, Zhao et al. 2022).

    The two classes of an image then weigh the same. Images that show one class only keep the weight 1. Divided by the
    sum of the weights, as in ``weighted_cross_entropy``; arguments as in ``cross_entropy``.
    """
    z, y, known = _flat(logits, truth)
    positives, negatives = y.sum(1), ((1 - y) * known).sum(1)
    both = (positives > 0) & (negatives > 0)
    ratio = torch.where(both, negatives / positives.clamp(min=1e-6), 1.0)
    weight = known * (1 + (ratio[:, None] - 1) * y)
    return (weight * _entropy(z, y)).sum() / weight.sum().clamp(min=1e-6)


def soft_cross_entropy(logits: torch.Tensor, truth: torch.Tensor, *, smoothing: float = 0.1) -> torch.Tensor:
    """Cross-entropy against labels that are ``smoothing`` less sure (Szegedy et al. 2016, CVPR).

    The target is ``(1 - smoothing) y + smoothing / 2``. ``SoftCrossEntropyLoss`` of segmentation-models-pytorch is
    defined alike, but needs two logits and divides by the number of all pixels, unknown ones included. Arguments
    as in ``cross_entropy``.
    """
    z, y = _known(logits, truth)
    return _mean(_entropy(z, (1 - smoothing) * y + smoothing / 2))


def focal(logits: torch.Tensor, truth: torch.Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> torch.Tensor:
    """Focal loss ``-a (1 - p)^gamma log p`` of the true class, a = alpha or 1 - alpha (Lin et al. 2017, ICCV).

    The mean over the known pixels rather than the paper's sum over the positive ones, which a patch may not have.
    Arguments as in ``cross_entropy``.
    """
    z, y = _known(logits, truth)
    # The library's own mean of no pixel is not a number.
    return _mean(FocalLoss("binary", alpha=alpha, gamma=gamma, reduction="none")(z, (y >= 0.5).float()))


def lovasz(logits: torch.Tensor, truth: torch.Tensor, *, per_image: bool = False) -> torch.Tensor:
    """Lovasz hinge: the convex extension of the Jaccard loss over hinge errors (Berman et al. 2018, CVPR).

    Over the batch, or the mean over the images that have known pixels. Arguments as in ``cross_entropy``.

    ``LovaszLoss`` of segmentation-models-pytorch is defined alike, but takes its weights as differences of float32
    numbers near 1, and refuses float64: over 16 patches of 512 x 512 random pixels half of the gradients were off by
    more than 10 %, and 13 % were 0.
    """
    z, y, known = _flat(logits, truth)
    if not per_image:
        z, y, known = z.reshape(1, -1), y.reshape(1, -1), known.reshape(1, -1)
    y = (y >= 0.5).float()
    # Unknown pixels come last, where the hinge is 0.
    errors = (1 - z * (2 * y - 1)).masked_fill(~known, -math.inf)
    order = errors.detach().argsort(dim=1, descending=True)
    scars, others = y.gather(1, order).double(), ((1 - y) * known).gather(1, order).double()
    total = scars.sum(1, keepdim=True)
    union = (total + others.cumsum(1)).clamp(min=1)
    jaccard = 1 - (total - scars.cumsum(1)) / union
    weight = jaccard.diff(dim=1, prepend=torch.zeros_like(total)).float()
    each = (errors.gather(1, order).relu() * weight).sum(1)
    return each.sum() / known.any(1).sum().clamp(min=1)


def jaccard_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Soft Jaccard loss over the whole batch: ``1 - sum(p y) / sum(p + y - p y)`` (Rahman and Wang 2016, ISVC).

    Over the batch rather than per image: a patch without landslides then does not turn every faint probability into
    a loss of one. One pixel is added above and below. ``JaccardLoss`` of segmentation-models-pytorch drops the loss of
    a batch without landslides, so that false alarms there would cost nothing. Arguments as in ``cross_entropy``.
    """
    z, y = _known(logits, truth)
    p = z.sigmoid()
    both = (p * y).sum()
    return 1 - (both + 1) / ((p + y).sum() - both + 1)


def ohem(logits: torch.Tensor, truth: torch.Tensor, *, share: float = 0.25, minimum: int = 4096) -> torch.Tensor:
    """Online hard example mining: mean cross-entropy of the hardest known pixels of the batch alone.

    Shrivastava et al. 2016 (CVPR) keep the regions of the highest loss; here, as is usual for segmentation, pixels.
    Arguments as in ``cross_entropy``.

    Args:
        logits: (N, 1, h, w).
        truth: (N, h, w).
        share: Of the known pixels that is kept.
        minimum: Fewest pixels that are kept, where so many are known.
    """
    losses = _entropy(*_known(logits, truth))
    kept = min(len(losses), max(math.ceil(share * len(losses)), minimum))
    return _mean(losses.topk(kept, sorted=False).values)


def image_level(logits: torch.Tensor, truth: torch.Tensor, *, known: float = 0.5) -> torch.Tensor:
    """Cross-entropy of an image's logit against "holds any landslide" (SwinLS, Zhao et al. 2022).

    An image without a known landslide pixel counts as one without landslides only if enough of it is known.

    Args:
        logits: (N, 1), or (N, 1, h', w') to be averaged over positions: the head on the encoder's pooled features,
            not the logits of pixels.
        truth: (N, h, w).
        known: Smallest share of known pixels from which on "none" counts.
    """
    z = logits.float().flatten(1).mean(1)
    seen = (truth != UNKNOWN).flatten(1)
    holds = ((truth >= 0.5).flatten(1) & seen).any(1)
    counts = holds | (seen.float().mean(1) >= known)
    return (_entropy(z, holds.float()) * counts).sum() / counts.sum().clamp(min=1)


def _flat(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and truth (0 where unknown), float32, and what is known, bool; each (N, pixels)."""
    z, y = logits.float().flatten(1), truth.flatten(1)
    known = y != UNKNOWN
    return z, y.float() * known, known


def _known(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and truth of the known pixels, float32."""
    z, y, known = _flat(logits, truth)
    return z[known], y[known]


def _entropy(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(z, y, reduction="none")


def _mean(losses: torch.Tensor) -> torch.Tensor:
    """The mean; 0, with a gradient of 0, of none."""
    return losses.sum() / max(1, losses.numel())


#: Names in recipes. A loss's options are its keyword-only arguments.
PIXEL_LOSSES: Final[Mapping[str, Callable[..., torch.Tensor]]] = {
    "cross-entropy": cross_entropy,
    "weighted-cross-entropy": weighted_cross_entropy,
    "balanced-cross-entropy": balanced_cross_entropy,
    "soft-cross-entropy": soft_cross_entropy,
    "focal": focal,
    "lovasz": lovasz,
    "jaccard": jaccard_loss,
    "ohem": ohem,
}

#: Losses of an image's own logit.
IMAGE_LOSSES: Final[Mapping[str, Callable[..., torch.Tensor]]] = {"image-level": image_level}

#: What the numbers in a recipe must be. Below a gamma of 1 the focal loss has no finite gradient at sure pixels.
_RULES: Final[Mapping[str, tuple[Callable[[float], bool], str]]] = {
    "weight": (lambda v: v > 0, "above 0"),
    "positive": (lambda v: v > 0, "above 0"),
    "smoothing": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "gamma": (lambda v: v >= 1, "1 or more"),
    "alpha": (lambda v: 0 < v < 1, "between 0 and 1"),
    "share": (lambda v: 0 < v <= 1, "above 0, up to 1"),
    "minimum": (lambda v: v >= 1, "1 or more"),
    "known": (lambda v: 0 < v <= 1, "above 0, up to 1"),
}


@dataclass(frozen=True)
class Loss:
    """A weighted sum of losses.

    Attributes:
        pixel: Weights and losses of the pixels' logits.
        image: Weights and losses of the images' logits; where there are any the network needs a head for them.
    """

    pixel: tuple[tuple[float, Term], ...]
    image: tuple[tuple[float, Term], ...] = ()

    def __call__(
        self, logits: torch.Tensor, truth: torch.Tensor, image_logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sum for logits (N, 1, h, w), truth (N, h, w) and, where needed, image logits (N, 1).

        Raises:
            ModelError: An image-level loss without image logits.
        """
        losses = [weight * term(logits, truth) for weight, term in self.pixel]
        if self.image:
            if image_logits is None:
                raise ModelError(
                    f"The loss {', '.join(IMAGE_LOSSES)} needs a network with a head for whole images. Choose such an "
                    "architecture, or take that loss out of the recipe."
                )
            losses += [weight * term(image_logits, truth) for weight, term in self.image]
        return torch.stack(losses).sum()


def compose(recipe: Mapping[str, object]) -> Loss:
    """Make a loss from a recipe's table: names, each with its weight or with a table of its weight and options.

    ``{"cross-entropy": 1.0, "lovasz": {"weight": 0.5, "per_image": True}}``

    Raises:
        InputError: A name, an option or a value that does not exist or makes no sense; the message lists what there is.
    """
    if not isinstance(recipe, Mapping) or not recipe:
        raise InputError(
            f"A recipe needs at least one loss with its weight, such as {{'cross-entropy': 1.0}}, not {recipe!r}."
        )
    known = {**PIXEL_LOSSES, **IMAGE_LOSSES}
    terms = {name: _term(name, known[_checked("loss", name, known)], entry) for name, entry in recipe.items()}
    return Loss(
        pixel=tuple(term for name, term in terms.items() if name in PIXEL_LOSSES),
        image=tuple(term for name, term in terms.items() if name in IMAGE_LOSSES),
    )


def _term(name: str, loss: Callable[..., torch.Tensor], entry: object) -> tuple[float, Term]:
    given = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
    parameters = inspect.signature(loss).parameters.values()
    defaults = {"weight": 1.0} | {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option, value in given.items():
        _check_value(name, option, value, defaults[_checked(f"option of the loss {name!r}", option, defaults)])
    weight = float(given.pop("weight", 1.0))  # type: ignore[arg-type]
    return weight, partial(loss, **given)


def _check_value(name: str, option: str, value: object, default: object) -> None:
    where = f"{option!r} of the loss {name!r}"
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(f"{where} must be true or false, not {value!r}.")
        return
    right, text = _RULES[option]
    kinds, kind = (int, "a whole number") if isinstance(default, int) else (int | float, "a number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or not right(value):
        raise InputError(f"{where} must be {kind} {text}, not {value!r}.")


def _checked(what: str, name: object, known: Collection[str]) -> str:
    """``name`` if it is known.

    Raises:
        InputError: It is not; says what was probably meant and what there is.
    """
    if isinstance(name, str) and name in known:
        return name
    raise InputError(f"There is no {what} called {name!r}{meant(name, known)}. There are: {', '.join(known)}.")
