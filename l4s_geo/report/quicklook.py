"""A picture of a map for mails, slides and catalogues."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from l4s_geo.report.classes import KINDS, Kind, kinds_of
from l4s_geo.report.figures import nice
from l4s_geo.report.origin import Origin
from l4s_geo.report.page import Content, area

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path as Outline

#: Longer side of the picture in pixels, and pixels in an inch, which decides how large letters are.
SIDE, DPI = 1600, 160

#: Width of the map by its height at the least and at the most.
SHAPES = (0.45, 2.2)


def quicklook(content: Content, path: Path) -> None:
    """Write the image with the outlines of the landslides as PNG or JPEG, by the extension."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = content.frame.size
    shape = float(np.clip(width / height, *SHAPES))
    inches, edge, head, foot = SIDE / DPI, 0.15, 0.6, 0.72
    across, down = (inches, inches / shape) if shape >= 1 else (inches * shape, inches)
    across = max(across, 6.4) + 2 * edge
    figure = Figure(figsize=(across, down + head + foot), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    total = down + head + foot
    ax = figure.add_axes((edge / across, foot / total, 1 - 2 * edge / across, down / total))
    _draw(ax, content)
    origin = Origin.of(content.record, content.summary)
    summary = content.summary
    found = (
        f"{summary['landslides']:,} landslides, {area(summary['area_m2'])}, {100 * summary['landslide_share']:.2f} % "
        "of the ground that was seen"
    )
    date = origin.date or "date unknown"
    left, title = edge / across, f"Landslides in {origin.scene}"
    figure.text(left, 1 - 0.1 / total, title, fontsize=13, weight="bold", va="top", parse_math=False)
    figure.text(left, 1 - 0.36 / total, f"{date} · {found}", fontsize=9, va="top", color="0.25", parse_math=False)
    _legend(ax, content)
    drawn = len(content.shown)
    left_out = f" · the {drawn:,} largest are drawn" if drawn < content.landslides.count else ""
    version = content.record.get("versions", {}).get("l4s_geo", "")
    credit = f"{origin.model()}, threshold {origin.threshold:.2g} · l4s-map {version} · mapped by computer, not checked"
    credit += left_out
    figure.text(left, 0.1 / total, credit, fontsize=7, color="0.35", va="bottom", parse_math=False)
    how = {} if path.suffix.lower() == ".png" else {"quality": 88}
    figure.savefig(path, pil_kwargs=how)


def _draw(ax: Axes, content: Content) -> None:
    """Image, outlines, scale bar and north arrow, in metres of the frame."""
    from matplotlib.collections import PathCollection
    from matplotlib.transforms import Affine2D

    width, height = content.frame.size
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_aspect("equal", anchor="C")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.fill(*content.frame.outline().T, facecolor="0.85", linewidth=0, zorder=0)
    photo = "image" in content.pictures
    for name in ("image", "unseen") if photo else ("relief", "probability", "unseen"):
        if name in content.pictures:
            picture = content.pictures[name]
            h, w = picture.pixels.shape[:2]
            m = content.frame.matrix(picture.transform)
            onto = Affine2D(np.array([[m.a, m.b, m.c], [m.d, m.e, m.f], [0, 0, 1]])) + ax.transData
            ax.imshow(picture.pixels, extent=(0, w, h, 0), transform=onto, zorder=1, aspect="equal")
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    kinds = np.array(kinds_of(content.shown), dtype=int)
    outlines = content.shown["geometry"].to_numpy()
    for i, kind in enumerate(KINDS):
        colour = _colour(kind)
        paths = [_path(outline) for outline in outlines[kinds == i]]
        ax.add_collection(
            PathCollection(paths, facecolors=[(*colour, 0.25)], edgecolors=[colour], linewidths=0.8, zorder=2 + i),
            autolim=False,
        )
    _scale_bar(ax, content)
    _north(ax, content)


def _path(outline: shapely.Geometry) -> Outline:
    from matplotlib.path import Path as Outline

    rings = [
        Outline(shapely.get_coordinates(ring), closed=True) for ring in shapely.get_rings(shapely.get_parts(outline))
    ]
    return Outline.make_compound_path(*rings)


def _colour(kind: Kind) -> tuple[float, float, float]:
    red, green, blue = (v / 255 for v in kind.colour)
    return red, green, blue


def _legend(ax: Axes, content: Content) -> None:
    from matplotlib.patches import Patch

    found = {*kinds_of(content.shown)}
    entries = [
        Patch(facecolor=(*_colour(kind), 0.25), edgecolor=_colour(kind), label=kind.name)
        for i, kind in enumerate(KINDS)
        if i in found
    ]
    if "unseen" in content.pictures:
        entries.append(Patch(facecolor="0.92", edgecolor="0.5", hatch="/////", linewidth=0, label="not seen"))
    ax.legend(
        handles=entries, title="Mean probability of landslide", loc="upper left", bbox_to_anchor=(0, -0.005), ncols=5,
        frameon=False, fontsize=8, title_fontsize=8, alignment="left", borderaxespad=0.2, borderpad=0,
        columnspacing=1.4, handlelength=1.6,
    )  # fmt: skip


def _scale_bar(ax: Axes, content: Content) -> None:
    """A length of 1, 2 or 5 of a power of ten, at most a quarter of the picture."""
    width, height = content.frame.size
    if content.frame.grid.is_local:
        return
    length = nice(width / 4)
    x, y, thick = 0.03 * width, height - 0.03 * width, 0.006 * width
    for start, share, colour in ((0, 1.0, "black"), (0, 0.5, "white")):
        ax.barh(y, share * length, thick, left=x + start, color=colour, edgecolor="white" if share == 1 else "black",
                linewidth=1 if share == 1 else 0.5, zorder=8)  # fmt: skip
    name = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    _halo(ax.text(x + length / 2, y - 1.2 * thick, name, ha="center", va="bottom", fontsize=9, weight="bold", zorder=9))


def _north(ax: Axes, content: Content) -> None:
    north = content.frame.north()
    if north is None:
        return
    width, _ = content.frame.size
    size = 0.022 * width
    x, y = width - 2 * size, 2.2 * size
    angle = np.radians(north)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    arrow = np.array([[0, -1.3], [0.55, 0.6], [0, 0.2], [-0.55, 0.6]]) * size
    ax.fill(*(arrow @ turn.T + [x, y]).T, facecolor="black", edgecolor="white", linewidth=1, zorder=9)
    _halo(ax.text(x, y + 0.75 * size, "N", ha="center", va="top", fontsize=10, weight="bold", zorder=9))


def _halo(text: object) -> None:
    from matplotlib.patheffects import withStroke

    text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # type: ignore[attr-defined]
