"""An evaluation to look at: its curves as a PNG, and a page that needs nothing from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from l4s_geo.errors import OutputError
from l4s_geo.evaluation.details import BETAS, DOUBTS, SIZE_NAMES, Details, number
from l4s_geo.evaluation.evaluate import Evaluation
from l4s_geo.outputs import atomic, check_output, writing
from l4s_geo.report.html import document

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")

DPI = 120

_RULES = {
    "95 % intervals": "in brackets: percentiles of a bootstrap that draws blocks of 128 x 128 pixels (Efron 1979). An "
    "object belongs to the first block with labelled pixels of it. Where all of a few objects were found, or none, "
    "they have no width, but that is no certainty.",
    "Pixels": "those that have a label. Those that the map did not see count as not mapped.",
    "Objects": "pixels that touch each other, by a corner too. One of which half or more is not labelled counts for "
    "nothing. Of the others only labelled pixels overlap. Sizes are their own: precision is the share of the mapped "
    "objects of that size that are right, recall the share of the true ones of that size that were found.",
    "Overlapping": "a true object is found if any of its pixels is mapped; a mapped one is right if any of its pixels "
    "is landslide.",
    "IoU > 0.5": "two objects are the same if what they share is more than half of what they cover together. No two "
    "can be the same as a third (Kirillov et al. 2019).",
    "Edges": "boundary F1 (Csurka et al. 2013): edge pixels within the tolerance of an edge of the other side. Edges "
    "with unlabelled pixels within the tolerance are not counted.",
    "ECE": "expected calibration error (Naeini et al. 2015, Guo et al. 2017): distance between the mean probability "
    "and the share of landslides, over 15 bins. Most pixels are sure to be background and make it small; that of the "
    "mapped pixels says more. Brier score: mean squared error of the probabilities (Brier 1950).",
    "Best thresholds": "were chosen on these labels, and flatter the map by that. F2 counts recall twice as much as "
    "precision, F0.5 half as much (van Rijsbergen 1979).",
    "Risk and coverage": "answers are trusted from the surest on; the risk is the share of wrong ones among them "
    "(Geifman & El-Yaniv 2017). The area under that curve is small where doubt finds the errors, and the error "
    "rate where it says nothing. The excess is its distance from a perfect ranking (Geifman et al. 2019). A mapped "
    "object is wrong if it overlaps no landslide. Its uncertainty is that of its surest pixel: 1 less the probability, "
    "and how far the networks are apart.",
}


def check_target(path: Path, extension: str, overwrite: bool, inputs: Sequence[str]) -> None:
    """Check before any work that a page or picture can be written.

    Args:
        path: Of the output.
        extension: That it must have.
        overwrite: Whether a file that exists may be replaced.
        inputs: Files that may never be.

    Raises:
        OutputError: It exists and may not be replaced, is an input, or cannot be written.
    """
    check_output(path, (extension,))
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists. Give --overwrite to replace it, or another name.")
    if path.exists() and any(Path(i).exists() and path.samefile(i) for i in inputs):
        raise OutputError(f"{path} is an input and would be lost. Choose another name.")


def write_page(path: Path, found: Evaluation) -> None:
    """Write the page.

    Raises:
        OutputError: It cannot be written. What was there before is untouched.
    """
    with atomic(path) as temporary, writing(path):
        temporary.write_text(_page(found.to_dict(), curves_png(found)), encoding="utf-8")


def write_curves(path: Path, found: Evaluation) -> None:
    """Write the curves as a PNG.

    Raises:
        OutputError: It cannot be written. What was there before is untouched.
    """
    with atomic(path) as temporary, writing(path):
        temporary.write_bytes(curves_png(found))


def curves_png(found: Evaluation) -> bytes:
    """PNG: objects by size; where there are probabilities also thresholds, calibration, risk and coverage.

    Args:
        found: An evaluation with details.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    details = _details(found)
    panels = [_sizes]
    if details.curve is not None:
        panels += [_sweep, _reliability, _risk]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns, 4.4 * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, draw in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        draw(ax, details, found.threshold)
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _details(found: Evaluation) -> Details:
    if found.details is None:
        raise ValueError("an evaluation without details has no curves")
    return found.details


