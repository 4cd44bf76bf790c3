"""A trained model labels unlabelled scenes: pseudo-labels on disk, as labelled scenes that training can read."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import nn
from torch.nn import functional as F

from l4s_geo.data.crops import seed_of
from l4s_geo.data.patches import UNKNOWN
from l4s_geo.inference import Ensemble, choose_device, choose_dtype, predict
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.models.registry import Model
from l4s_geo.normalize import fit
from l4s_geo.progress import Progress
from l4s_geo.raster import WorkRaster, row_windows
from l4s_geo.scene import open_scene
from l4s_geo.settings import fixed_normalizer
from l4s_geo.tiling import PATCH, Tiling
from l4s_geo.train.pseudo import Certain, Doubts, Floats, Selection
from l4s_geo.train.recipe import Round
from l4s_geo.train.run import TrainOptions
from l4s_geo.train.targets import Target, grid_of, link, profile, writing

#: What the networks say about a target while it is labelled.
ANSWER, LAYERS = "answer.tif", ("probability", "uncertainty")

#: Written last into a folder of pseudo-labels: pixels by target and class.
SELECTED = "selected.json"

#: Pixels of a target by class.
Selected = dict[str, dict[str, int]]


class MeanEnsemble(Ensemble):
    """Mean and variance of the probabilities of several networks that answer once."""

    def __len__(self) -> int:
        return len(LAYERS)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean and variance (N, 2, h, w) float32 of standardized patches (N, C, h, w)."""
        answers = super().__call__(images)
        return np.stack([answers.mean(axis=1), answers.var(axis=1)], axis=1)


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
        super().__init__(networks, device, dtype)
        self.passes = passes
        for net in self.networks:
            first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
            first.register_forward_hook(lambda _, __, y: F.dropout(y, rate, training=True))

    def __len__(self) -> int:
        return len(LAYERS)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean probability and mean variance (N, 2, h, w) float32 of standardized patches (N, C, h, w)."""
        x = torch.from_numpy(images).to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            passes = [torch.cat([n(x) for n in self.networks], dim=1).float() for _ in range(self.passes)]
        logits = torch.stack(passes)  # (passes, N, networks, h, w)
        answer = torch.stack([logits.sigmoid().mean((0, 2)), logits.var(0).mean(1)], 1)
        found: NDArray[np.float32] = answer.cpu().numpy()
        return found


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

    Two passes over all targets, window by window: the networks' answer goes into a working raster and is counted, then
    the pixels are chosen. Labels that are complete are kept.

    Args:
        targets: What to label.
        images: Their copies.
        out: Folder to write.
        model: Directory of the model that knows.
        how: Its networks that teach, and the selection.
        options: Of the training that is to learn from them: device, number format, batch size, seed.
        progress: Advances by rows.

    Returns:
        Pixels by target and class.

    Raises:
        OutputError: There is no space.
    """
    done = out / SELECTED
    if done.is_file():
        kept: Selected = json.loads(done.read_text())
        return kept
    teacher = registry.find(str(model))
    threshold = teacher.card.thresholds["balanced"]
    torch.manual_seed(seed_of(options.seed, "dropout"))
    ensemble = _ensemble(teacher, how, options)
    doubts = Doubts()
    for target, image in zip(targets, images, strict=True):
        folder = out / target.name
        link(image, folder)
        grid = grid_of(image)
        tiling = Tiling(*grid.shape, PATCH, PATCH if target.apart else PATCH // 2)
        progress.start(f"labelling {target.name}", grid.height)
        with WorkRaster(folder / ANSWER, grid, LAYERS) as raster:
            for window, prob, uncertainty in _answer(image, teacher.card, ensemble, tiling, options.recipe.batch_size):
                how.select.count(doubts, prob, uncertainty, threshold)
                raster.write(window, np.stack([prob, uncertainty]))
                progress.advance(len(prob))
        progress.finish()
    found = {t.name: _choose(out / t.name, how.select, threshold, doubts) for t in targets}
    with writing(done):
        done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _ensemble(teacher: Model, how: Round, options: TrainOptions) -> Ensemble:
    chosen = [n for n in teacher.card.networks if not how.teachers or n.name in how.teachers]
    networks = [registry.load_network(teacher, n) for n in chosen]
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    if isinstance(how.select, Certain):
        return DropoutEnsemble(networks, device, dtype, how.select.passes, how.select.dropout)
    return MeanEnsemble(networks, device, dtype)


def _answer(
    image: Path, card: Card, ensemble: Ensemble, tiling: Tiling, batch_size: int
) -> Iterator[tuple[Window, Floats, Floats]]:
    """Probability and uncertainty of a target from top to bottom, NaN where it was not seen.

    It is standardized with its own statistics (separated normalization), unless the model is of fixed ones.
    """
    with open_scene(image, resolution=None, units="dn") as scene:
        blocks = (scene.read(w, card.bands) for w in row_windows(scene.grid))
        normalizer = fixed_normalizer(None, card) or fit(blocks, card.bands, card.compression, scene.name)
        valid_rows: deque[NDArray[np.bool_]] = deque()  # read, but not yet handed out

        def read(row: int, rows: int) -> tuple[Floats, NDArray[np.bool_]]:
            pixels, valid = scene.read(Window(0, row, tiling.width, rows), card.bands)
            valid_rows.extend(valid)
            return normalizer(pixels, valid), valid

        for row, values in predict(read, tiling, ensemble, batch_size=batch_size):
            seen = np.stack([valid_rows.popleft() for _ in range(values.shape[1])])
            prob, uncertainty = np.where(seen, values, np.float32(np.nan))
            yield Window(0, row, tiling.width, len(seen)), prob, uncertainty


def _choose(folder: Path, how: Selection, threshold: float, doubts: Doubts) -> dict[str, int]:
    """Second pass: labels of a target, and how many there are."""
    counts = np.zeros(UNKNOWN + 1, np.int64)
    with writing(folder), rasterio.open(folder / ANSWER) as answer:
        grid = grid_of(folder / ANSWER)
        kind = {"count": 1, "dtype": "uint8", "nodata": UNKNOWN}
        with rasterio.open(folder / "labels.tif", "w", **profile(grid), **kind) as labels:
            labels.descriptions = ("landslide",)
            labels.update_tags(SOURCE=f"pseudo-labels: {how}")
            for window in row_windows(grid):
                prob, uncertainty = answer.read(window=window)
                found = how.labels(doubts, prob, uncertainty, threshold)
                labels.write(found, 1, window=window)
                counts += np.bincount(found[~np.isnan(prob)], minlength=len(counts))
        (folder / ANSWER).unlink()
    return {"background": int(counts[0]), "landslide": int(counts[1]), "not used": int(counts[UNKNOWN])}
