"""Train every recipe, and the contrasts that the papers report, at one equal budget; out come a CSV and a table.

python examples/contrasts.py --data SCENES --minutes 4 --out contrasts

SCENES holds taitung, rasuwa and hokkaido. All learn from taitung (without its last rows) and rasuwa, in B4, B3, B2. The
threshold is tuned on taitung rows 49; figures are for taitung rows 50..61 and for hokkaido, which no training sees.
Rows that are in the CSV already are not run again.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from l4s_geo.crf import CrfParams
from l4s_geo.data.crops import Area, load_area
from l4s_geo.ensemble import Ensemble, choose_dtype
from l4s_geo.metrics import Counts, ThresholdCurve
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.progress import Silent
from l4s_geo.settings import at_threshold, normalizer_for
from l4s_geo.train.augment import Augmentation
from l4s_geo.train.mixing import Mixing
from l4s_geo.train.recipe import Recipe, Stage, load
from l4s_geo.train.run import TrainOptions
from l4s_geo.train.split import DataOptions
from l4s_geo.train.trainer import train
from l4s_geo.train.tune_crf import probabilities, refined, tune_crf
from l4s_geo.train.validate import threshold_curve, tune

RGB = ("B4", "B3", "B2")
TEST, VALIDATION = (50 * 128, 62 * 128), (49 * 128, 50 * 128)
NO_COLOUR = {"gain": 0, "gain_shift": 0, "band_gain": 0, "offset": 0, "band_offset": 0, "saturation": 0, "sharpness": 0}
FIGURES = [f"{place} {figure}" for place in ("taitung", "hokkaido") for figure in ("precision", "recall", "f1")]
COLUMNS = ["group", "name", "minutes", "steps", "crops", "threshold", *FIGURES]


@dataclass(frozen=True)
class Case:
    """One line of the table that needs a training of its own."""

    group: str
    name: str
    recipe: Recipe
    seed: int = 1


def base() -> Recipe:
    """What the contrasts start from: one small U-Net, cross-entropy + Jaccard, no scenes but the labelled ones."""
    return replace(load("bundled"), networks=("unet-resnet10t",), synthetic=0, negative_share=0.0)


def cases() -> Iterator[Case]:
    """All trainings."""
    start = base()
    for seed in (1, 2, 3):
        yield Case("base", f"base, seed {seed}", start, seed)

    def losses(**loss: Any) -> dict[str, Any]:
        return {"stages": (replace(start.stages[0], loss={k.replace("_", "-"): v for k, v in loss.items()}),)}

    def weighted(positive: float) -> dict[str, Any]:
        return losses(weighted_cross_entropy={"weight": 1, "positive": positive})

    contrasts: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
        "augmentation": {
            "none": {"augmentation": Augmentation(affine_share=0, **NO_COLOUR, paste_share=0)},
            "geometry only": {"augmentation": Augmentation(**NO_COLOUR)},
            "base + CutMix 0.5": {"mixing": Mixing(cutmix=0.5)},
            "base + cutout 0.5": {"mixing": Mixing(cutout=0.5)},
            "base + mix-up 0.2": {"mixing": Mixing(mix_up=0.2)},
        },
        "loss": {
            "cross-entropy": losses(cross_entropy=1),
            "weighted 1:2": weighted(2),
            "weighted 1:5": weighted(5),
            "weighted 1:10": weighted(10),
            "Lovasz": losses(lovasz=1),
            "cross-entropy + Lovasz": losses(cross_entropy=1, lovasz=1),
            "Lovasz + hard examples + soft cross-entropy": losses(lovasz=1, ohem=1, soft_cross_entropy=1),
        },
        "stages": {
            "one stage, balanced": {"stages": balanced_stages(start.stages[0])[:1], **image_level()},
            "two stages, balanced": {"stages": balanced_stages(start.stages[0]), **image_level()},
        },
        "normalization": {
            "global": {"normalization": "model"},
            "the organisers'": {"normalization": "l4s-baseline", "compression": "none"},
        },
        "scale": {"x2": {"networks": ("unet-resnet10t-x2",)}},
        "ensemble": {"two networks, half the time each": {"networks": ("unet-resnet10t", "unet-regnety004")}},
    }
    for group, named in contrasts.items():
        for name, changes in named.items():
            yield Case(group, name, replace(start, **changes))
    for name in ("bundled", "baseline", "sklgp", "seek", "tanmlh", "tubs", "kingdrone"):
        yield Case("recipe", name, replace(load(name), bands=RGB))


def image_level() -> dict[str, Any]:
    """The network whose encoder also learns whether a patch holds a landslide."""
    return {"networks": ("imagelevel-resnet10t",)}


def balanced_stages(stage: Stage) -> tuple[Stage, Stage]:
    """SEEK's two stages, at the base's learning rate."""
    first = replace(stage, steps=2, loss={"balanced-cross-entropy": 1, "lovasz": 1, "image-level": 1})
    second = {"cross-entropy": 1, "image-level": 1}
    return first, replace(stage, steps=1, loss=second, frozen=("encoder",), learning_rate=stage.learning_rate / 3)


@dataclass(frozen=True)
class Bench:
    """The data, and where models lie."""

    scenes: Path
    models: Path
    minutes: float
    threads: int

    def train(self, case: Case) -> Card:
        """One training within the budget."""
        recipe = case.recipe
        data = DataOptions(
            tuple(str(self.scenes / name) for name in ("taitung", "rasuwa")),
            RGB,
            holdout=("taitung:{}-{}".format(*TEST),),
            validate=("taitung:{}-{}".format(*VALIDATION),),
            synthetic=recipe.synthetic,
            negative_share=recipe.negative_share,
            compression=recipe.compression,
            normalization=recipe.normalization,
        )
        out = self.models / f"{case.group}-{case.name}".replace(" ", "-")
        shutil.rmtree(out, ignore_errors=True)
        options = TrainOptions(
            data, out, out.name, recipe, self.minutes, seed=case.seed, threads=self.threads, validate_minutes=1e6
        )
        return train(options, Silent())

    def area(self, name: str, card: Card) -> Area:
        """A labelled scene, normalized as the model wants it."""
        area = load_area(
            str(self.scenes / name), card.bands, compression=card.compression, resolution=card.resolution_m
        )
        return replace(area, normalizer=normalizer_for(None, card, lambda: area.normalizer))

    def networks(self, cards: Sequence[Card]) -> list[torch.nn.Module]:
        """Of all cards."""
        found = [registry.find(str(self.models / c.name)) for c in cards]
        return [registry.load_network(m, n) for m in found for n in m.card.networks]

    def figures(self, cards: Sequence[Card], threshold: float | None, **how: Any) -> dict[str, Any]:
        """What the mean of some models' networks reaches; a threshold of None is tuned for them."""
        device = torch.device("cpu")
        ensemble = Ensemble(self.networks(cards), device, choose_dtype("auto", device), **how)
        taitung, hokkaido = self.area("taitung", cards[0]), self.area("hokkaido", cards[0])
        if threshold is None:
            found = tune(ensemble.networks, [taitung.rows(*VALIDATION)], device, ensemble.dtype, 128)
            threshold = found.thresholds["balanced"]
        return {"threshold": round(threshold, 3)} | _figures(
            lambda area: threshold_curve(ensemble, [area], 128, 0.25).counts_at(threshold),
            {"taitung": taitung.rows(*TEST), "hokkaido": hokkaido},
        )

    def crf_figures(self, card: Card) -> dict[str, Any]:
        """What the CRF, tuned on the validation rows, makes of a model's probabilities."""
        device, threshold = torch.device("cpu"), card.uncalibrated().thresholds["balanced"]
        ensemble = Ensemble(self.networks([card]), device, choose_dtype("auto", device))
        taitung, hokkaido = self.area("taitung", card), self.area("hokkaido", card)
        tuned = tune_crf(ensemble, [taitung.rows(*VALIDATION)], threshold, 128, 96)
        params = at_threshold(CrfParams(**tuned["params"]), threshold)

        def counts(area: Area) -> Counts:
            layers = probabilities(ensemble, area, 128, 96)
            curve = ThresholdCurve()
            curve.update(refined(layers, params), area.truth)
            return curve.counts_at(threshold)

        return {"threshold": threshold} | _figures(counts, {"taitung": taitung.rows(*TEST), "hokkaido": hokkaido})


