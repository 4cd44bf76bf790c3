"""How far two images of the same ground lie apart: phase correlation, summed over windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pair = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]

#: Frequencies that count, in cycles per pixel: below them lie haze and seasons, above them resampling and noise.
LOWEST, HIGHEST = 0.02, 0.35

#: Parts of a pixel that a shift is found to.
STEPS = 20

#: Share of a window that has to be seen in both images.
SEEN = 0.5


@dataclass(frozen=True)
class Shift:
    """Where the second of two images shows what the first one shows.

    Attributes:
        row: Pixels further down in the second image.
        column: Pixels further to the right.
        windows: That it was found from.
        peak: Height of the correlation there, in standard deviations of the correlation everywhere.
    """

    row: float
    column: float
    windows: int
    peak: float


def find_shift(pairs: Iterable[Pair], size: int) -> Shift:
    """The shift of a second image against a first one, the same all over.

    The phases of the cross-power spectrum (Kuglin and Hines 1975, "The phase correlation image alignment method") of
    all windows are summed, so that what they have in common stands out: the shift, and not what has changed. The
    maximum of the correlation is found to a part of a pixel by evaluating the Fourier sum in between (Guizar-Sicairos
    et al. 2008, doi:10.1364/OL.33.000156).

    Args:
        pairs: Windows (size, size) of both images on one grid, and where both are valid. Smaller ones, and those of
            which too little is seen, are passed over.
        size: Side of a window.

    Returns:
        The shift; 0 with a peak of 0 where no window could be used.
    """
    along: Floats = np.fft.fftfreq(size).astype(np.float64)
    distance = np.hypot(along[:, None], along[None])
    band = (distance >= LOWEST) & (distance <= HIGHEST)
    taper = np.outer(np.hanning(size), np.hanning(size))
    total, windows = np.zeros((size, size), np.complex128), 0
    for first, second, valid in pairs:
        if valid.shape == band.shape and valid.mean() >= SEEN:
            one, other = (np.fft.fft2(_flattened(image, valid) * taper) for image in (first, second))
            cross = np.where(band, other * one.conj(), 0)
            length = abs(cross)
            if length.any():  # not where an image is the same all over
                total += np.divide(cross, length, out=np.zeros_like(cross), where=length > 0)
                windows += 1
    if not windows:
        return Shift(0.0, 0.0, 0, 0.0)
    surface = np.fft.ifft2(total).real
    row, column = (float(at if at < size / 2 else at - size) for at in np.unravel_index(surface.argmax(), band.shape))
    between: Floats = np.arange(-STEPS, STEPS + 1, dtype=np.float64) / STEPS
    fine = _between(total, along, row + between, column + between)
    i, j = np.unravel_index(fine.argmax(), fine.shape)
    peak = float(fine[i, j] / surface.std())
    return Shift(row + float(between[i]), column + float(between[j]), windows, peak)


def _flattened(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Floats:
    """An image around 0, and 0 where it is not valid."""
    flat: Floats = np.where(valid, image - image[valid].mean(dtype=np.float64), 0)
    return flat


def _between(spectrum: NDArray[np.complex128], along: Floats, rows: Floats, columns: Floats) -> Floats:
    """The inverse Fourier transform (rows, columns) at any places."""
    down, right = (np.exp(2j * np.pi * np.outer(places, along)) for places in (rows, columns))
    values: Floats = (down @ spectrum @ right.T).real / spectrum.size
    return values
