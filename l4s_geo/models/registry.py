"""Finding models (bundled or in a folder), checking and loading their weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from l4s_geo.errors import ModelError
from l4s_geo.models.card import CARD, Card, Network, sha256
from l4s_geo.paths import exists, shorten

if TYPE_CHECKING:
    import torch
    from torch import nn

BUNDLED = Path(__file__).parent / "bundled"

#: Mapped with when no ``--model`` is given.
DEFAULT = "l4s-rgb"


@dataclass(frozen=True)
class Model:
    """A card and the directory that it lies in."""

    card: Card
    folder: Path


def bundled_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob(f"*/{CARD}"))


def find(name: str) -> Model:
    """A bundled model by name, or a model directory by path.

    Raises:
        ModelError: Neither; the message lists what there is.
    """
    folder = BUNDLED / name
    if not exists(folder / CARD):
        folder = Path(name)
    if not exists(folder / CARD):
        raise ModelError(
            f"Unknown model {shorten(name)!r}: bundled are {', '.join(bundled_names()) or 'none'}; "
            f"anything else must be a folder with a {CARD}."
        )
    return Model(Card.load(folder), folder)


def load_card(name: str) -> Card:
    """The card of a bundled model or of a model directory."""
    return find(name).card


def list_models() -> list[Card]:
    """Cards of the bundled models."""
    return [load_card(name) for name in bundled_names()]


def load_network(model: Model, network: Network) -> nn.Module:
    """Build a member network, check its weights against the card and load them (float32, evaluation mode).

    Raises:
        ModelError: Weights missing, damaged, or not of this architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from l4s_geo.models.zoo import at_scale, build

    path = model.folder / network.weights
    if not exists(path):
        raise ModelError(f"Model {model.card.name}: weights {path} are missing. Install or export the model again.")
    try:
        found = sha256(path)
    except OSError as e:
        raise ModelError(f"Model {model.card.name}: {path} cannot be read ({e.strerror}).") from e
    if found != network.sha256:
        raise ModelError(f"Model {model.card.name}: {path} does not match the checksum in {CARD}; it is damaged.")
    net = build(network.architecture, network.args, len(model.card.bands))
    try:
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    except (SafetensorError, RuntimeError) as e:
        raise ModelError(f"Model {model.card.name}: {path} does not hold {network.architecture} weights: {e}.") from e
    if not all(bool(p.isfinite().all()) for p in net.state_dict().values()):
        raise ModelError(f"Model {model.card.name}: {path} has weights that are no numbers. Its training went wrong.")
    return at_scale(net, network.scale).eval()


def save_network(
    net: nn.Module, folder: Path, name: str, architecture: str, args: dict[str, object], scale: float = 1.0
) -> Network:
    """Write a network's weights (float16) and describe them for the card."""
    from safetensors.torch import save

    state: dict[str, torch.Tensor] = {
        k: (v.half() if v.is_floating_point() else v).detach().cpu().contiguous() for k, v in net.state_dict().items()
    }
    path = folder / f"{name}.safetensors"
    path.write_bytes(save(state))  # save_file makes files that nobody else may read
    return Network(name, architecture, dict(args), path.name, sha256(path), scale)