def _figures(counts: Callable[[Area], Counts], areas: Mapping[str, Area]) -> dict[str, float]:
    found = {place: counts(area) for place, area in areas.items()}
    return {
        f"{place} {f}": round(getattr(c, f), 3) for place, c in found.items() for f in ("precision", "recall", "f1")
    }


def spent(bench: Bench, case: Case, card: Card) -> dict[str, Any]:
    """Steps and crops of all networks of a training."""
    folder = bench.models / card.name
    one = len(card.networks) == 1
    trainings = [card.training] if one else [card.training[n.name] for n in card.networks]
    assert folder.is_dir()
    steps = sum(int(t["steps"]) for t in trainings)
    minutes = sum(float(t["minutes"]) for t in trainings)
    return {"minutes": round(minutes, 1), "steps": steps, "crops": steps * case.recipe.batch_size}


def run(bench: Bench, path: Path, only: Sequence[str]) -> None:
    """Fill in the rows that the CSV lacks, of some groups or of all."""
    done = {(r["group"], r["name"]) for r in read(path)}
    for case in cases():
        if (case.group, case.name) not in done and (not only or case.group in only):
            card = bench.train(case)
            row = spent(bench, case, card) | bench.figures([card], card.uncalibrated().thresholds["balanced"])
            append(path, {"group": case.group, "name": case.name} | row)
    if not all((bench.models / f"base-base,-seed-{seed}").is_dir() for seed in (1, 2, 3)):
        return
    seeds = [Card.load(bench.models / f"base-base,-seed-{seed}") for seed in (1, 2, 3)]
    first = seeds[0]
    derived: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
        ("CRF", "base, seed 1, with CRF"): lambda: bench.crf_figures(first),
        ("ensemble", "base, mean of the three seeds"): lambda: bench.figures(seeds, None),
        ("ensemble", "base, seed 1, mean of eight turns"): lambda: bench.figures(
            [first], first.uncalibrated().thresholds["balanced"], tta=True
        ),
    }
    for (group, name), figures in derived.items():
        if (group, name) not in done and (not only or group in only):
            append(path, {"group": group, "name": name} | figures())


