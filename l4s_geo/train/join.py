"""Put trained networks together into one model, with thresholds and a calibration of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from l4s_geo.ensemble import Ensemble, choose_device, choose_dtype
from l4s_geo.errors import ModelError
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.settings import agree
from l4s_geo.tiling import PATCH
from l4s_geo.train.calibrate import areas_of
from l4s_geo.train.split import DataOptions
from l4s_geo.train.tune_crf import tune_crf
from l4s_geo.train.validate import tune


def join(names: Sequence[str], data: DataOptions, out: Path, name: str) -> Card:
    """Write an ensemble of the networks of several models, with thresholds, a calibration and a CRF tuned for it.

    Args:
        names: Models, by name or directory.
        data: Its ``validate`` blocks tune the thresholds, the calibration and the CRF of the ensemble; these stay
            untuned without.
        out: Model directory to write.
        name: Of the ensemble.

    Raises:
        ModelError: The models want different input, or two networks have the same name.
    """
    models = [registry.find(n) for n in names]
    card = agree([m.card for m in models])
    pairs = [(m, n) for m in models for n in m.card.networks]
    if len({n.weights for _, n in pairs}) < len(pairs):
        raise ModelError(f"Two of the networks {', '.join(n.name for _, n in pairs)} have the same name; rename one.")
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    networks = [registry.load_network(m, n) for m, n in pairs]
    validation = areas_of(data, card) if data.validate else []
    tuned = tune(networks, validation, device, dtype, PATCH)
    ensemble = Ensemble(networks, device, dtype)
    crf = tune_crf(ensemble, validation, tuned.thresholds["balanced"], PATCH, PATCH // 2)
    out.mkdir(parents=True, exist_ok=True)
    for model, network in pairs:
        shutil.copyfile(model.folder / network.weights, out / network.weights)
    joined = replace(
        card,
        name=name,
        networks=tuple(n for _, n in pairs),
        thresholds=tuned.thresholds,
        threshold_split=", ".join(data.validate) or "not tuned",
        training={n.name: m.card.training for m, n in pairs},
        crf=crf,
        metrics=tuned.figures,
        calibration={},
    ).calibrated(tuned.calibration(data.validate))
    joined.save(out)
    return joined
