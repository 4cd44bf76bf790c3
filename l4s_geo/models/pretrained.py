"""Networks whose encoder starts from ImageNet weights, where the model hub or its local cache has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from textwrap import shorten
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants
from torch import nn

from l4s_geo.errors import reason
from l4s_geo.models import zoo

#: Seconds until the hub counts as unreachable.
PATIENCE = 5.0


def build(architecture: str, args: dict[str, Any], in_channels: int) -> tuple[nn.Module, str | None]:
    """A network as ``zoo.build`` makes it, with pretrained encoder weights if they can be had.

    The first layer of the encoder is fitted to the number of bands by its library, which repeats the weights of red,
    green and blue and scales them. Only the start of a training needs this: weights of a model come from its folder.

    Args:
        architecture: As in ``zoo.build``.
        args: As in ``zoo.build``.
        in_channels: Number of bands.

    Returns:
        The network, and a note for the user where it starts from random weights.

    Raises:
        ModelError: The architecture or its arguments are not known.
    """
    net = zoo.build(architecture, args, in_channels)
    encoder = args.get("encoder_name")
    if encoder is None:
        return net, f"{architecture} has no pretrained encoder: it starts from random weights."
    imagenet = True if encoder.startswith("tu-") else "imagenet"
    with _reach_hub() as why:
        try:
            return zoo.build(architecture, args, in_channels, imagenet), None
        except Exception as e:  # the libraries of the hub raise unrelated types; the arguments were good above
            why = why or shorten(reason(e), 200)
    return net, f"No pretrained weights for the encoder {encoder} ({why}): it starts from random weights."


@contextmanager
def _reach_hub() -> Iterator[str]:
    """Asks the hub once; without an answer only its local cache is used, because every file would be tried for minutes.

    Yields why only the cache is used, empty if the hub answers.
    """
    why = "" if constants.HF_HUB_OFFLINE else _silence()
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(why)
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = before


def _silence() -> str:
    """Why the hub does not answer, empty if it does; refusing this request is an answer, being out of order is not."""
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
    except HTTPError as e:
        return f"the model hub is out of order: {e}" if e.code >= 500 else ""
    except (OSError, HTTPException) as e:
        return f"the model hub cannot be reached: {e}"
    return ""
