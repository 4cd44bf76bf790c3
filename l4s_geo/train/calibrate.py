"""Fit the calibration of a model that is there to labelled scenes; its networks and its maps stay as they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from l4s_geo.calibration import Outcomes
from l4s_geo.data.crops import Area
from l4s_geo.data.new_folder import check_new_folder, new_folder
from l4s_geo.ensemble import Ensemble, choose_device, choose_dtype
from l4s_geo.errors import InputError
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.settings import normalizer_for
from l4s_geo.tiling import PATCH
from l4s_geo.train.split import DataOptions, load_blocks
from l4s_geo.train.validate import answers, calibration_on


def calibrate(name: str, data: DataOptions, out: Path) -> Card:
    """Write a model again, with another calibration and thresholds that draw the same maps.

    Args:
        name: Model, by name or directory.
        data: Its ``validate`` blocks, or all of its scenes where there are none.
        out: Model directory to write; it must not exist.

    Raises:
        InputError: The data cannot be used, or say nothing about the networks.
        ModelError: The model cannot be used.
        OutputError: The directory is there already or cannot be written.
    """
    check_new_folder(out)
    model = registry.find(name)
    card = model.card.uncalibrated()
    device = choose_device("auto")
    networks = [registry.load_network(model, n) for n in card.networks]
    ensemble = Ensemble(networks, device, choose_dtype("auto", device))
    outcomes = Outcomes()
    for prob, truth in answers(ensemble, areas_of(data, card), PATCH):
        outcomes.update(prob, truth)
    found = calibration_on(outcomes, data.validate or [Path(scene).name for scene in data.scenes])
    if not found:
        raise InputError(
            f"What {card.name} says does not go with the labels, so it cannot be calibrated. Labels of landslides and "
            "of other ground are needed, in a scene that the model can map."
        )
    with new_folder(out) as folder:
        for network in card.networks:
            shutil.copyfile(model.folder / network.weights, folder / network.weights)
        calibrated = replace(card, name=out.name).calibrated(found)
        calibrated.save(folder)
    return calibrated


def areas_of(data: DataOptions, card: Card) -> list[Area]:
    """The blocks, as the networks want to see them."""
    wanted = replace(data, bands=card.bands, compression=card.compression, resolution=card.resolution_m)

    def seen(area: Area) -> Area:
        return replace(area, normalizer=normalizer_for(None, card, lambda: area.normalizer))

    return [seen(area) for area in load_blocks(wanted)]
