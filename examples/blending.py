"""How good maps get by the share of the way from a scene's own statistics to those of the training regions.

python examples/blending.py MODEL scenes/hokkaido scenes/taitung:6016-6400 [--negatives SCENE] [--sides 0 512 128]

For every labelled scene (or pixel rows of it, with the statistics of all of it) a row of F1 at the card's threshold and
best F1, whole (side 0) and cut into squares that are standardized each by itself. For scenes without landslides the
mapped share. Pixels of the networks' mean probability, patches overlap by half, no CRF, no limits of size or slope.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from l4s_geo.data.crops import Area, load_area, make_area
from l4s_geo.data.patches import UNKNOWN
from l4s_geo.ensemble import Ensemble, choose_dtype
from l4s_geo.metrics import ThresholdCurve
from l4s_geo.models import registry
from l4s_geo.normalize import Normalizer, blend
from l4s_geo.tiling import PATCH
from l4s_geo.train.validate import threshold_curve


def squares(area: Area, side: int) -> Iterator[Area]:
    """Squares of a scene that are at least half seen and labelled somewhere, each with statistics of its own."""
    for row in range(0, area.truth.shape[0], side):
        for column in range(0, area.truth.shape[1], side):
            at = np.s_[row : row + side, column : column + side]
            image, truth, valid = area.image[:, *at], area.truth[at], area.valid[at]
            if valid.mean() >= 0.5 and (truth != UNKNOWN).any():
                bands, compression = area.normalizer.bands, area.normalizer.compression
                yield make_area(area.name, bands, image, truth, valid, compression)


def main() -> None:
    """Print the rows of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scenes", nargs="*", help="labelled scenes, FOLDER or FOLDER:ROW0-ROW1")
    parser.add_argument("--negatives", nargs="*", default=[])
    parser.add_argument("--sides", nargs="*", type=int, default=[0])
    parser.add_argument("--shares", nargs="*", type=float, default=[0, 0.1, 0.15, 0.2, 0.25])
    args = parser.parse_args()

    model = registry.find(args.model)
    card = model.card.uncalibrated()
    training, threshold = Normalizer.from_dict(card.statistics), card.thresholds["balanced"]
    device = torch.device("cpu")
    ensemble = Ensemble([registry.load_network(model, n) for n in card.networks], device, choose_dtype("auto", device))
    how = {"compression": card.compression, "resolution": card.resolution_m}

    def curves(areas: list[Area]) -> Iterator[ThresholdCurve]:
        for share in args.shares:
            moved = [replace(a, normalizer=blend(a.normalizer, training, share)) for a in areas]
            yield threshold_curve(ensemble, moved, PATCH)

    def row(name: str, values: Iterator[str]) -> None:
        print(f"| {name} | {' | '.join(values)} |", flush=True)

    row("", (f"{share:g}" for share in args.shares))
    for path in args.scenes:
        folder, _, rows = path.partition(":")
        scene = load_area(folder, card.bands, **how)
        scene = scene.rows(*map(int, rows.split("-"))) if rows else scene
        for side in args.sides:
            found = curves([*squares(scene, side)] if side else [scene])
            values = (f"{c.counts_at(threshold).f1:.3f}, {c.best_f(1.0)[1].f1:.3f}" for c in found)
            row(f"{scene.name}, pieces of {side}" if side else scene.name, values)
    for path in args.negatives:
        scene = load_area(path, card.bands, labels=False, **how)
        counts = (c.counts_at(threshold) for c in curves([scene]))
        row(scene.name, (f"{100 * c.fp / (c.fp + c.tn):.2f} %" for c in counts))


if __name__ == "__main__":
    main()
