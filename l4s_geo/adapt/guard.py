"""Signs that need no labels: does a model still see the same landslides, or has self-training collapsed?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from l4s_geo.calibration import Calibration
from l4s_geo.expectation import BINS, Counts, count, expected_f1
from l4s_geo.raster import row_windows
from l4s_geo.scene import open_scene
from l4s_geo.tiling import PATCH, Tiling, pad
from l4s_geo.train.targets import grid_of
from l4s_geo.train.teacher import Given, Teacher, normalizer_of

Floats = NDArray[np.float32]

#: Patches of each target that are looked at again with other light.
PATCHES = 48

#: The other light: contrast, and shift in scales of the region.
VIEWS = ((0.8, 0.0), (1.25, 0.0), (1.0, -0.15), (1.0, 0.15))

#: Changes nothing.
TAKEN_AT_THEIR_WORD = Calibration()


@dataclass(frozen=True)
class Signs:
    """What a model's answers about all targets look like, together.

    Attributes:
        share: Of the seen pixels, those mapped as landslide.
        pixels: Their number.
        entropy: Mean of the pixels' binary entropy, bits.
        confidence: Mean probability of the mapped pixels; 0 where there are none.
        expected_f1: Best F1 over all thresholds if the probabilities were true; 0 without landslides. All networks
            are taken at their word, calibrated or not, so this is a sign, not a figure.
        agreement: Dice coefficient of the mapped pixels with those of the starting model; 1 if both map nothing.
        consistency: Soft Dice coefficient of the probabilities with those under other light.
        known: Share of the pixels of given landslides that is mapped; None where none were given.
    """

    share: float
    pixels: int
    entropy: float
    confidence: float
    expected_f1: float
    agreement: float
    consistency: float
    known: float | None = None


@dataclass(frozen=True)
class Limits:
    """What a round may do; all against the starting model.

    Attributes:
        growth: The mapped share may grow by this factor.
        shrink: And shrink by this one, unless ``known`` is mapped.
        known: Share of the pixels of given landslides. A model that maps too much may learn from them to map far less.
        agreement: Least agreement.
        consistency: The consistency may fall by this much.
        pixels: Fewest pixels that the starting model must map for there to be something to learn from.
        expected_f1: Least expected F1 of a starting model that can teach.
        steady: Least consistency of a starting model that can teach.
    """

    growth: float = 2.0
    shrink: float = 2.0
    known: float = 0.5
    agreement: float = 0.5
    consistency: float = 0.05
    pixels: int = 200
    expected_f1: float = 0.7
    steady: float = 0.8


def histogram(
    answers: Sequence[Path], given: Sequence[Given] = (), calibration: Calibration = TAKEN_AT_THEIR_WORD
) -> Counts:
    """Seen pixels of all targets by probability.

    Args:
        answers: Of the targets.
        given: By target, a reader of labels; then only pixels that are given as landslide are counted.
        calibration: Makes probabilities of the answers.
    """
    counts = np.zeros(BINS, np.int64)
    for path, labels in zip_longest(answers, given):
        with rasterio.open(path) as file:
            for window in row_windows(grid_of(path)):
                prob = calibration.apply(file.read(1, window=window))
                counts += count(prob, None if labels is None else labels(window) == 1)
    return counts


def signs_of(
    teacher: Teacher,
    images: Sequence[Path],
    answers: Sequence[Path],
    start: Sequence[Path],
    thresholds: tuple[float, float],
    given: Sequence[Given] = (),
) -> Signs:
    """Measure the signs of a model, window by window.

    Args:
        teacher: The model.
        images: Of the targets.
        answers: What it says about them, as ``l4s_geo.train.teacher.answer`` writes it.
        start: What the starting model says.
        thresholds: Of the model and of the starting model.
        given: By target, a reader of given labels; none if there are none.
    """
    pixels, entropy, confidence = 0, 0.0, 0.0
    mapped = np.zeros(3, np.int64)  # by the model, by the starting model, by both
    for now, before in _pairs(answers, start):
        seen = ~np.isnan(now) & ~np.isnan(before)
        p = now[seen]
        a, b = p >= thresholds[0], before[seen] >= thresholds[1]
        pixels += p.size
        entropy += float(_entropy(p).sum())
        mapped += [np.count_nonzero(x) for x in (a, b, a & b)]
        confidence += float(p[a].sum(dtype=np.float64))
    either = int(mapped[0] + mapped[1])
    return Signs(
        share=float(mapped[0] / max(1, pixels)),
        pixels=int(mapped[0]),
        entropy=entropy / max(1, pixels),
        confidence=float(confidence / mapped[0]) if mapped[0] else 0.0,
        expected_f1=expected_f1(histogram(answers)),
        agreement=float(2 * mapped[2] / either) if either else 1.0,
        consistency=under_other_light(teacher, images, thresholds[0])[1],
        known=_share_over(histogram(answers, given), thresholds[0]) if given else None,
    )


def _share_over(counts: Counts, threshold: float) -> float:
    """Share of the counted pixels at or over a threshold."""
    return float(counts[round(BINS * threshold) :].sum() / max(1, counts.sum()))


def _pairs(answers: Sequence[Path], start: Sequence[Path]) -> Iterator[tuple[Floats, Floats]]:
    """Probabilities of the same pixels by both models."""
    for now, before in zip(answers, start, strict=True):
        with rasterio.open(now) as a, rasterio.open(before) as b:
            for window in row_windows(grid_of(now)):
                yield a.read(1, window=window), b.read(1, window=window)


def _entropy(p: Floats) -> NDArray[np.float64]:
    """Of each pixel, in bits."""
    q = np.clip(p.astype(np.float64), 1e-9, 1 - 1e-9)
    found: NDArray[np.float64] = -(q * np.log2(q) + (1 - q) * np.log2(1 - q))
    return found


def under_other_light(teacher: Teacher, images: Sequence[Path], threshold: float) -> tuple[float, float]:
    """Look at some patches of the targets as they are, and with contrast and brightness changed.

    Landslides that a model has made up hang on details that do not survive such a change, and so do those that it sees
    through statistics which do not fit.

    Args:
        teacher: The model.
        images: Of the targets.
        threshold: Probability from which on a pixel is landslide.

    Returns:
        Share of the pixels that is landslide, and the soft Dice coefficient of the probabilities with those under other
        light (1 without any landslide).
    """
    pixels = mapped = 0
    same = both = 0.0
    for image in images:
        normalizer, patches = normalizer_of(image, teacher.card), _patches(image, teacher)
        valid = np.array([np.pad(v, [(0, PATCH - side) for side in v.shape]) for _, v in patches])
        centre, scale = (np.asarray(x, np.float32)[:, None, None] for x in (normalizer.center, normalizer.scale))
        plain, *others = (
            _probability(
                teacher, [pad(normalizer(centre + gain * (x - centre) + shift * scale, v), PATCH) for x, v in patches]
            )[valid]
            for gain, shift in ((1.0, 0.0), *VIEWS)
        )
        pixels += plain.size
        mapped += int(np.count_nonzero(plain >= threshold))
        for other in others:
            same += 2 * float(np.minimum(plain, other).sum())
            both += float(plain.sum() + other.sum())
    return mapped / max(1, pixels), same / both if both else 1.0


def _patches(image: Path, teacher: Teacher) -> list[tuple[Floats, NDArray[np.bool_]]]:
    """Patches (C, h, w) spread over what is valid of a target, in digital numbers, with their valid pixels."""
    grid = grid_of(image)
    tiling = Tiling(*grid.shape, PATCH, PATCH)
    h, w = (min(PATCH, side) for side in grid.shape)
    windows = [Window(column, row, w, h) for row, column in product(tiling.rows(), tiling.columns())]
    with rasterio.open(image) as file:
        windows = [window for window in windows if file.read_masks(1, window=window).any()]
    with open_scene(image, resolution=None, units="dn") as scene:
        return [scene.read(window, teacher.card.bands) for window in windows[:: max(1, len(windows) // PATCHES)]]


def _probability(teacher: Teacher, patches: Sequence[Floats]) -> Floats:
    """Of patches (C, h, w): (N, h, w)."""
    size = teacher.batch_size
    batches = [np.stack(patches[i : i + size]) for i in range(0, len(patches), size)]
    found: Floats = np.concatenate([teacher.ensemble(b)[:, 0] for b in batches])
    return found


def faults(start: Signs, now: Signs, limits: Limits) -> Iterator[str]:
    """Why a round is not to be trusted, in words; nothing if it is safe."""
    if start.pixels >= limits.pixels:  # else there is nothing to compare with, and only given labels have taught
        if now.share > limits.growth * start.share:
            yield f"the mapped share grew from {start.share:.2%} to {now.share:.2%}"
        if now.share * limits.shrink < start.share and (now.known is None or now.known < limits.known):
            yield f"the mapped share shrank from {start.share:.2%} to {now.share:.2%}"
        if now.agreement < limits.agreement:
            yield f"only {now.agreement:.0%} of the landslides agree with those of the starting model"
    if now.consistency < start.consistency - limits.consistency:
        yield f"under other light {now.consistency:.0%} of the landslides stay instead of {start.consistency:.0%}"


def nothing_to_learn(start: Signs, limits: Limits) -> Iterator[str]:
    """Why a starting model cannot teach itself here, in words; nothing if it can."""
    if start.pixels < limits.pixels:
        yield f"it maps {start.pixels} pixels of landslide, fewer than the {limits.pixels} that there must be"
    if start.expected_f1 < limits.expected_f1:
        yield f"it is not sure of what it maps (expected F1 {start.expected_f1:.2f}, not calibrated)"
    if start.consistency < limits.steady:
        yield f"under other light only {start.consistency:.0%} of what it maps stays"