def _sizes(ax: Axes, details: Details, threshold: float) -> None:
    """Object precision and recall by size, with intervals."""
    series = [(match, figure) for match in ("overlap", "iou") for figure in ("precision", "recall")]
    for k, (match, figure) in enumerate(series):
        names = [f"{match}/{size}/{figure}" for size in ("all", *range(len(SIZE_NAMES)))]
        values = np.array([details.objects.values[name] for name in names])
        low, high = np.array([details.objects.intervals[name] for name in names]).T
        # An interval of few objects may leave the figure out
        bars = np.clip(np.nan_to_num([values - low, high - values]), 0, None)
        colour, hollow = COLOURS[k % 2], match == "iou"
        ax.errorbar(
            np.arange(len(names)) + (k - 1.5) * 0.15, values, bars, fmt="os"[k % 2], color=colour, capsize=2,
            markerfacecolor="white" if hollow else colour,
            label=f"{figure}, {'IoU > 0.5' if hollow else 'overlapping'}",
        )  # fmt: skip
    counts = details.numbers[:, :, 0].astype(int)
    words = ["all", *(name.replace(" m²", "").replace(" to ", "\nto ").replace(" and", "\nand") for name in SIZE_NAMES)]
    lines = [w if "\n" in w else f"{w}\n" for w in words]
    words = [f"{w}\n{m:,} | {r:,}" for w, m, r in zip(lines, *counts, strict=True)]
    ax.set_xticks(range(len(words)), words, fontsize=8)
    ax.set_xlabel("area in m², and objects: mapped | true")
    ax.set_ylim(0, 1.02)
    ax.set_title("Objects by size")
    ax.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.24), frameon=False, columnspacing=1)


def _sweep(ax: Axes, details: Details, threshold: float) -> None:
    """F-measures over the threshold."""
    sweep, best = details.sweep(200), details.best_thresholds()
    for name, style in (("precision", ":"), ("recall", "--")):
        ax.plot(sweep["threshold"], sweep[name], color="0.45", linestyle=style, label=name)
    for name, colour, mark in zip(BETAS, COLOURS, "osD", strict=False):
        ax.plot(sweep["threshold"], sweep[name], color=colour, label=name.upper())
        if name in best:
            ax.plot(best[name]["threshold"], best[name]["f"], mark, color=colour)
    ax.axvline(threshold, color="0.7", linewidth=1)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="threshold (line: the one used; marks: the best)")
    ax.set_title("Pixels by threshold")
    ax.legend(fontsize=8, ncols=2)


def _reliability(ax: Axes, details: Details, threshold: float) -> None:
    """Share of landslides over the probability, and how many pixels say so."""
    if details.reliability is None:
        return
    pixels, prob, share = details.reliability
    counts = ax.twinx()
    edges = np.linspace(0, 1, len(pixels) + 1)
    counts.bar(edges[:-1], pixels, np.diff(edges), align="edge", color="0.85", log=True)
    counts.set_ylabel("pixels (bars)", color="0.4")
    ax.set_zorder(counts.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.plot([0, 1], [0, 1], color="0.4", linestyle="--", label="probabilities that are right")
    ax.plot(prob, share, "o-", color=COLOURS[0], label="this map")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="mean probability", ylabel="share of landslides")
    ax.set_title("Calibration")
    ax.legend(fontsize=8, loc="upper left")


def _risk(ax: Axes, details: Details, threshold: float) -> None:
    """Errors among the most certain answers, against the errors of all."""
    for (name, (coverage, risk)), colour, style in zip(
        details.risk_curves.items(), COLOURS, ("-", "--", "-.", ":"), strict=False
    ):
        rate = details.risk[name].values["error_rate"]
        if rate > 0:
            ax.plot(coverage, risk / rate, color=colour, linestyle=style, label=DOUBTS[name])
    ax.axhline(1, color="0.4", linewidth=1, label="ranked by chance")
    # Above that only the first few answers are, by chance
    ax.set(xlim=(0, 1), ylim=(0, 2), xlabel="coverage: share that is trusted, surest first")
    ax.set_ylabel("risk, against that of all")
    ax.set_title("Does doubt find the errors?")
    ax.legend(fontsize=8)


def _page(facts: Mapping[str, Any], curves: bytes) -> str:
    title = f"{_name(facts['pred'])} against {_name(facts['truth'])}"
    return document(title, ["<main>", f"<h1>{escape(title)}</h1>", *_sections(facts, curves), "</main>"])


