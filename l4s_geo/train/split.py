"""Which pixels a training run learns from, and which it is judged by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from l4s_geo.data.crops import Area, load_area, patch_areas, synthetic_areas
from l4s_geo.data.folders import open_patches
from l4s_geo.errors import InputError
from l4s_geo.normalize import NAMED, Compression, Normalizer
from l4s_geo.tiling import PATCH


@dataclass(frozen=True)
class DataOptions:
    """Data of a training run.

    Attributes:
        scenes: Folders to learn from: labelled scenes, Landslide4Sense patches, or chips.
        bands: Input bands, in order.
        holdout: What training never sees, as ``parse_block`` reads it.
        validate: Blocks in the same form that the threshold is tuned on; held out as well.
        unseen: Folders of labelled scenes that are only watched.
        negatives: Scenes without landslides (file, folder or glob; ``PATH@UNITS`` states their units).
        synthetic: Number of synthetic scenes without landslides.
        synthetic_landslides: Number of synthetic scenes with landslides, drawn like those without.
        negative_share: Share of crops from negatives and synthetic scenes.
        compression: Of the normalizer.
        normalization: As in ``l4s_geo.train.recipe.Recipe``.
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
    normalization: str = "scene"
    synthetic_landslides: int = 0
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


@dataclass(frozen=True)
class Block:
    """A part of the data: pixel rows of a region, or all of it.

    Attributes:
        region: Its name; None stands for every region.
        rows: First and last-but-one pixel row; None stands for all.
    """

    region: str | None
    rows: tuple[int, int] | None

    def of(self, area: Area) -> tuple[int, int] | None:
        """The rows of an area that belong to the block, or None."""
        if self.region not in (None, area.name):
            return None
        first, last = self.rows or (0, area.truth.shape[0])
        last = min(last, area.truth.shape[0])
        return (first, last) if first < last else None


def parse_block(text: str) -> Block:
    """``region:NAME``, ``rows:50-61`` (rows of patches, both included) or ``NAME:6400-7936`` (pixel rows, half open).

    Raises:
        InputError: It is none of these.
    """
    kind, _, rest = text.rpartition(":")
    found = re.fullmatch(r"(\d+)-(\d+)", rest)
    if kind == "region" and rest:
        return Block(rest, None)
    if found and kind == "rows" and int(found[1]) <= int(found[2]):
        return Block(None, (PATCH * int(found[1]), PATCH * (int(found[2]) + 1)))
    if found and kind and int(found[1]) < int(found[2]):
        return Block(kind, (int(found[1]), int(found[2])))
    raise InputError(
        f"A part of the data is written region:NAME, rows:FIRST-LAST (rows of patches) or NAME:ROW0-ROW1 (pixel rows, "
        f"half open), not {text!r}."
    )


def load_split(options: DataOptions, seed: int, targets: Sequence[Area] = ()) -> Split:
    """Read the scenes and take them apart.

    Args:
        options: What to read.
        seed: Of the synthetic scenes.
        targets: Further areas to learn from, which no holdout touches; alone, if there are no scenes.

    Raises:
        InputError: A block names no scene or no rows, or nothing is left to learn from.
    """
    held, validated = ([parse_block(b) for b in texts] for texts in (options.holdout, options.validate))
    areas = [area for path in options.scenes for area in _load_labelled(options, path)]
    for text, block in zip((*options.holdout, *options.validate), (*held, *validated), strict=True):
        if not any(block.of(area) for area in areas):
            names = ", ".join(dict.fromkeys(a.name for a in areas))
            raise InputError(f"There is no {text!r} to hold out; the regions are {names}.")
    train: list[Area] = []
    validation: list[Area] = []
    for area in areas:
        out = [rows for block in (*held, *validated) if (rows := block.of(area))]
        validation += [area.rows(*rows) for block in validated if (rows := block.of(area))]
        if (0, area.truth.shape[0]) not in out:
            train.append(area.without_rows(out, options.compression) if out else area)
    if (areas or not targets) and not any((area.truth[:] == 1).any() for area in train):
        raise InputError("No labelled landslide is left to learn from. Give more data, or hold out less.")
    negatives = [_load(options, p, labels=False) for p in options.negatives]
    for count, landslides in ((options.synthetic, False), (options.synthetic_landslides, True)):
        negatives += synthetic_areas(
            count, 512, options.bands, options.compression, 1000 * seed + 500 * landslides, landslides=landslides
        )
    watched = {"validation": validation} if validation else {}
    watched |= {f"unseen {Path(p).name}": _load_labelled(options, p) for p in options.unseen}
    found = Split(train, negatives, validation, watched, _mean([a.normalizer for a in train or targets]))
    if options.normalization != "scene":
        found = _standardized(found, options)
    return replace(found, train=[*found.train, *targets])


def load_blocks(options: DataOptions) -> list[Area]:
    """The ``validate`` blocks alone, or all of the scenes where there are none, standardized each by itself.

    Raises:
        InputError: A block names no scene or no rows.
    """
    areas = [area for path in options.scenes for area in _load_labelled(options, path)]
    if not options.validate:
        return areas
    blocks = {text: parse_block(text) for text in options.validate}
    found = {text: [a.rows(*rows) for a in areas if (rows := block.of(a))] for text, block in blocks.items()}
    for text, parts in found.items():
        if not parts:
            raise InputError(
                f"There is no {text!r}; the regions are {', '.join(dict.fromkeys(a.name for a in areas))}."
            )
    return [part for parts in found.values() for part in parts]


def _standardized(split: Split, options: DataOptions) -> Split:
    """All areas with one fixed normalizer."""
    fixed = split.statistics
    if options.normalization != "model":
        fixed = replace(NAMED[options.normalization]().select(options.bands), compression=options.compression)

    def changed(areas: list[Area]) -> list[Area]:
        return [replace(a, normalizer=fixed) for a in areas]

    watched = {name: changed(areas) for name, areas in split.watched.items()}
    return Split(changed(split.train), changed(split.negatives), changed(split.validation), watched, fixed)


def _load_labelled(options: DataOptions, path: str) -> list[Area]:
    """A labelled scene as one area; a folder of patches as its regions."""
    folder = Path(path)
    if not folder.is_dir() or any((folder / name).is_file() for name in ("labels.tif", "rgb.tif", "image.tif")):
        return [_load(options, path)]
    return list(patch_areas(open_patches(path, options.bands), options.compression))


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
