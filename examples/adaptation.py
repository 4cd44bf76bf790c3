"""Does adapting help? Every method on regions that the starting models never saw; out come a CSV and a table.

python examples/adaptation.py PAIR... --scenes SCENES --s2 HOKKAIDO_S2 --models MODELS --out OUT

A PAIR is MODEL:TARGET, with MODEL a model directory in MODELS and TARGET one of hokkaido, post (the original Sentinel-2
scene of Hokkaido after the earthquake, in HOKKAIDO_S2), rasuwa, taitung-a (patch rows 16..27) and taitung-b (patch
rows 50..61). Choose cases with --case; rows that are in the CSV already are not run again.

Figures are pixel by pixel, of the probabilities at the model's threshold, without CRF and least area. With --labels
the polygons that were given are left out of them, before and after.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from shapely.geometry import shape

from l4s_geo.adapt.loop import Adapted, adapt
from l4s_geo.adapt.method import METHODS
from l4s_geo.adapt.options import AdaptOptions
from l4s_geo.models.card import Card
from l4s_geo.progress import Silent

#: Pixel rows of taitung to learn from again, those that hyper-parameters were chosen on, and those that are reported.
ROWS = {"taitung-source": (0, 47 * 128), "taitung-a": (16 * 128, 28 * 128), "taitung-b": (50 * 128, 62 * 128)}

#: Landslides that a person marks have at least so many pixels.
LEAST = 30

#: Regions that a starting model has learnt from, by the first letters of its name.
SOURCES = {"H": ["hokkaido"], "A": ["taitung-source"], "TR": ["taitung-source", "rasuwa"]}

COLUMNS = ["pair", "case", "seed", "before P", "before R", "before F1", "after P", "after R", "after F1"]
COLUMNS += ["kept", "adapted", "statistics", "minutes"]


@dataclass(frozen=True)
class Case:
    """One way of adapting."""

    method: str = "auto"
    source: bool = False
    polygons: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    statistics: str = ""


#: Lines of the methods that the ablations change.
CANDIDATES = 'normalizations = ["scene", "centre", "model"]'
SHARE = "share = 1.0"
NOT_PASTED = {"paste_share = 0.5": "paste_share = 0"}

CASES = {
    **{name: Case(name) for name in ("auto", "progressive", "mc-dropout", "top-confidence")},
    **{f"{name} + source": Case(name, source=True) for name in ("auto", "progressive", "mc-dropout", "top-confidence")},
    "auto + 20 polygons": Case(polygons=20),
    "auto + source + 20 polygons": Case(source=True, polygons=20),
    "auto + 20 polygons, not pasted": Case(polygons=20, changes=NOT_PASTED),
    "auto + source, not pasted": Case(source=True, changes=NOT_PASTED),
    **{f"auto, {n} rounds": Case(more={"rounds": n}) for n in (1, 3, 12)},
    "auto + 20 polygons, 12 rounds": Case(polygons=20, more={"rounds": 12}),
    "auto, one round of 300 steps": Case(more={"rounds": 1, "steps": 300}),
    **{f"auto, statistics: {s}": Case(changes={CANDIDATES: ""}, statistics=s) for s in ("scene", "centre", "model")},
    "auto + source, shared norms": Case(source=True, changes={"domain_norm = true": ""}),
    "auto with mix-up": Case(changes={"[augmentation]": "[mixing]\nmix_up = 0.2\n[augmentation]"}),
    "auto with hard labels": Case(changes={'"soft"': '"top-share"'}),
    **{f"top-confidence, {s:.0%}": Case("top-confidence", changes={SHARE: f"share = {s}"}) for s in (0.5, 0.7, 0.9)},
    "top-confidence, 90%, plain": Case("top-confidence", changes={SHARE: "share = 0.9, balanced = false"}),
    "mc-dropout without mix-up": Case("mc-dropout", changes={"mix_up = 0.2": "mix_up = 0"}),
}


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    scenes: Path
    s2: Path
    models: Path
    out: Path
    threads: int

    def target(self, name: str) -> tuple[str, Path]:
        """A scene and its truth."""
        if name == "post":
            return str(self.s2 / "post_B*.tif"), self.scenes / "hokkaido" / "labels.tif"
        folder = self.scenes / name if name not in ROWS else self._rows(name)
        return str(folder / "rgb.tif"), folder / "labels.tif"

    def _rows(self, name: str) -> Path:
        """Some rows of taitung as a scene of their own."""
        folder, (first, end) = self.out / name, ROWS[name]
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("rgb.tif", "labels.tif"):
            with rasterio.open(self.scenes / "taitung" / file) as whole:
                window = Window(0, first, whole.width, end - first)
                place = {"height": end - first, "transform": window_transform(window, whole.transform)}
                with rasterio.open(folder / file, "w", **(whole.profile | place)) as part:
                    part.descriptions = whole.descriptions
                    part.write(whole.read(window=window))
        return folder

    def sources(self, model: str) -> list[str]:
        """What the starting model has learnt from: of taitung the rows before those that tune and are reported."""
        learnt = SOURCES[model.rstrip("0123456789")]
        return [str(self._rows(name) if name in ROWS else self.scenes / name) for name in learnt]

    def polygons(self, truth: Path, scene: str, count: int, seed: int) -> Path:
        """Outlines of some landslides inside the scene, as a person might draw them."""
        with rasterio.open(truth) as file:
            labels, transform, crs = file.read(1), file.transform, file.crs
        found = [shape(s) for s, _ in shapes((labels == 1).astype(np.uint8), labels == 1, transform=transform)]
        large = [s for s in found if s.area >= LEAST * abs(transform.a * transform.e)]
        table = gpd.GeoDataFrame(geometry=large, crs=crs)
        if scene.endswith("post_B*.tif"):
            with rasterio.open(scene.replace("*", "4")) as image:
                left, bottom, right, top = image.bounds
            table = table.cx[left:right, bottom:top]
        path = self.out / f"polygons-{truth.parent.name}-{Path(scene).stem.strip('*')}-{count}-{seed}.gpkg"
        table.sample(count, random_state=seed).to_file(path, layer="landslides")
        return path

    def run(self, pair: str, name: str, seed: int) -> dict[str, Any]:
        """Adapt, and say what came of it."""
        model, target = pair.split(":")
        case = CASES[name]
        scene, truth = self.target(target)
        folder = self.out / f"{pair}-{name}-{seed}".replace(" ", "").replace(":", "-").replace(",", "-")
        shutil.rmtree(folder, ignore_errors=True)
        options = AdaptOptions(
            (scene,),
            folder,
            model=str(self._model(model, case, folder)),
            method=self._method(case, folder),
            source=tuple(self.sources(model)) if case.source else (),
            labels=self.polygons(truth, scene, case.polygons, seed) if case.polygons else None,
            truth=(str(truth),),
            seed=seed,
            threads=self.threads,
            **case.more,
        )
        started = time.monotonic()
        found = adapt(options, Silent())
        return {"pair": pair, "case": name, "seed": seed} | _row(found, (time.monotonic() - started) / 60)

    def _model(self, name: str, case: Case, folder: Path) -> Path:
        """The starting model, where asked for with other statistics on its card."""
        if not case.statistics:
            return self.models / name
        copy = folder.with_name(f"{folder.name}-start")
        shutil.copytree(self.models / name, copy, dirs_exist_ok=True)
        replace(Card.load(copy), normalization=case.statistics).save(copy)
        return copy

    def _method(self, case: Case, folder: Path) -> str:
        """The method, where asked for with other lines."""
        if not case.changes:
            return case.method
        text = (METHODS / f"{case.method}.toml").read_text()
        for line, other in case.changes.items():
            if line not in text:
                raise ValueError(f"{case.method}.toml has no {line!r}")
            text = text.replace(line, other)
        path = folder.with_name(f"{folder.name}.toml")
        path.write_text(text)
        return str(path)


def _row(found: Adapted, minutes: float) -> dict[str, Any]:
    kept = next(r for r in found.rounds if r.number == found.kept)
    after = kept.figures or {}
    before = found.before or {}
    figures = {"P": "precision", "R": "recall", "F1": "f1"}
    return {
        **{f"before {k}": round(before[v], 4) for k, v in figures.items()},
        **{f"after {k}": round(after[v], 4) for k, v in figures.items()},
        "kept": found.kept,
        "adapted": found.card.adapted,
        "statistics": found.card.normalization,
        "minutes": round(minutes, 1),
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="MODEL:TARGET")
    parser.add_argument("--case", action="append", choices=list(CASES), help="repeatable; all if not given")
    parser.add_argument("--seeds", type=int, default=1)
    for name in ("scenes", "s2", "models", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.scenes, given.s2, given.models, given.out, given.threads)
    table = given.out / "adaptation.csv"
    for seed in range(1, given.seeds + 1):
        for pair in given.pairs:
            for name in given.case or CASES:
                if (pair, name, str(seed)) in _done(table):
                    continue
                row = bench.run(pair, name, seed)
                fresh = not table.exists()
                with table.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if fresh:
                        writer.writeheader()
                    writer.writerow(row)
                print(row, flush=True)
    (given.out / "adaptation.md").write_text(summary(table) + "\n")


def summary(table: Path) -> str:
    """Markdown: means and ranges over the starting models of a family (TR1, TR2 ...) and over seeds."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in _rows(table):
        model, target = row["pair"].split(":")
        groups.setdefault((f"{model.rstrip('0123456789')} to {target}", row["case"]), []).append(row)
    lines = [
        "| pair | case | runs | F1 before | F1 after | change | P after | R after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (pair, case), rows in groups.items():
        before, after, p, r = (
            np.array([float(row[k]) for row in rows]) for k in ("before F1", "after F1", "after P", "after R")
        )
        shown = " | ".join(_spread(v) for v in (before, after, after - before))
        lines.append(f"| {pair} | {case} | {len(rows)} | {shown} | {p.mean():.2f} | {r.mean():.2f} |")
    return "\n".join(lines)


def _spread(values: NDArray[np.float64]) -> str:
    """Mean, and range of several."""
    text = f"{values.mean():.3f}"
    return text if len(values) == 1 else f"{text} ({values.min():.3f} to {values.max():.3f})"


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _done(table: Path) -> set[tuple[str, str, str]]:
    return {(r["pair"], r["case"], r["seed"]) for r in _rows(table)} if table.exists() else set()


if __name__ == "__main__":
    main()
