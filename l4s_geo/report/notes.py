"""What a reader of a map should be told about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l4s_geo.calibration import SELF_TRAINING
from l4s_geo.provenance.record import calibrated
from l4s_geo.report.landslides import AGREED, Landslides
from l4s_geo.report.origin import Origin

#: Shares from which on something is worth a warning.
SEEN, MAPPED, CUT, DIVIDED, UNSURE = 0.9, 0.2, 0.2, 0.3, 0.3

#: What the figures mean, but for the probability.
_RULES = {
    "Landslide": "An area whose pixels reach the threshold of probability, is larger than the least area, and was kept "
    "by the limits named above. Nobody has checked it. Old scars, quarries, river beds, roads and bare fields can look "
    "the same.",
    "Of the ground that was seen": "Mapped area, divided by the area that was neither without data nor hidden.",
    "Size distribution": "How many landslides there are by area. Small ones are missed more often than large ones, and "
    "neighbours that touch are counted as one, so the left end is too low.",
    "Density of landslides": "Mapped area in cells of 1 km, divided by the ground of the cell that was seen.",
}


#: What a probability means where no model of the map was calibrated, and where all were.
_OPINION = (
    "The model's own opinion, which was not calibrated: of pixels with 0.8 maybe more, maybe fewer than 8 in 10 are "
    "landslide."
)
_CALIBRATED = "Calibrated: on data that the model was checked with, about 8 in 10 pixels with 0.8 are landslide."
_LEARNT = (
    "The opinion of a model that was fitted to scenes without labels, and has learnt its own doubts: it is less sure "
    "of itself than models are by nature, but nobody has checked it."
)
_EXPECTED = (
    "What the probabilities promise: the F1 of the best threshold, if of all pixels with 0.8 really 8 "
    "in 10 were landslide, and so on. A guess that needs no reference data: on 24 scenes it was 0.08 off on average, "
    "and up to 0.28, since models can be sure and wrong."
)
_ELSEWHERE = (
    " In a region unlike those that it learnt from a model can be sure and wrong: compare with the image, and measure "
    "with l4s-map evaluate where you have outlines that you trust."
)


def rules(origin: Origin) -> dict[str, str]:
    """What the figures of a map mean, by their names."""
    if not calibrated(origin.models):
        return _RULES | {"Probability": _OPINION + _ELSEWHERE}
    learnt = any(m["calibration"].get("method") == SELF_TRAINING for m in origin.models)
    return _RULES | {"Probability": (_LEARNT if learnt else _CALIBRATED) + _ELSEWHERE, "Expected F1": _EXPECTED}


def warnings(summary: Mapping[str, Any], landslides: Landslides) -> list[str]:
    """What can mislead a reader of this very map.

    Args:
        summary: What is said at the end of a run.
        landslides: All were added.
    """
    count, found = landslides.count, []
    if not count:
        found.append(
            "No landslide was found. That can mean that there are none, that they are too small, or that the model "
            "does not know such ground. Look at the probabilities, and try --preset recall."
        )
    if summary["seen_share"] < SEEN:
        found.append(
            f"Only {_percent(summary['seen_share'])} of the scene was seen. Where it is hatched nothing could be "
            "found, and totals are too low by what lies there."
        )
    if summary["landslide_share"] > MAPPED:
        found.append(
            f"{_percent(summary['landslide_share'])} of the ground is mapped as landslide, which is more than even "
            "strong earthquakes cause. Check units, band order and the image."
        )
    cut = landslides.flags["edge"]["true"]
    if count and cut / count > CUT:
        found.append(
            f"{_percent(cut / count)} of the landslides touch the edge of what was seen and may go on beyond it: their "
            "areas are too small."
        )
    if count and landslides.divided / count > DIVIDED:
        found.append(
            f"On {_percent(landslides.divided / count)} of the landslides the networks do not agree well (agreement "
            f"below {AGREED:g}). Look at these first: sort the list by agreement."
        )
    probable = landslides.counts["prob_mean"]
    near = probable[: int(min(summary["threshold"] + 0.1, 1) * len(probable) + 1e-9)].sum()
    if count and near / count > UNSURE:
        found.append(
            f"{_percent(near / count)} of the landslides are hardly more probable than the threshold "
            f"({summary['threshold']:.2g}). A slightly different threshold gives a different map."
        )
    old = landslides.flags["new"]["no"]
    if old:
        found.append(f"{old:,} of the landslides were there in the image before. They are not of this event.")
    return found


def notes(record: Mapping[str, Any]) -> list[str]:
    """Notes of the run as sentences, and what holds for every map."""
    said = [_sentence(str(note)) for note in record.get("notes", [])]
    return [
        *said,
        "The outlines were drawn by a computer and nobody has checked them. Before you act on one, look at it in the "
        "image, and in an image from before the event.",
        "Nothing found does not mean safe ground: landslides below trees, in shadow, or narrower than about two "
        "pixels are not seen from space.",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:] + ("" if note.endswith((".", "!", "?")) else ".")
