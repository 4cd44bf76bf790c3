"""Band names, and the contract of the Landslide4Sense (L4S) data set."""

from __future__ import annotations

import re
from typing import Final

#: Sentinel-2 MSI bands in the order of their numbers.
S2_BANDS: Final = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")

#: Terrain bands: slope in degrees, elevation in metres.
TERRAIN_BANDS: Final = ("slope", "dem")

#: Bands of an L4S patch in the data set's order: all of Sentinel-2 but B8A, then terrain.
L4S_BANDS: Final = (*(b for b in S2_BANDS if b != "B8A"), *TERRAIN_BANDS)

#: ``img_mean`` of the data set: its values are digital numbers (degrees, metres) over these.
L4S_MEAN: Final = (
    1111.81236406,
    824.63171476,
    663.41636217,
    445.17289745,
    645.8582926,
    1547.73508126,
    1960.44401001,
    1941.32229668,
    674.07572865,
    9.04787384,
    1113.98338755,
    519.90397929,
    20.29228266,
    772.83144788,
)

_NUMBERED = re.compile(r"(?<![a-z0-9])b0?(1[0-2]|8a|[1-9])(?![a-z0-9])")
_WORDS = {
    "blue": "B2",
    "green": "B3",
    "red": "B4",
    "nir": "B8",
    "slope": "slope",
    "dem": "dem",
    "dsm": "dem",
    "dtm": "dem",
    "elevation": "dem",
}

#: With these, "red" or "nir" is another band than the broad one of that name.
_NARROW = {"edge", "narrow"}


def parse_band(text: str) -> str | None:
    """Canonical band name from a band description or a file name.

    Sentinel-2 numbers (``B02``, ``b2``, ``..._B8A_20m.jp2``, ``..._B03_(Raw).tiff``) win over words
    (``red``, ``nir``, ``dem``, ``slope``). B8A is never B8, and the red edge is not red.

    Args:
        text: Description, file name or path; folders do not count.

    Returns:
        A name of ``S2_BANDS``, ``slope`` or ``dem``; None where there is no name, or more than one.
    """
    name = re.split(r"[\\/]", text)[-1].lower()
    words = re.findall(r"[a-z0-9]+", name)
    # "_" is a word character to regular expressions, but a separator in file names
    numbers = {f"B{n.upper()}" for n in _NUMBERED.findall(name)}
    found = numbers or {_WORDS[w] for w in words if w in _WORDS and not _NARROW.intersection(words)}
    return found.pop() if len(found) == 1 else None
