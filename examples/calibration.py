"""Do probabilities mean what they say, before and after calibration, and does uncertainty point out errors?

l4s-map models calibrate A --data scenes/taitung --validate taitung:6016-6400 --out A-cal
python examples/calibration.py --model A-cal --scenes SCENES --s2 HOKKAIDO_S2 --out calibration

SCENES holds taitung and hokkaido as folders with rgb.tif and labels.tif. Ways of calibrating and of ranking errors are
compared on the validation rows alone, by blocks that take turns in being left out; what was chosen is then measured on
the rows and scenes that nothing was chosen by. Out come calibration.csv, calibration.png, and the maps, which are used
again if they are there.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy.optimize import isotonic_regression, minimize
from scipy.special import entr, expit, logit

from l4s_geo.calibration import Calibration, Outcomes, fit
from l4s_geo.data.crops import Area
from l4s_geo.ensemble import Ensemble, choose_dtype
from l4s_geo.evaluation.evaluate import Evaluation, evaluate
from l4s_geo.evaluation.objects import ObjectPairs
from l4s_geo.evaluation.reliability import calibration_score, calibration_sums, risk_score, risk_sums
from l4s_geo.inference import predict
from l4s_geo.metrics import resample
from l4s_geo.models import registry
from l4s_geo.pipeline import MapOptions, map_scene
from l4s_geo.polygonize import PolygonizeOptions, polygonize
from l4s_geo.progress import Silent
from l4s_geo.settings import PRESETS
from l4s_geo.tiling import Tiling
from l4s_geo.train.calibrate import areas_of
from l4s_geo.train.split import DataOptions

Floats = NDArray[np.float64]
Row = dict[str, Any]

VALIDATION, TEST = (6016, 6400), (6400, 7936)
BLOCK, FOLDS = 128, 5


@dataclass(frozen=True)
class Case:
    """What is measured: a map against labels."""

    name: str
    scene: str
    truth: Path
    rows: tuple[int, int] | None = None
    aoi: str | None = None


# --- ways of calibrating, on the validation rows ---------------------------------------------------------------------


def line(features: Callable[[Floats], list[Floats]]) -> Callable[[Floats, Floats], Callable[[Floats], Floats]]:
    """Logistic regression on features of the probability."""

    def fitted(prob: Floats, truth: Floats) -> Callable[[Floats], Floats]:
        x = np.array(features(prob))

        def loss(w: Floats) -> tuple[float, Floats]:
            z = w @ x
            return float((np.logaddexp(0, z) - truth * z).mean()), x @ (expit(z) - truth) / truth.size

        w = minimize(loss, np.r_[np.ones(len(x) - 1), 0.0] if len(x) > 1 else np.ones(1), jac=True).x
        return lambda p: np.asarray(expit(w @ np.array(features(p))))

    return fitted


def isotonic(prob: Floats, truth: Floats) -> Callable[[Floats], Floats]:
    """Any curve that rises (Zadrozny & Elkan 2002)."""
    order = np.argsort(prob)
    x, y = prob[order], isotonic_regression(truth[order]).x
    return lambda p: np.interp(p, x, y)


def platt(prob: Floats, truth: Floats) -> Callable[[Floats], Floats]:
    """What the package does."""
    seen = Outcomes()
    seen.update(prob.astype(np.float32), truth.astype(np.uint8))
    found = fit(seen) or Calibration()
    return lambda p: np.asarray(found.apply(p))


METHODS = {
    "none": lambda prob, truth: lambda p: p,
    "temperature (Guo et al. 2017)": line(lambda p: [logit(p)]),
    "Platt (1999), as the package does it": platt,
    "beta (Kull et al. 2017)": line(lambda p: [np.log(p), -np.log1p(-p), np.ones_like(p)]),
    "isotonic (Zadrozny & Elkan 2002)": isotonic,
}


def labelled(prob: NDArray[np.float32], truth: NDArray[np.uint8]) -> tuple[Floats, NDArray[np.bool_], Any]:
    """Probability and truth of the labelled pixels that were seen, and where they are."""
    known = (truth != 255) & np.isfinite(prob)
    return np.clip(prob[known].astype(np.float64), 1e-7, 1 - 1e-7), truth[known] == 1, np.nonzero(known)


def method_rows(case: str, name: str, found: Floats, landslide: NDArray[np.bool_], mapped: Any) -> Iterator[Row]:
    """Figures of calibrated probabilities."""
    p, one = np.clip(found, 1e-7, 1 - 1e-7), np.zeros(len(found), np.int64)
    score = calibration_score(calibration_sums(found.astype(np.float32), landslide, mapped, one, 1)).score()
    score["log_loss"] = float(-np.where(landslide, np.log(p), np.log1p(-p)).mean())
    for figure, value in score.items():
        yield {"table": "methods", "case": case, "name": name, "figure": figure, "value": value}


def compare_methods(said: NDArray[np.float32], truth: NDArray[np.uint8], threshold: float) -> Iterator[Row]:
    """Each method on blocks that it was not fitted to."""
    prob, landslide, (row, column) = labelled(said, truth)
    blocks = np.unique(row // BLOCK * 1000 + column // BLOCK, return_inverse=True)[1]
    fold = np.random.default_rng(0).permutation(blocks.max() + 1)[blocks] % FOLDS
    for name, method in METHODS.items():
        found = np.empty_like(prob)
        for k in range(FOLDS):
            found[fold == k] = method(prob[fold != k], landslide[fold != k].astype(float))(prob[fold == k])
        yield from method_rows("validation, left-out blocks", name, found, landslide, prob >= threshold)


def transfer_methods(
    said: NDArray[np.float32], truth: NDArray[np.uint8], threshold: float, raster: Path, labels: Path
) -> Iterator[Row]:
    """Each method, fitted to the validation rows, on the held-out rows."""
    window = Window(0, TEST[0], truth.shape[1], TEST[1] - TEST[0])
    with rasterio.open(raster) as prob, rasterio.open(labels) as true:
        elsewhere, wanted, _ = labelled(prob.read(1, window=window), true.read(1, window=window))
    prob, landslide, _ = labelled(said, truth)
    for name, method in METHODS.items():
        found = method(prob, landslide.astype(float))(elsewhere)
        yield from method_rows("held-out rows", name, found, wanted, elsewhere >= threshold)


# --- ways of ranking errors, on the validation rows ------------------------------------------------------------------


def candidates(members: NDArray[np.float32], calibration: Calibration, threshold: float) -> dict[str, Floats]:
    """Doubts from 0 to 1 of every pixel, by name; what is mapped is mapped from the calibrated threshold on."""
    raw = np.clip(members.astype(np.float64), 1e-7, 1 - 1e-7)
    own, prob = calibration.apply(raw), calibration.apply(raw.mean(axis=0))
    mapped = prob >= threshold

    def entropy(p: Floats) -> Floats:
        return np.asarray(entr(p) + entr(1 - p)) / np.log(2)

    votes = (own >= threshold).mean(axis=0)
    doubt = np.where(mapped, 1 - prob, prob)
    return {
        "probability": doubt,
        "spread of what networks say": raw.std(axis=0),
        "spread of calibrated members": own.std(axis=0),
        "spread of log-odds": logit(raw).std(axis=0) / 20,
        "mutual information (BALD)": entropy(raw.mean(axis=0)) - entropy(raw).mean(axis=0),
        "entropy of the calibrated mean": entropy(prob),
        "votes": 1 - np.maximum(votes, 1 - votes),
        "most doubting network": np.where(mapped, 1 - own.min(axis=0), own.max(axis=0)),
        "probability + spread": doubt + own.std(axis=0),
    }


def rank_objects(
    prob: Floats, doubts: Mapping[str, Floats], truth: NDArray[np.uint8], threshold: float
) -> Iterator[tuple[str, str, dict[str, float], dict[str, tuple[float, float]]]]:
    """Name, how pixels are put together, figures and intervals of every ranking of mapped objects."""
    pairs, known = ObjectPairs(BLOCK, list(doubts)), truth != 255
    for top in range(0, len(prob), BLOCK):
        part = np.s_[top : top + BLOCK]
        layers = {name: np.clip(d[part], 0, 1).astype(np.float32) for name, d in doubts.items()}
        pairs.add(prob[part] >= threshold, truth[part] == 1, known[part], 100.0, layers)
    mapped, _ = pairs.end()
    blocks = np.unique(mapped.block)
    block = np.searchsorted(blocks, mapped.block)
    for how, by_object in (("mean", mapped.means), ("surest pixel", mapped.lows)):
        for name in doubts:
            score = risk_score(risk_sums(by_object[name], ~mapped.overlap, block, len(blocks)))
            yield name, how, score.score(), resample([score])[0]


def compare_rankings(
    members: NDArray[np.float32], truth: NDArray[np.uint8], calibration: Calibration, threshold: float
) -> Iterator[Row]:
    """Every candidate; wrong are mapped objects that overlap no landslide."""
    doubts = candidates(np.where(np.isfinite(members), members, 0), calibration, threshold)
    prob = np.nan_to_num(calibration.apply(members.mean(axis=0).astype(np.float64)))
    for name, how, score, intervals in rank_objects(prob, doubts, truth, threshold):
        for figure, value in score.items():
            low, high = intervals[figure]
            yield {
                "table": "rankings", "case": "validation", "name": f"{name}, {how}", "figure": figure,
                "value": value, "low": low, "high": high,
            }  # fmt: skip


def answers(area: Area, networks: Sequence[torch.nn.Module]) -> NDArray[np.float32]:
    """What each network says (K, h, w) of an area."""
    device = torch.device("cpu")
    ensemble = Ensemble(networks, device, choose_dtype("auto", device))
    tiling = Tiling(area.truth.shape[0], area.truth.shape[1], 128, 64)
    return np.concatenate([p for _, p, _ in predict(area.standardized_rows, tiling, ensemble)], axis=1)


# --- what was chosen, elsewhere --------------------------------------------------------------------------------------


def mapped(case: Case, model: str, out: Path, **more: Any) -> Path:
    """The probabilities of a map, which is made if it is not there."""
    name = "-".join([Path(case.scene).parent.name or "scene", *map(str, more.values())])
    prob = out / f"{name}.tif"
    if not prob.exists():
        options = MapOptions(case.scene, out / f"{name}.gpkg", models=(model,), prob=prob, overwrite=True)
        map_scene(replace(options, **more), Silent())
    return prob


def without(prob: Path, calibration: Calibration, out: Path) -> Path:
    """The same raster with what the networks said instead of calibrated probabilities."""
    with rasterio.open(prob) as source, rasterio.open(out, "w", **source.profile | {"driver": "GTiff"}) as file:
        file.descriptions = source.descriptions
        for _, window in source.block_windows(1):
            layers = source.read(window=window)
            layers[0] = calibration.inverse(layers[0])
            file.write(layers, window=window)
    return out


def measured(case: Case, name: str, found: Evaluation) -> Iterator[Row]:
    """Figures of an evaluation, with their intervals."""
    assert found.details is not None
    pixels = {f: (v, found.intervals[f]) for f, v in found.counts.figures().items()}
    scores = {"": found.details.calibration} | {f"{k} ": v for k, v in found.details.risk.items()}
    more = {f"{k}{f}": (v, s.intervals[f]) for k, s in scores.items() if s for f, v in s.values.items()}
    best = found.details.best_thresholds()
    peaks = {f"best {k} {what}": (b[what], (None, None)) for k, b in best.items() for what in ("f", "threshold")}
    for figure, (value, (low, high)) in (pixels | more | peaks).items():
        yield {"table": "figures", "case": case.name, "name": name, "figure": figure, "value": value,
               "low": low, "high": high}  # fmt: skip


def curves(case: Case, name: str, found: Evaluation) -> Iterator[Row]:
    """Reliability, and F1 over the threshold, as rows."""
    assert found.details is not None
    assert found.details.reliability is not None
    sweep = found.details.sweep(50)
    for threshold, f1 in zip(sweep["threshold"], sweep["f1"], strict=True):
        yield {"table": "f1 over threshold", "case": case.name, "name": name, "figure": f"{threshold:g}", "value": f1}
    for k, (pixels, prob, share) in enumerate(found.details.reliability.T):
        for figure, value in (("pixels", pixels), ("mean probability", prob), ("share of landslides", share)):
            yield {"table": f"reliability, bin {k}", "case": case.name, "name": name, "figure": figure, "value": value}


def preset_rows(case: Case, prob: Path, thresholds: Mapping[str, float], out: Path) -> Iterator[Row]:
    """What the presets map, from the probabilities at hand: their thresholds and least areas."""
    for name, preset in PRESETS.items():
        if preset.overlap != PRESETS["balanced"].overlap:
            continue  # other patches; see `fast`
        polygons = out / "preset.gpkg"
        options = PolygonizeOptions(prob, polygons, thresholds[preset.threshold], preset.min_area, overwrite=True)
        polygonize(options, Silent())
        yield from of_polygons(case, name, polygons)


def of_polygons(case: Case, name: str, polygons: Path) -> Iterator[Row]:
    """Precision, recall and F-measures of a map."""
    found = evaluate(polygons, case.truth, rows=case.rows, aoi=case.aoi)
    by_beta = {f"f{beta:g}": found.counts.f_beta(beta) for beta in (2.0, 0.5)}
    for figure, value in (found.counts.figures() | by_beta).items():
        low, high = found.intervals.get(figure, (None, None))
        yield {"table": "presets", "case": case.name, "name": name, "figure": figure, "value": value,
               "low": low, "high": high}  # fmt: skip


def draw(found: Mapping[str, tuple[Evaluation, Evaluation]], thresholds: tuple[float, float], path: Path) -> None:
    """Reliability above, F1 over the threshold below; one column per case."""
    figure = Figure(figsize=(3.4 * len(found), 6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharex=True, sharey="row")
    for column, (name, pair) in enumerate(found.items()):
        above, below = axes[:, column]
        above.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1)
        for evaluation, words, style, at in zip(pair, ("before", "after"), ("o:", "o-"), thresholds, strict=True):
            assert evaluation.details is not None
            assert evaluation.details.reliability is not None
            colour = "#b2182b" if words == "before" else "#2166ac"
            _, prob, share = evaluation.details.reliability
            above.plot(prob, share, style, color=colour, markersize=4, label=words)
            sweep = evaluation.details.sweep(200)
            below.plot(sweep["threshold"], sweep["f1"], style[1:], color=colour, label=words)
            below.axvline(at, color=colour, linewidth=0.8, linestyle=style[1:])
        above.set_title(name, fontsize=10)
        above.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability")
        below.set(ylim=(0, 0.8), xlabel="threshold (lines: the one used)")
        above.xaxis.set_tick_params(labelbottom=True)
    axes[0, 0].set_ylabel("share of landslides")
    axes[1, 0].set_ylabel("F1 of pixels")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="calibrated model that has not seen what is measured")
    parser.add_argument("--scenes", type=Path, required=True, help="folder with taitung and hokkaido")
    parser.add_argument("--s2", type=Path, required=True, help="folder with post_B4.tif, post_B3.tif, post_B2.tif")
    parser.add_argument("--out", type=Path, required=True, help="folder for the maps, calibration.csv and .png")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = registry.find(given.model)
    card, plain = model.card, model.card.uncalibrated()
    calibration = Calibration.from_dict(card.calibration)
    at, before_at = card.thresholds["balanced"], plain.thresholds["balanced"]

    data = DataOptions((str(given.scenes / "taitung"),), validate=("taitung:{}-{}".format(*VALIDATION),))
    (area,) = areas_of(data, card)
    members = answers(area, [registry.load_network(model, n) for n in card.networks])
    said, truth = members.mean(axis=0), area.truth[:]
    rows = [*compare_methods(said, truth, before_at)]
    rows += compare_rankings(members, truth, calibration, at)

    hokkaido = given.scenes / "hokkaido" / "labels.tif"
    taitung = (str(given.scenes / "taitung" / "rgb.tif"), given.scenes / "taitung" / "labels.tif")
    cases = [
        Case("taitung, validation rows", *taitung, VALIDATION),
        Case("taitung, held-out rows", *taitung, TEST),
        Case("hokkaido, patches", str(given.scenes / "hokkaido" / "rgb.tif"), hokkaido),
        Case("hokkaido, original scene", str(given.s2 / "post_B*.tif"), hokkaido, aoi=str(given.s2 / "post_B4.tif")),
    ]
    drawn = {}
    for case in cases:
        prob = mapped(case, given.model, given.out)
        raw = without(prob, calibration, given.out / "before.tif")
        if case.rows == TEST:
            rows += transfer_methods(said, truth, before_at, raw, case.truth)
        pair = [
            evaluate(path, case.truth, threshold=threshold, rows=case.rows, aoi=case.aoi, details=True)
            for path, threshold in ((raw, before_at), (prob, at))
        ]
        for name, found in zip(("before", "after"), pair, strict=True):
            rows += [*measured(case, name, found), *curves(case, name, found)]
        drawn[case.name] = (pair[0], pair[1])
        rows += preset_rows(case, prob, card.thresholds, given.out)
        if case.rows is None:
            mapped(case, given.model, given.out, preset="fast")
            fast = given.out / f"{Path(case.scene).parent.name}-fast.gpkg"
            rows += of_polygons(case, "fast", fast)
        print(case.name, "done", flush=True)
    draw({name: pair for name, pair in drawn.items() if "validation" not in name}, (before_at, at),
         given.out / "calibration.png")  # fmt: skip
    with (given.out / "calibration.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["table", "case", "name", "figure", "value", "low", "high"])
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
