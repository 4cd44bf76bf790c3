"""Pictures of the report as PNG: curves over the rounds, and maps of a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling

from l4s_geo.adapt.views import CHANGES, Floats, Maps, View, true_colour, truth_of
from l4s_geo.data.patches import UNKNOWN
from l4s_geo.train.pseudo import classes
from l4s_geo.train.targets import grid_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which the colour-blind tell apart: of ``CHANGES``, of labels, and of curves.
CHANGE_COLOURS = ("#56b4e9", "#d55e00", "#f0e442")
LABEL_COLOURS = {1: ("landslide", "#d55e00"), UNKNOWN: ("not used", "#f0e442")}
CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")

#: Where there is nothing to show.
UNSEEN = "#c8c8c8"

DPI = 150


def map_picture(maps: Maps, truth: Path | None = None) -> bytes:
    """PNG: true colour, what changed, probability before and after; without the last where nothing was kept."""
    view = View.of(grid_of(maps.image))
    colour = true_colour(maps.image, view)
    figure, axes = _panels(4 if maps.after else 3, view)
    _show(axes[0], colour, "The scene")
    _scale_bar(axes[0], view)
    _changes(axes[1], maps, _grey(colour), view, truth)
    answers = {"before": maps.before, "after": maps.after} if maps.after else {"": maps.before}
    for ax, (when, path) in zip(axes[2:], answers.items(), strict=True):
        prob = view.read(path, [1], Resampling.average)[0]
        image = _show(ax, prob, f"Probability of landslide {when}".strip(), cmap="magma", vmin=0, vmax=1)
    _scale(figure, image, axes[2:] if maps.after else axes, "probability")
    return _png(figure)


def _changes(ax: Axes, maps: Maps, grey: Floats, view: View, truth: Path | None) -> None:
    """What was mapped, over the image in grey, with the outlines of the truth."""
    shares = maps.shares(view)
    total = np.nan_to_num(shares.sum(axis=0))
    colours = np.einsum("khw,kc->hwc", np.nan_to_num(shares), _rgb(CHANGE_COLOURS)) / np.maximum(total, 1e-6)[..., None]
    # The root keeps what is smaller than a pixel of the picture visible.
    opacity = np.sqrt(total)[..., None]
    names = CHANGES if maps.after else ("mapped",)
    entries = [_patch(n, c) for n, c in zip(names, CHANGE_COLOURS[-len(names) :], strict=True)]
    _show(ax, grey * (1 - opacity) + colours * opacity, "What changed" if maps.after else "The map")
    if truth is not None and not view.grid.is_local:
        outlines = truth_of(truth, view)
        if 0 < outlines.mean() < 1:
            ax.contour(outlines, levels=[0.5], colors="white", linewidths=0.5)
        entries.append(_patch("outline of the truth", "white"))
    _legend(ax, entries)


def uncertainty_picture(before: Path, after: Path | None) -> bytes | None:
    """PNG: uncertainty before and after in the same colours; None where it is 0 everywhere."""
    view = View.of(grid_of(before))
    paths = {"before": before, "after": after} if after else {"of the starting model": before}
    found = {when: view.read(path, [2], Resampling.average)[0] for when, path in paths.items()}
    known = np.concatenate([v[np.isfinite(v)] for v in found.values()])
    if not known.any():
        return None
    figure, axes = _panels(len(found), view)
    for ax, (when, values) in zip(axes, found.items(), strict=True):
        high = float(np.quantile(known, 0.99)) or float(known.max())
        image = _show(ax, values, f"Uncertainty {when}", cmap="viridis", vmin=0, vmax=high)
    _scale(figure, image, axes, "variance", extend="max")
    return _png(figure)


def labels_picture(image: Path, labels: Sequence[Path]) -> bytes:
    """PNG: pseudo-labels of the first and the last round, over the image in grey."""
    view = View.of(grid_of(image))
    grey = _grey(true_colour(image, view))
    rounds = sorted({1, len(labels)})
    figure, axes = _panels(len(rounds), view)
    for ax, number in zip(axes, rounds, strict=True):
        values = classes(view.read(labels[number - 1], [1], Resampling.nearest)[0])
        shown = grey.copy()
        for value, (_, colour) in LABEL_COLOURS.items():
            shown[(values == value) & np.isfinite(grey[..., 0])] = _rgb([colour])[0]
        _show(ax, shown, f"Pseudo-labels of round {number}")
        _legend(ax, [_patch(*entry) for entry in LABEL_COLOURS.values()])
    return _png(figure)


def curves_picture(panels: Mapping[str, Mapping[str, Sequence[float]]], refused: Sequence[int], kept: int) -> bytes:
    """PNG: curves over the rounds.

    Args:
        panels: By title, by name the values of round 0, 1, ...; NaN where there is none.
        refused: Rounds that the guard refused.
        kept: Round that is kept.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = _figure(4.2 * len(panels), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for (name, values), colour, mark in zip(curves.items(), CURVE_COLOURS, "osD^v", strict=False):
            ax.plot(range(len(values)), values, color=colour, marker=mark, markersize=5, label=name)
        ax.axvspan(kept - 0.15, kept + 0.15, color="0.85", zorder=0)
        for number in refused:
            ax.axvline(number, color="0.5", linestyle=":", zorder=0)
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("round (0: starting model)")
        ax.set_xlim(-0.3, max(len(values) for values in curves.values()) - 0.7)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim(0, None if "%" in title else 1.02)
        ax.grid(axis="y", color="0.9")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize=9)
    shown = [_patch("kept", "0.85")]
    if refused:
        shown.append(Line2D([], [], color="0.5", linestyle=":", label="refused by the guard"))
    figure.legend(handles=shown, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # There must be room for the legend below a picture.
    figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.14))
    FigureCanvasAgg(figure)
    return figure


