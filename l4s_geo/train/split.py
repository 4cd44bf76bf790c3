"""Which pixels a training run learns from, and which it is judged by."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l4s_geo.data.crops import Area, load_area, synthetic_negatives
from l4s_geo.errors import InputError
from l4s_geo.normalize import Compression, Normalizer


@dataclass(frozen=True)
class DataOptions:
    """Data of a training run.

    Attributes:
        scenes: Folders of labelled scenes to learn from.
        bands: Input bands, in order.
        holdout: Blocks ``NAME:ROW0-ROW1`` of pixel rows that training never sees.
        validate: Blocks in the same form that the threshold is tuned on; held out as well.
        unseen: Folders of labelled scenes that are only watched.
        negatives: Scenes without landslides (file, folder or glob; ``PATH@UNITS`` states their units).
        synthetic: Number of synthetic scenes without landslides.
        negative_share: Share of crops from negatives and synthetic scenes.
        compression: Of the normalizer.
        resolution: Metres per pixel.
    """

    scenes: tuple[str, ...]
    bands: tuple[str, ...] = ("B4", "B3", "B2")
    holdout: tuple[str, ...] = ()
    validate: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    synthetic: int = 0
    negative_share: float = 0.15
    compression: Compression = "asinh"
    resolution: float = 10.0

    def describe(self) -> dict[str, Any]:
        """For the card: names of the data, without paths."""
        values = asdict(self)
        for key in ("scenes", "unseen", "negatives"):
            values[key] = [Path(p).name for p in values[key]]
        return values


@dataclass(frozen=True)
class Split:
    """Loaded data.

    Attributes:
        train: Regions without their held-out rows.
        negatives: Regions without landslides.
        validation: Blocks that the threshold is tuned on.
        watched: Groups of areas that are scored during training, by name.
        statistics: Mean statistics of the regions, for ``--normalize model``.
    """

    train: list[Area]
    negatives: list[Area]
    validation: list[Area]
    watched: dict[str, list[Area]]
    statistics: Normalizer


def load_split(options: DataOptions, seed: int) -> Split:
    """Read the scenes and take them apart.

    Raises:
        InputError: A block names no scene or no rows.
    """
    blocks = {key: [_parse_block(b) for b in getattr(options, key)] for key in ("holdout", "validate")}
    train: list[Area] = []
    validation: list[Area] = []
    names = [Path(p).name for p in options.scenes]
    for name, _, _ in [*blocks["holdout"], *blocks["validate"]]:
        if name not in names:
            raise InputError(f"Held-out block names the scene {name!r}; the scenes are {', '.join(names)}.")
    for path in options.scenes:
        area = _load(options, path)
        kept_out = [(a, b) for key in blocks for name, a, b in blocks[key] if name == area.name]
        validation += [area.rows(a, b) for name, a, b in blocks["validate"] if name == area.name]
        train.append(area.without_rows(kept_out, options.compression))
    negatives = [_load(options, p, labels=False) for p in options.negatives]
    negatives += synthetic_negatives(options.synthetic, 512, options.bands, options.compression, 1000 * seed)
    watched = {"validation": validation} if validation else {}
    watched |= {f"unseen {Path(p).name}": [_load(options, p)] for p in options.unseen}
    return Split(train, negatives, validation, watched, _mean([a.normalizer for a in train]))


def _load(options: DataOptions, path: str, labels: bool = True) -> Area:
    path, _, units = path.partition("@")
    return load_area(
        path,
        options.bands,
        compression=options.compression,
        resolution=options.resolution,
        labels=labels,
        units=units or "auto",
    )


def _parse_block(text: str) -> tuple[str, int, int]:
    found = re.fullmatch(r"(.+):(\d+)-(\d+)", text)
    if not found or int(found[2]) >= int(found[3]):
        raise InputError(f"A block of rows is written NAME:ROW0-ROW1 (pixel rows, half open), not {text!r}.")
    return found[1], int(found[2]), int(found[3])


def _mean(found: list[Normalizer]) -> Normalizer:
    """Mean centre and scale of several regions."""
    count = len(found)
    return Normalizer(
        found[0].bands,
        tuple(round(sum(c) / count, 3) for c in zip(*(n.center for n in found), strict=True)),
        tuple(round(sum(s) / count, 3) for s in zip(*(n.scale for n in found), strict=True)),
        found[0].compression,
        "training regions",
        sum(n.pixels for n in found),
    )