def _sections(facts: Mapping[str, Any], curves: bytes) -> Iterator[str]:
    yield (
        f"<p>Mapped from a probability of {facts['threshold']:g} on. Grid: {escape(facts['grid'])}, rows "
        f"{facts['rows'][0]} to {facts['rows'][1] - 1}. {facts['counts']['tp'] + facts['counts']['fn']:,} pixels of "
        f"landslide and {facts['counts']['fp'] + facts['counts']['tn']:,} of background in {facts['blocks']:,} blocks; "
        f"{100 * facts['unseen_share']:.2f} % of them were not seen.</p>"
    )
    yield from _headline(facts)
    picture = b64encode(curves).decode()
    words = "Curves; their figures are in the tables of this page"
    yield f'<figure><img alt="{words}" src="data:image/png;base64,{picture}"></figure>'
    yield from _by_size(facts["objects"])
    if "calibration" in facts:
        yield from _probabilities(facts)
    yield "<h2>What the figures mean</h2><dl>"
    yield "".join(f"<dt>{escape(name)}</dt><dd>{escape(rule)}</dd>" for name, rule in _RULES.items())
    yield "</dl>"


def _headline(facts: Mapping[str, Any]) -> Iterator[str]:
    edges, objects = facts["boundary"], facts["objects"]
    rows = {
        "pixels": facts,
        "objects, overlapping": objects["overlap"],
        "objects, IoU > 0.5": objects["iou"],
        f"edges, within {edges['tolerance_px']} pixels ({edges['tolerance_m']:.0f} m)": edges,
    }
    names = ("precision", "recall", "f1")
    cells = [[name, *(_with_interval(scores, figure) for figure in names)] for name, scores in rows.items()]
    yield _table("The map against the truth", ["", "precision", "recall", "F1"], cells)


def _by_size(objects: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Objects by size</h2>"
    head = ["size", "mapped", "true", *(f"{f}, {m}" for m in ("overlapping", "IoU") for f in ("P", "R", "F1"))]
    rows = []
    for name, size in zip(("all", *SIZE_NAMES), (objects, *objects["by_size"]), strict=True):
        figures = [_with_interval(size[m], f) for m in ("overlap", "iou") for f in ("precision", "recall", "f1")]
        rows.append([name, f"{size['mapped']['number']:,}", f"{size['reference']['number']:,}", *figures])
    yield _table("P precision, R recall, with 95 % intervals", head, rows)


def _probabilities(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Probabilities</h2>"
    calibration = facts["calibration"]
    names = {"ece": "ECE", "ece_mapped": "ECE of the mapped pixels", "brier": "Brier score"}
    rows = [[words, _with_interval(calibration, name, 4)] for name, words in names.items()]
    yield _table("Calibration", ["", "value"], rows)
    rows = [
        [name.upper(), *(number(best[k]) for k in ("f", "threshold", "precision", "recall"))]
        for name, best in facts["thresholds"].items()
    ]
    if rows:
        yield _table("Best thresholds, of pixels", ["", "best", "threshold", "precision", "recall"], rows)
    rows = [
        [DOUBTS[name], *(_with_interval(s, f, 5) for f in ("aurc", "excess_aurc", "error_rate"))]
        for name, s in facts.get("risk_coverage", {}).items()
    ]
    if rows:
        yield _table("Errors ranked by doubt", ["", "area under the curve", "excess", "error rate"], rows)
    rows = [
        [f"{k / len(calibration['bins']):.2f} to {(k + 1) / len(calibration['bins']):.2f}", f"{b['pixels']:,.0f}",
         number(b["mean_probability"]), number(b["landslide_share"])]
        for k, b in enumerate(calibration["bins"])
    ]  # fmt: skip
    yield _table("Reliability curve", ["probability", "pixels", "mean probability", "share of landslides"], rows)


def _with_interval(scores: Mapping[str, Any], name: str, digits: int = 3) -> str:
    low, high = scores["intervals"][name]
    value = number(scores[name], digits)
    return value if low is None else f"{value} ({number(low, digits)} to {number(high, digits)})"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are escaped; the first of a row is its heading."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<div class="wide"><table><caption>{escape(caption)}</caption><tr>{top}</tr>{body}</table></div>'


def _name(path: str) -> str:
    """The file's name alone: a page may be passed on."""
    return PurePath(path.partition("?")[0]).name
