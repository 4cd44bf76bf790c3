"""What the numbers of spectral bands stand for."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from l4s_geo.errors import InputError

#: Digital numbers of reflectance 1.
FULL = 10000.0

#: No reflectance is above this, and no scene of digital numbers all below.
REFLECTANCE_MAX = 2.0


def settle_units(units: str, kinds: Collection[str], values: NDArray[np.float32], source: str) -> str:
    """Units of the spectral bands, refused where they are not clear or cannot be what the user says.

    Args:
        units: ``auto``, ``dn``, ``reflectance`` or ``byte``.
        kinds: Data types of the bands in their files.
        values: A sample of valid pixels, in digital numbers if ``units`` is ``reflectance``.
        source: The scene, for messages.

    Returns:
        ``dn``, ``reflectance`` or ``byte``.

    Raises:
        InputError: See above.
    """
    floats = any("float" in kind for kind in kinds)
    if units == "auto" and "uint8" in kinds:
        raise InputError(
            f"{source} has bytes (uint8), which are no Sentinel-2 digital numbers. If it is a picture for "
            "the eye, say so with --units byte; the original bands would be mapped better."
        )
    if any("complex" in kind for kind in kinds):
        raise InputError(f"{source} has complex numbers, as radar images have. Give bands of Sentinel-2.")
    if units == "auto" and floats and values.max() <= REFLECTANCE_MAX:
        raise InputError(
            f"{source} has values from {values.min():.4g} to {values.max():.4g}, like reflectance. If so, "
            "give --units reflectance."
        )
    highest = values.max(axis=1)
    if units == "auto" and floats and ((highest > 0) & (highest <= REFLECTANCE_MAX)).any():
        raise InputError(
            f"Some bands of {source} have values up to {highest.min():.4g}, like reflectance, others up to "
            f"{highest.max():.4g}, like digital numbers. Bring all bands to the same units."
        )
    if units == "reflectance" and (not floats or np.median(values) > REFLECTANCE_MAX * FULL):
        raise InputError(
            f"{source} is said to be reflectance, but is {', '.join(sorted(kinds))} with a median of "
            f"{np.median(values) / FULL:.4g}. Sentinel-2 digital numbers are --units dn."
        )
    return "dn" if units == "auto" else units