def read(path: Path) -> list[dict[str, str]]:
    """Rows so far."""
    if not path.is_file():
        return []
    with path.open() as f:
        return list(csv.DictReader(f))


def append(path: Path, row: Mapping[str, Any]) -> None:
    """One more row."""
    new = not path.is_file()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The table, in the order of the groups."""
    lines = ["| | crops | taitung P | R | F1 | hokkaido P | R | F1 |", "|---|---|---|---|---|---|---|---|"]
    for group in dict.fromkeys(r["group"] for r in rows):
        lines.append(f"| **{group}** | | | | | | | |")
        for r in (r for r in rows if r["group"] == group):
            lines.append(f"| {r['name']} | {r['crops']} | " + " | ".join(f"{float(r[c]):.3f}" for c in FIGURES) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the trainings and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with taitung, rasuwa, hokkaido")
    parser.add_argument("--out", type=Path, required=True, help="folder for models, contrasts.csv and contrasts.md")
    parser.add_argument("--minutes", type=float, default=4.0, help="of each training")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help="group of rows; repeat for more")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "contrasts.csv"
    run(Bench(args.data, args.out, args.minutes, args.threads), path, args.only)
    (args.out / "contrasts.md").write_text(markdown(read(path)))


if __name__ == "__main__":
    main()