def _panels(count: int, view: View) -> tuple[Figure, list[Axes]]:
    """Axes for so many pictures, in two rows where there are four."""
    rows, columns = (2, 2) if count == 4 else (1, count)
    width = max(2.6, min(6.0, 6.0 / view.aspect))
    figure = _figure(columns * width, rows * (min(width * view.aspect, 12.0) + 0.6) + 0.5)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def _show(ax: Axes, values: Floats, title: str, **how: Any) -> Any:
    """Draw (H, W, 3), or (H, W) with a colour map; NaN in a colour of its own."""
    from matplotlib import colormaps

    if values.ndim == 3:
        image = ax.imshow(np.where(np.isfinite(values), values, _rgb([UNSEEN])[0]))
    else:
        image = ax.imshow(values, **how | {"cmap": colormaps[how["cmap"]].with_extremes(bad=UNSEEN)})
    ax.set_title(title, fontsize=11)
    ax.set_axis_off()
    ax.set_anchor("N")
    return image


def _scale(figure: Figure, image: Any, axes: Sequence[Axes], label: str, extend: str = "neither") -> None:
    """The meaning of colours, below the pictures that share them."""
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02, extend=extend, label=label)


def _scale_bar(ax: Axes, view: View) -> None:
    """A length of 1, 2 or 5 of a power of ten, at most a quarter of the picture, where its place is known."""
    from matplotlib.patheffects import withStroke

    if view.grid.is_local:
        return
    width = view.grid.pixel_size_m()[0] * view.grid.width
    power = 10 ** np.floor(np.log10(width / 4))
    # A dark rim keeps it legible on snow and clouds.
    rim = [withStroke(linewidth=2.5, foreground="0.2")]
    length = power * max(n for n in (1, 2, 5) if n * power <= width / 4)
    h, w = view.shape
    left, right = 0.03 * w, 0.03 * w + length / width * w
    name = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    ax.plot(
        [left, right],
        [0.965 * h] * 2,
        color="white",
        linewidth=3,
        solid_capstyle="butt",
        path_effects=[withStroke(linewidth=5, foreground="0.2")],
    )
    ax.annotate(
        name, ((left + right) / 2, 0.965 * h), (0, 4), textcoords="offset points", ha="center", va="bottom",
        color="white", fontsize=9, fontweight="bold", path_effects=rim,
    )  # fmt: skip


def _grey(colour: Floats) -> Floats:
    """Of a true-colour picture, dark enough for coloured pixels on it."""
    mean: Floats = colour.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6
    return mean


def _rgb(colours: Sequence[str]) -> NDArray[np.float64]:
    """Numbers (n, 3) of named colours."""
    from matplotlib.colors import to_rgb

    return np.array([to_rgb(c) for c in colours])


def _patch(name: str, colour: str) -> Any:
    """Entry of a legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor="0.3", linewidth=0.8, label=name)


def _legend(ax: Axes, entries: Sequence[Any]) -> None:
    ax.legend(
        handles=entries, loc="upper center", bbox_to_anchor=(0.5, -0.005), ncols=4, frameon=False, fontsize=9,
        borderaxespad=0.2, columnspacing=1.2, handlelength=1.4,
    )  # fmt: skip


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()
