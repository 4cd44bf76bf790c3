"""The STAC item of a model, with the fields of MLM 1.4 (https://github.com/stac-extensions/mlm)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.provenance.stac_fields import FIRST, NEVER, href, multihash
from l4s_geo.tiling import PATCH

if TYPE_CHECKING:
    import pystac
    from pystac.extensions.mlm import ModelInput, ModelOutput


def mlm_name(record: Mapping[str, Any]) -> str:
    """Name of the model or of several together, with the letters that MLM allows."""
    name = re.sub(r"[^a-zA-Z0-9_.-]+", "-", "-and-".join(m["name"] for m in record["models"])).strip("-._")
    return name if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]+[a-zA-Z0-9]", name) else f"model-{name or 'x'}"


def model_item(path: Path, record: Mapping[str, Any]) -> pystac.Item:
    """The item of the model, or of several that were averaged, as they were applied.

    Args:
        path: Of the item.
        record: Of the run.

    Returns:
        An item without geometry, since where a model holds is not known, for any time: as a card names neither.
    """
    import pystac
    from pystac.extensions.file import FileExtension
    from pystac.extensions.mlm import AssetGeneralMLMExtension, Hyperparameters, MLMExtension, TaskType

    models = [registry.find(m["folder"]) for m in record["models"]]
    cards = [m.card for m in models]
    networks = [(m, n) for m in models for n in m.card.networks]
    computed = record.get("computed")
    bands = [{"name": band} for band in cards[0].bands]  # twice: MLM wants them here, STAC's schema not without assets'
    item = pystac.Item(
        id=mlm_name(record),
        geometry=None,
        bbox=None,
        datetime=None,
        start_datetime=FIRST,
        end_datetime=NEVER,
        properties={
            "title": " and ".join(f"{c.name}, version {c.version}" for c in cards),
            "description": f"{len(networks)} networks whose probabilities of landslide are averaged, as applied to "
            f"{record['scene']['name']}",
            "license": cards[0].licence if len({c.licence for c in cards}) == 1 else "other",
            "bands": bands,
        },
        stac_extensions=[FileExtension.get_schema_uri()],
    )
    summary = "none is needed" + (f"; used: {', '.join(computed['devices'])}, {computed['dtype']}" if computed else "")
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=mlm_name(record),
        architecture=" and ".join(dict.fromkeys(n.architecture for _, n in networks)),
        tasks=[TaskType.SEMANTIC_SEGMENTATION],
        input=[_model_input(cards[0], record["normalization"])],
        output=[_model_output(record["settings"])],
        framework="PyTorch",
        framework_version=record["versions"].get("torch"),
        accelerator_constrained=False,
        accelerator_summary=summary,
        hyperparameters=Hyperparameters(_hyperparameters(cards, record["settings"])),
    )
    item.properties = {k: v for k, v in item.properties.items() if k != "mlm:pretrained_source"}  # a card does not say
    for model, network in networks:
        weights = model.folder / network.weights
        asset = pystac.Asset(
            href(weights, path),
            f"Weights of {network.name}",
            media_type="application/octet-stream",
            roles=["mlm:model", "mlm:weights"],
            extra_fields={
                "bands": bands,
                "file:size": weights.stat().st_size,
                "file:checksum": multihash(network.sha256),
            },
        )
        several = f"{model.card.name}-" if len(models) > 1 else ""
        item.add_asset(f"{several}{network.name}", asset)
        AssetGeneralMLMExtension.ext(asset).apply(artifact_type="safetensors.torch.save_file")
    return item


def _model_input(card: Card, normalization: Mapping[str, Any]) -> ModelInput:
    """Bands and how they were standardized in this run."""
    from pystac.extensions.mlm import InputStructure, ModelInput, ProcessingExpression, ValueScaling, ValueScalingType
    from pystac.extensions.raster import DataType

    units = {"dn": "digital numbers"}.get(card.input_units, card.input_units)
    found = ModelInput.create(
        name="Sentinel-2 patches",
        bands=list(card.bands),
        input=InputStructure.create(
            [-1, len(card.bands), PATCH, PATCH], ["batch", "channel", "height", "width"], DataType.FLOAT32
        ),
        description=f"Sentinel-2 {units} at {card.resolution_m:g} m, each band standardized ({normalization['source']})"
        f"{', then arcsinh' if normalization['compression'] == 'asinh' else ''}; 0 where nothing is seen",
        pre_processing_function=ProcessingExpression.create("python", "numpy.arcsinh")
        if normalization["compression"] == "asinh"
        else None,
    )
    scalings = [
        ValueScaling.create(ValueScalingType.Z_SCORE, mean=mean, stddev=spread).to_dict()
        for mean, spread in zip(normalization["center"], normalization["scale"], strict=True)
    ]
    found.properties["value_scaling"] = scalings  # pystac takes a single one, MLM wants one for each band
    return found


def _model_output(settings: Mapping[str, Any]) -> ModelOutput:
    """Probabilities, and what they mean."""
    from pystac.extensions.classification import Classification
    from pystac.extensions.mlm import ModelOutput, ResultStructure, TaskType
    from pystac.extensions.raster import DataType

    return ModelOutput.create(
        name="probability of landslide",
        tasks=[TaskType.SEMANTIC_SEGMENTATION],
        result=ResultStructure.create([-1, 1, PATCH, PATCH], ["batch", "channel", "height", "width"], DataType.FLOAT32),
        description=f"mean of the networks' probabilities; landslide from {settings['threshold']:.3g} on",
        classes=[
            Classification.create(value=0, name="background", description="no landslide"),
            Classification.create(value=1, name="landslide", description="fresh landslide"),
        ],
    )


def _hyperparameters(cards: list[Card], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was decided for this run, and the networks with their arguments."""
    networks = [
        {"model": c.name, "name": n.name, "architecture": n.architecture, "arguments": n.args, "scale": n.scale}
        for c in cards
        for n in c.networks
    ]
    decided = {k: v for k, v in settings.items() if k not in ("notes", "device", "dtype")}
    return {"patch": PATCH, **decided, "networks": networks}
