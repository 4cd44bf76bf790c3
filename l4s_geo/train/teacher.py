"""A trained model labels unlabelled scenes: pseudo-labels on disk, as labelled scenes that training can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import nn
from torch.nn import functional as F

from l4s_geo.data.crops import seed_of
from l4s_geo.data.ondisk import LABELS
from l4s_geo.data.patches import UNKNOWN
from l4s_geo.ensemble import Ensemble, choose_device, choose_dtype
from l4s_geo.inference import predict
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.models.registry import Model
from l4s_geo.normalize import Normalizer, fit
from l4s_geo.outputs import writing
from l4s_geo.progress import Progress
from l4s_geo.raster import row_windows
from l4s_geo.scene import open_scene
from l4s_geo.settings import normalizer_for
from l4s_geo.tiling import PATCH, Tiling
from l4s_geo.train.pseudo import Certain, Doubts, Floats, Selection, classes
from l4s_geo.train.recipe import Round
from l4s_geo.train.run import TrainOptions
from l4s_geo.train.targets import Target, grid_of, link, profile

#: What the networks say about a target while it is labelled.
ANSWER, LAYERS = "answer.tif", ("probability", "uncertainty")

#: Patches overlap by a quarter: labels need not be as smooth as a map, and every round looks at the whole scene.
STRIDE = PATCH * 3 // 4

#: Written last into a folder of pseudo-labels: pixels by target and class.
SELECTED = "selected.json"

#: Pixels of a target by class.
Selected = dict[str, dict[str, int]]

#: True labels (h, w) uint8 of a window of a target: 0, 1, 255 not labelled.
Given = Callable[[Window], NDArray[np.uint8]]


class MeanEnsemble(Ensemble):
    """Mean and variance of the probabilities of several networks that answer once."""

    def __len__(self) -> int:
        return len(LAYERS)

    def answer(self, x: torch.Tensor, networks: Sequence[nn.Module]) -> torch.Tensor:
        """Mean and variance (N, 2, h, w) float32 of standardized patches (N, C, h, w)."""
        answers = super().answer(x, networks)
        return torch.stack([answers.mean(1), answers.var(1, correction=0)], 1)


class DropoutEnsemble(Ensemble):
    """Monte-Carlo dropout: mean probability and variance of the logits over stochastic passes.

    Dropout follows the first convolution (Gal and Ghahramani 2016, ICML; so in the third place of Landslide4Sense,
    Ghorbanzadeh et al. 2022, IEEE JSTARS 15, doi:10.1109/JSTARS.2022.3220845). Of several networks both are averaged.

    Args:
        networks: Each maps (N, C, h, w) to landslide logits (N, 1, h, w); they get a hook.
        device: Where they run.
        dtype: Of the forward pass (autocast).
        passes: Of every network.
        rate: Share that is dropped.
    """

    def __init__(
        self, networks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype, passes: int, rate: float
    ) -> None:
        super().__init__(networks, device, dtype, workers=1)  # so that what is dropped depends on the seed alone
        self.passes = passes
        for net in self.networks:
            first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
            first.register_forward_hook(lambda _, __, y: F.dropout(y, rate, training=True))

    def __len__(self) -> int:
        return len(LAYERS)

    def answer(self, x: torch.Tensor, networks: Sequence[nn.Module]) -> torch.Tensor:
        """Mean probability and mean variance (N, 2, h, w) float32 of standardized patches (N, C, h, w)."""
        with self.autocast(x.device):
            passes = [torch.cat([n(x) for n in networks], dim=1).float() for _ in range(self.passes)]
        logits = torch.stack(passes)  # (passes, N, networks, h, w)
        return torch.stack([logits.sigmoid().mean((0, 2)), logits.var(0).mean(1)], 1)


@dataclass(frozen=True)
class Teacher:
    """Networks, and how they are to see a target.

    Attributes:
        card: Of their model, with the networks taken at their word: what they say is a label, not a map.
        ensemble: The networks; answers with ``LAYERS``.
        batch_size: Patches a forward pass.
    """

    card: Card
    ensemble: Ensemble
    batch_size: int


def label(
    targets: Sequence[Target],
    images: Sequence[Path],
    out: Path,
    model: Path,
    how: Round,
    options: TrainOptions,
    progress: Progress,
) -> Selected:
    """Write ``OUT/NAME/image.tif`` and ``labels.tif`` of every target, a labelled scene like any other.

    Args:
        targets: What to label.
        images: Their copies.
        out: Folder to write. Labels that are complete are kept.
        model: Directory of the model that knows.
        how: Its networks that teach, and the selection.
        options: Of the training that is to learn from them: device, number format, batch size, seed.
        progress: Advances by rows.

    Returns:
        Pixels by target and class.

    Raises:
        OutputError: There is no space.
    """
    if (out / SELECTED).is_file():
        return read_selected(out)
    teacher = teacher_of(registry.find(str(model)), options, how)
    torch.manual_seed(seed_of(options.seed, "dropout"))
    answers = [out / t.name / ANSWER for t in targets]
    for target, image, path in zip(targets, images, answers, strict=True):
        answer(target, image, path, teacher, progress)
    selected = select(targets, images, answers, out, how.select, teacher.card.thresholds["balanced"])
    for path in answers:
        path.unlink()
    return selected


def read_selected(out: Path) -> Selected:
    """What ``select`` returned when it wrote this folder."""
    kept: Selected = json.loads((out / SELECTED).read_text())
    return kept


def teacher_of(model: Model, options: TrainOptions, how: Round | None = None) -> Teacher:
    """The networks of a model that teach in a round; without one all of them, which answer once."""
    wanted = how.teachers if how else ()
    chosen = [n for n in model.card.networks if not wanted or n.name in wanted]
    networks = [registry.load_network(model, n) for n in chosen]
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    ensemble: Ensemble = MeanEnsemble(networks, device, dtype)
    if how and isinstance(how.select, Certain):
        ensemble = DropoutEnsemble(networks, device, dtype, how.select.passes, how.select.dropout)
    return Teacher(model.card.uncalibrated(), ensemble, options.recipe.batch_size)


def answer(target: Target, image: Path, path: Path, teacher: Teacher, progress: Progress) -> None:
    """Write what the networks say about a target, ``LAYERS`` in float32, NaN where it was not seen.

    Args:
        target: Named in the progress.
        image: Its copy.
        path: Raster to write; what is there is replaced when the new one is complete.
        teacher: The networks.
        progress: Advances by rows.

    Raises:
        OutputError: There is no space.
    """
    grid = grid_of(image)
    tiling = Tiling(*grid.shape, PATCH, PATCH if target.apart else STRIDE)
    part = path.with_name(f"part-{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    progress.start(f"looking at {target.name}", grid.height)
    kind = {"count": len(LAYERS), "dtype": "float32", "nodata": float("nan"), "compress": None}
    with writing(path):
        with rasterio.open(part, "w", **profile(grid) | kind) as raster:
            for window, values in _values(image, teacher, tiling):
                raster.write(values, window=window)
                progress.advance(values.shape[1])
        part.replace(path)
    progress.finish()


def _values(image: Path, teacher: Teacher, tiling: Tiling) -> Iterator[tuple[Window, Floats]]:
    """``LAYERS`` of a target from top to bottom."""
    normalizer = normalizer_of(image, teacher.card)
    with open_scene(image, resolution=None, units="dn") as scene:

        def read(row: int, rows: int) -> tuple[Floats, NDArray[np.bool_]]:
            return scene.read(Window(0, row, tiling.width, rows), teacher.card.bands)

        found = predict(read, tiling, teacher.ensemble, batch_size=teacher.batch_size, normalizer=normalizer)
        for row, values, seen in found:
            yield Window(0, row, tiling.width, len(seen)), values


def normalizer_of(image: Path, card: Card) -> Normalizer:
    """How a model is to see a target: with statistics as its card says, those of the target from all of its pixels."""

    def own() -> Normalizer:
        with open_scene(image, resolution=None, units="dn") as scene:
            blocks = (scene.read(w, card.bands) for w in row_windows(scene.grid))
            return fit(blocks, card.bands, card.compression, image.parent.name)

    return normalizer_for(None, card, own)


def select(
    targets: Sequence[Target],
    images: Sequence[Path],
    answers: Sequence[Path],
    out: Path,
    how: Selection,
    threshold: float,
    given: Sequence[Given] = (),
) -> Selected:
    """Make labelled scenes of targets, from what networks said about them.

    Two passes over all targets, window by window: the answers are counted, then the pixels are chosen.

    Args:
        targets: What to label.
        images: Their copies.
        answers: As ``answer`` wrote them.
        out: Folder to write: ``OUT/NAME/image.tif`` and ``labels.tif``, and ``selected.json`` at last.
        how: Which pixels get a label.
        threshold: Probability from which on a pixel is landslide.
        given: By target, true labels of a window (255: not labelled), which win; none if there are none.

    Returns:
        Pixels by target and class.

    Raises:
        OutputError: There is no space.
    """
    doubts = Doubts()
    for path in answers:
        with rasterio.open(path) as raster:
            for window in row_windows(grid_of(path)):
                prob, uncertainty = raster.read(window=window)
                how.count(doubts, prob, uncertainty, threshold)
    found: Selected = {}
    for target, image, path, true in zip_longest(targets, images, answers, given):
        link(image, out / target.name)
        found[target.name] = _choose(path, out / target.name, how, threshold, doubts, true)
    with writing(out):
        (out / SELECTED).write_text(json.dumps(found, indent=1) + "\n")
    return found


def _choose(
    answer: Path, folder: Path, how: Selection, threshold: float, doubts: Doubts, given: Given | None
) -> dict[str, int]:
    """Second pass: labels of a target, and how many there are."""
    counts = np.zeros(UNKNOWN + 1, np.int64)
    with writing(folder), rasterio.open(answer) as answers:
        grid = grid_of(answer)
        kind = {"count": 1, "dtype": "uint8", "nodata": UNKNOWN}
        with rasterio.open(folder / LABELS, "w", **profile(grid), **kind) as labels:
            labels.descriptions = ("landslide",)
            labels.update_tags(SOURCE=f"pseudo-labels: {how}")
            for window in row_windows(grid):
                prob, uncertainty = answers.read(window=window)
                found = how.labels(doubts, prob, uncertainty, threshold)
                seen = ~np.isnan(prob)
                if given is not None:
                    true = given(window)
                    found = np.where(seen & (true != UNKNOWN), true, found)
                labels.write(found, 1, window=window)
                counts += np.bincount(classes(found[seen], threshold), minlength=len(counts))
    return {"background": int(counts[0]), "landslide": int(counts[1]), "not used": int(counts[UNKNOWN])}
