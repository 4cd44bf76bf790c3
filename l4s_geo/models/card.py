"""A model card: everything that prediction needs to know about a model, as data.

A model is a directory with ``card.json`` and one ``*.safetensors`` file per member network. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from l4s_geo.calibration import Calibration
from l4s_geo.errors import InputError, ModelError, reason
from l4s_geo.normalize import WAYS
from l4s_geo.paths import check_input

CARD = "card.json"


@dataclass(frozen=True)
class Network:
    """One member network: an architecture of the zoo and its weights.

    Attributes:
        name: Unique inside the model.
        architecture: Name known to ``l4s_geo.models.zoo``.
        args: Arguments of that architecture.
        weights: File name beside the card.
        sha256: Of the weights file.
        scale: Patches are resized by this before the network sees them.
    """

    name: str
    architecture: str
    args: dict[str, Any]
    weights: str
    sha256: str
    scale: float = 1.0


@dataclass(frozen=True)
class Card:
    """What ``card.json`` says.

    Attributes:
        name: Model name, as ``--model`` takes it.
        version: Of the model, not of the package.
        licence: SPDX identifier.
        networks: Members of the ensemble; their probabilities are averaged.
        bands: Input bands, in order.
        input_units: ``dn`` (Sentinel-2 digital numbers), degrees and metres for slope and DEM.
        compression: Of the normalizer (``asinh`` or ``none``).
        statistics: Statistics of the training data (``Normalizer.to_dict``), for ``--normalize model``.
        resolution_m: Ground size of a pixel that it was trained on.
        thresholds: Calibrated probability at or above which a pixel is landslide: ``balanced`` (best F1), ``recall``
            (best F2) and ``precision`` (best F0.5), tuned on ``threshold_split``.
        threshold_split: What the thresholds were tuned on.
        normalization: Where the statistics come from: as in ``l4s_geo.settings.normalizer_for``, but no file.
        crf: Parameters of the dense CRF and whether it is on by default.
        training: Data, holdouts, settings.
        metrics: Measured figures; each names its split.
        adapted: Whether self-training fitted it to scenes without labels.
        calibration: What makes probabilities of what the networks say, and the labels that it was fitted to
            (``l4s_geo.calibration.describe``); empty where they are taken at their word.
    """

    name: str
    version: str
    licence: str
    networks: tuple[Network, ...]
    bands: tuple[str, ...]
    input_units: str
    compression: Literal["none", "asinh"]
    statistics: dict[str, Any]
    resolution_m: float
    thresholds: dict[str, float]
    threshold_split: str
    normalization: str = "scene"
    crf: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    adapted: bool = False
    calibration: dict[str, Any] = field(default_factory=dict)

    def uncalibrated(self) -> Card:
        """The same model with its networks taken at their word, and thresholds that draw the same map."""
        inverse = Calibration.from_dict(self.calibration).inverse
        return replace(self, calibration={}, thresholds={k: float(inverse(t)) for k, t in self.thresholds.items()})

    def calibrated(self, calibration: dict[str, Any]) -> Card:
        """A model without calibration with one, and thresholds that draw the same map."""
        apply = Calibration.from_dict(calibration).apply
        thresholds = {k: round(float(apply(t)), 9) for k, t in self.thresholds.items()}
        return replace(self, calibration=calibration, thresholds=thresholds)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Write ``card.json`` into a model directory."""
        (folder / CARD).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Read the card of a model directory.

        Raises:
            ModelError: There is no card, or it lacks a field.
        """
        path = folder / CARD
        try:
            check_input(path)
            values = json.loads(path.read_text(encoding="utf-8"))
            networks = tuple(Network(**n) for n in values.pop("networks"))
            card = cls(**{**values, "networks": networks, "bands": tuple(values["bands"])})
            faults = [*card.faults()]
        except InputError as e:
            raise ModelError(f"No model in {folder}: {e}") from e
        except OSError as e:
            raise ModelError(f"No model in {folder}: {path.name} cannot be read ({e.strerror}).") from e
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise ModelError(
                f"{path} is not a model card of this version: {reason(e)}. Install or export it again."
            ) from e
        if faults:
            raise ModelError(f"{path} is damaged: {'; '.join(faults)}. Install or export the model again.")
        return card

    def faults(self) -> Iterator[str]:
        """What is wrong with the values that prediction relies on; fields of a wrong type raise TypeError."""
        if not self.networks or not all(isinstance(n.weights, str) for n in self.networks):
            yield "it needs networks, each with its weights"
        if not self.bands or not all(isinstance(b, str) for b in self.bands):
            yield "it needs the names of bands"
        if self.compression not in ("none", "asinh"):
            yield f"unknown compression {self.compression!r}"
        if self.normalization not in WAYS:
            yield f"unknown normalization {self.normalization!r}"
        for name, value in (("resolution_m", self.resolution_m), *(("scale", n.scale) for n in self.networks)):
            if not (math.isfinite(value) and value > 0):
                yield f"{name} is {value:g}"
        missing = {"balanced", "recall", "precision"} - {*self.thresholds}
        if missing:
            yield f"no threshold {', '.join(sorted(missing))}"
        if not all(0 <= t <= 1 for t in {**self.thresholds}.values()):
            yield "thresholds must lie between 0 and 1"
        if not all(isinstance(v, dict) for v in (self.statistics, self.crf, self.calibration)):
            yield "statistics, crf and calibration must be objects"
            return
        try:
            Calibration.from_dict(self.calibration)
        except ValueError as e:
            yield str(e)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
