"""Thresholds of a model that has learnt from itself: no truth to tune on, and those it started with no longer fit."""

from __future__ import annotations

from l4s_geo.expectation import BINS, Counts, mean, threshold_of_share

#: What is mapped, by preset, as a multiple of ``extent``.
EXTENT = {"balanced": 1.0, "recall": 1.5, "precision": 0.6}

#: Share of the pixels of given landslides that is mapped at most. Networks learn outlines by heart, so that a threshold
#: at which nearly all of them are mapped is far too low for the rest.
KNOWN = 0.8


def by_preset(counts: Counts, known: Counts | None = None) -> dict[str, float]:
    """Thresholds that map ``EXTENT`` times as much ground as is to be expected.

    Args:
        counts: Pixels by probability, as ``expectation.count`` counts them.
        known: Those of them that were given as landslide; None if nothing was given.
    """
    share = extent(counts, known)
    return {name: threshold_of_share(counts, times * share) for name, times in EXTENT.items()}


def extent(counts: Counts, known: Counts | None = None) -> float:
    """Share of the ground that should be mapped; arguments as in ``by_preset``.

    It is what the probabilities promise, their mean. Given landslides are seen more often than landslides occur, so
    with them the probabilities promise too much: then it is at most what holds ``KNOWN`` of the given pixels.
    """
    promised = mean(counts)
    if known is None or not known.any():
        return promised
    first = round(BINS * threshold_of_share(known, KNOWN))
    return min(promised, float(counts[first:].sum() / max(1, counts.sum())))
