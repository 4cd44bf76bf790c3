"""Synthetic patches in the official layouts of Landslide4Sense, to try programs without the data set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l4s_geo.data.l4s import COUNTS, LAYOUTS, encode_image, encode_mask
from l4s_geo.data.new_folder import new_folder
from l4s_geo.data.synthetic import make_scene
from l4s_geo.progress import Progress
from l4s_geo.tiling import PATCH

#: Side of the scenes that patches are cut from.
SIDE = 2 * PATCH

#: Scenes that one seed can make before it would meet those of the next.
SCENES = 1_000_000


def synthetic_patches(seed: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Patches (14, 128, 128) in digital numbers, degrees and metres with their masks (128, 128), without end.

    They are cut side by side from scenes of the demo's generator, every second one without landslides: in the data set
    half of the patches have none. Patches with pixels without data are left out.
    """
    for i in count():
        scene = make_scene(SIDE, SIDE, seed * SCENES + i, landslides=i % 2 == 0)
        for row, column in product(range(0, SIDE, PATCH), repeat=2):
            part = np.s_[row : row + PATCH, column : column + PATCH]
            if scene.valid[part].all():
                yield scene.image[:, *part], scene.truth[part]


def write_synthetic(out: Path, patches: int, layout: str, seed: int, progress: Progress) -> dict[str, int]:
    """Write a synthetic data set; equal arguments give equal files.

    As in the data set, the original layout has no masks of validation and test patches.

    Args:
        out: Folder to make.
        patches: Training patches; validation and test get 1/16 and 1/5 of it, as in the data set, at least one.
        layout: ``traindata`` or ``images``.
        seed: Of the random generator.
        progress: Advances by patches.

    Returns:
        Patches by split.

    Raises:
        OutputError: The folder exists and is not empty, or cannot be written.
    """
    counts = {"train": patches, "validation": max(1, patches // 16), "test": max(1, patches // 5)}
    progress.start("synthetic patches", sum(counts.values()))
    with new_folder(out) as work:
        for i, split in enumerate(COUNTS):  # other scenes for every split
            images, masks = (work / part for part in LAYOUTS[layout][split])
            masked = split == "train" or layout == "images"
            for folder in (images, masks) if masked else (images,):
                folder.mkdir(parents=True)
            made = islice(synthetic_patches(len(COUNTS) * seed + i), counts[split])
            for number, (image, mask) in enumerate(made, 1):
                (images / f"image_{number}.h5").write_bytes(encode_image(image))
                if masked:
                    (masks / f"mask_{number}.h5").write_bytes(encode_mask(mask))
                progress.advance()
    progress.finish()
    return counts
