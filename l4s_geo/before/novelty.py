"""Which landslides are new: how much of what sets them apart from the ground around was not there before.

Two images of different seasons and light cannot well be subtracted: in the Hokkaido pair, with snow in the gullies of
the earlier one, the brightness of unchanged ground correlates by 0.2 to 0.4 only. What can be compared is how far a
place stands out from the ground right around it, before and after (contextual change detection; Bruzzone and Prieto
2000, doi:10.1109/36.843009, on why neighbours matter). A bare scar stands out as much as it did if it is old, and did
not stand out if it is new. A landslide's *new share* is 1 - contrast before / contrast now.

Measured in Hokkaido (training A, thresholds 0.5 and 0.1, standardized by all that both scenes see) on mapped landslides
that are in the labels: with the scene from before the earthquake the new share was 0.42 to 1.55, and with another image
from after it, where all of them were bare already, -0.20 to 0.57. The limits below lie between.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

YES, NO, UNKNOWN = "yes", "no", "unknown"

#: Pixels on each side that count as ground around, and how many of them have to be such ground.
RADIUS: Final = 10
FEWEST: Final = 20

#: New shares from which on a landslide is new, and up to which it is old; in between it is not known.
NEW, OLD = 0.6, 0.4

#: Contrasts now, in standard deviations of the scene, below which a place does not stand out enough to tell.
FAINT = 0.25

#: Share of a landslide's pixels that have to be seen before.
SEEN = 0.5


def local_contrast(image: NDArray[np.float32], around: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How far every pixel stands out from the ground around it.

    Args:
        image: (h, w), standardized: 0 is the mean of all such ground. Whatever where not ``around`` and not asked for.
        around: (h, w) pixels that count as ground around: seen, and no landslide.

    Returns:
        (h, w) difference from the mean of these in a square of ``RADIUS`` pixels to each side, or from 0 where there
        are fewer than ``FEWEST``, as within large landslides. Near the border only what is inside counts.
    """
    from scipy.ndimage import uniform_filter  # which most runs do without

    side = 2 * RADIUS + 1
    count = uniform_filter(around.astype(np.float64), side, mode="constant") * side**2
    total = uniform_filter(np.where(around, image, 0).astype(np.float64), side, mode="constant") * side**2
    enough = np.rint(count) >= FEWEST
    mean = np.divide(total, count, out=np.zeros(count.shape), where=enough)
    contrast: NDArray[np.float32] = (image - mean).astype(np.float32)
    return contrast


def novelty(pixels: Floats, compared: Floats, now: Floats, before: Floats) -> NDArray[np.object_]:
    """Which landslides are new.

    Args:
        pixels: (n,) of each.
        compared: (n,) of each with a contrast now and before.
        now: (n,) mean of their contrasts now, NaN for none.
        before: (n,) likewise before.

    Returns:
        (n,) ``yes``, ``no`` or ``unknown``.
    """
    told = (compared >= SEEN * pixels) & (now >= FAINT)
    share = 1 - np.divide(before, now, out=np.full(len(pixels), np.nan), where=told)
    found = np.full(len(pixels), UNKNOWN, dtype=object)
    found[share >= NEW] = YES
    found[share <= OLD] = NO
    return found
