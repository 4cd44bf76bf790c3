"""What the numbers of spectral bands stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from l4s_geo.errors import InputError

#: Digital numbers of reflectance 1.
FULL = 10000.0

#: No reflectance is above this, and no scene of digital numbers all below.
REFLECTANCE_MAX = 2.0

#: What ``--s2-offset`` takes: as the metadata say, none, or that of all products of processing baseline 04.00 or newer.
OFFSETS = ("auto", "0", "-1000")

#: Bands whose reflectance is hardly ever below 0, and how far below a surface may come out in corrected products.
VISIBLE, BELOW = ("B2", "B3", "B4"), -100.0

#: Share of pixels that may come out so far below in images that have the offset: deep shadow.
DARK = 0.1


@dataclass(frozen=True)
class Radiometry:
    """How stored numbers of spectral bands become digital numbers: reflectance times 10000, without an offset.

    Reflectance is (stored + offset) / quantification value, as the metadata of Sentinel-2 products have it since
    processing baseline 04.00 (ESA, "Sentinel-2 Products Specification Document"). With an offset reflectance can be
    below 0; it is cut there, as in the older products that models have learnt from.

    Attributes:
        quantification: Stored numbers of reflectance 1.
        offsets: By band.
    """

    quantification: float = FULL
    offsets: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, band: str, stored: NDArray[np.float32]) -> NDArray[np.float32]:
        """Digital numbers (h, w), float32, from stored numbers (h, w) of a band."""
        offset, gain = np.float32(self.offsets.get(band, 0)), np.float32(FULL / self.quantification)
        if offset:
            reflected: NDArray[np.float32] = np.maximum((stored + offset) * gain, np.float32(0))
            return reflected
        return stored if gain == 1 else stored * gain


def settle_offset(
    asked: str, own: Mapping[str, float], units: str, values: Mapping[str, NDArray[np.float32]], source: str
) -> tuple[Mapping[str, float], str | None]:
    """Offsets to add to digital numbers, and what is to be said about them.

    Args:
        asked: One of ``OFFSETS``.
        own: Offsets by band in the scene's metadata, empty where there are none.
        units: Of the scene, settled.
        values: A sample of valid pixels by spectral band, without offset.
        source: The scene, for messages.

    Raises:
        InputError: An offset is asked for that is not in the numbers, or was taken off already.
    """
    if units != "dn" and (asked == "-1000" or (asked == "auto" and own)):
        raise InputError(
            f"{source} is taken as {units} (--units), but offsets are for digital numbers. Leave out --units, or say "
            "--s2-offset 0."
        )
    if asked == "auto":
        return own, f"offset of the metadata: {_spoken(own)} to the digital numbers" if own else None
    if asked == "0":
        return {}, f"--s2-offset 0: not added, as the metadata would have it: {_spoken(own)}" if own else None
    offset = float(asked)
    medians = {band: float(np.median(values[band])) for band in VISIBLE if band in values}
    if any(median + offset < BELOW for median in medians.values()):
        found = ", ".join(f"{median:.0f} in {band}" for band, median in medians.items())
        raise InputError(
            f"With --s2-offset {asked} most reflectances of {source} would be below 0 (the medians are {found}): its "
            "numbers have no offset, or it was taken off already. Leave --s2-offset out."
        )
    return dict.fromkeys(
        values, offset
    ), f"--s2-offset: {_spoken(dict.fromkeys(values, offset))} to the digital numbers"


def refuse_below_zero(offsets: Mapping[str, float], values: Mapping[str, NDArray[np.float32]], source: str) -> None:
    """Check an offset that metadata state on the pixels: there are catalogues that state one they have taken off.

    Args:
        offsets: To be added to stored numbers, by band.
        values: A sample of valid pixels by band, without offset.
        source: The scene, for messages.

    Raises:
        InputError: With it many pixels would be below 0, as next to none are in images that have the offset.
    """
    below = {b: float(np.mean(values[b] + offsets[b] < BELOW)) for b in VISIBLE if b in values and offsets.get(b, 0)}
    if any(share > DARK for share in below.values()):
        told = ", ".join(f"{share:.0%} in {band}" for band, share in below.items())
        raise InputError(
            f"{source} states an offset ({_spoken(offsets)}), but with it too many pixels would be below 0 ({told}): "
            "it seems to have been taken off the images already. Say --s2-offset 0 to leave it away."
        )


def _spoken(offsets: Mapping[str, float]) -> str:
    """``-1000 added``, or by band where they differ."""
    if len({*offsets.values()}) == 1:
        return f"{next(iter(offsets.values())):g} added"
    return ", ".join(f"{offset:g} in {band}" for band, offset in offsets.items()) + " added"


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
    if units == "auto" and (narrow := {"uint8", "int8"} & {*kinds}):
        raise InputError(
            f"{source} has bytes ({', '.join(narrow)}), which are no Sentinel-2 digital numbers. If it is a picture "
            "for the eye, say so with --units byte; the original bands would be mapped better."
        )
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
