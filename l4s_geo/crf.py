"""Dense CRF: moves the borders of landslides to where the image changes, in haloed blocks.

Kraehenbuehl and Koltun (2011), "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
NeurIPS 24: two labels, a Potts model, one kernel over position (smoothness) and one over position and colour
(appearance), mean-field inference on a permutohedral lattice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import ceil, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy.ndimage import maximum_filter, minimum_filter

from l4s_geo.errors import InputError

#: Standardized values that become 0 and 255. Fixed, so that neighbouring blocks see the same colours.
COLOUR_RANGE = (-3.0, 5.0)

#: Probabilities are kept this far from 0 and 1: their log-odds must be finite.
_EPS = 1e-6

#: A Gaussian kernel has fallen to 1 % at three times its width.
_HALO_WIDTHS = 3


@dataclass(frozen=True)
class CrfParams:
    """How strongly, how far and where the CRF acts. Lengths are in pixels of the probability raster.

    Attributes:
        iterations: Mean-field steps.
        gaussian_sxy: Width of the smoothness kernel.
        gaussian_compat: Its weight; 0 switches it off.
        bilateral_sxy: Width of the appearance kernel in space.
        bilateral_srgb: Its width in colour, in units of the 8-bit image.
        bilateral_compat: Its weight; 0 switches it off.
        threshold: Probability at which landslide and background are equally likely: the ensemble's threshold.
            The CRF works on odds relative to it, so it also is the threshold of the refined probability.
        lo: Probabilities up to this are decided: no landslide.
        hi: Probabilities from this on are decided: landslide.
    """

    iterations: int = 5
    gaussian_sxy: float = 1.5
    gaussian_compat: float = 0.5
    bilateral_sxy: float = 5.0
    bilateral_srgb: float = 10.0
    bilateral_compat: float = 1.0
    threshold: float = 0.5
    lo: float = 0.1
    hi: float = 0.9

    def __post_init__(self) -> None:
        widths = (self.gaussian_sxy, self.bilateral_sxy, self.bilateral_srgb)
        if not all(isfinite(w) and w > 0 for w in widths) or self.iterations < 1:
            raise InputError(f"CRF: kernel widths must be positive and iterations at least 1, got {self}.")
        if not all(isfinite(c) and c >= 0 for c in (self.gaussian_compat, self.bilateral_compat)):
            raise InputError(f"CRF: kernel weights (compat) must be 0 or more, got {self}.")
        if not 0 <= self.lo < self.threshold < self.hi <= 1:
            raise InputError(f"CRF: need 0 <= lo < threshold < hi <= 1, got {self}.")

    @property
    def halo(self) -> int:
        """Pixels around a block that its refinement looks at."""
        return ceil(_HALO_WIDTHS * max(self.gaussian_sxy, self.bilateral_sxy))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CrfParams:
        """From what ``to_dict`` gave; fields left out keep their defaults.

        Raises:
            InputError: A field is unknown, not a number, or out of range.
        """
        try:
            return cls(**values)
        except TypeError as e:
            raise InputError(f"Not a set of CRF parameters: {e}. Known are {', '.join(cls().to_dict())}.") from e


def available() -> bool:
    """Whether the pydensecrf2 package is installed (it has no build for some Python versions)."""
    return importlib.util.find_spec("pydensecrf") is not None


def to_uint8(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Standardized bands as an 8-bit image with one fixed scale.

    Args:
        x: (3, h, w) of about unit scale per band; values beyond ``COLOUR_RANGE`` are cut, NaN becomes 0.

    Returns:
        (h, w, 3) uint8.
    """
    low, high = COLOUR_RANGE
    scaled = np.nan_to_num((x - low) * (255 / (high - low)), nan=0.0)
    image: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def refine(prob: NDArray[np.float32], image: NDArray[np.uint8], params: CrfParams | None = None) -> NDArray[np.float32]:
    """Landslide probability after dense CRF inference over the whole array.

    Pixels that were not seen are no nodes of the CRF, so they pass nothing on to their neighbours.

    Args:
        prob: (h, w) landslide probability, NaN where not seen.
        image: (h, w, 3) colours, see ``to_uint8``.
        params: Kernels, weights and the threshold; defaults when None.

    Returns:
        (h, w) float32 probability, NaN exactly where ``prob`` is.

    Raises:
        InputError: pydensecrf2 is not installed.
    """
    params = params or CrfParams()
    refined = prob.astype(np.float32, copy=True)
    seen = np.isfinite(prob)
    if seen.any():
        refined[seen] = _mean_field(prob[seen], np.argwhere(seen), image[seen], params)
    return refined


def _mean_field(
    prob: NDArray[np.float32], position: NDArray[np.int64], colour: NDArray[np.uint8], params: CrfParams
) -> NDArray[np.float32]:
    """Probabilities (n,) of pixels at ``position`` (n, 2) with ``colour`` (n, 3), after inference."""
    try:
        from pydensecrf.densecrf import DenseCRF
    except ImportError as e:
        raise InputError(
            "The dense CRF needs the package pydensecrf2, which is not installed. Install it or use --no-crf."
        ) from e
    offset = _log_odds(np.float32(params.threshold))
    odds = _log_odds(prob) - offset
    crf = DenseCRF(prob.size, 2)
    crf.setUnaryEnergy(np.stack([np.logaddexp(0, odds), np.logaddexp(0, -odds)]).astype(np.float32))
    xy = np.ascontiguousarray(position.T, dtype=np.float32)
    if params.gaussian_compat:
        crf.addPairwiseEnergy(xy / np.float32(params.gaussian_sxy), compat=params.gaussian_compat)
    if params.bilateral_compat:
        rgb = np.ascontiguousarray(colour.T, dtype=np.float32) / np.float32(params.bilateral_srgb)
        features = np.concatenate([xy / np.float32(params.bilateral_sxy), rgb])
        crf.addPairwiseEnergy(features, compat=params.bilateral_compat)
    landslide = np.asarray(crf.inference(params.iterations), dtype=np.float32)[1]
    refined: NDArray[np.float32] = (1 / (1 + np.exp(-(_log_odds(landslide) + offset)))).astype(np.float32)
    return refined


def _log_odds(prob: Any) -> Any:
    """log(p / (1 - p)) of probabilities cut to where it is finite."""
    p = np.clip(prob, _EPS, 1 - _EPS).astype(np.float64)
    return np.log(p) - np.log1p(-p)


def needs_refinement(prob: NDArray[np.float32], params: CrfParams) -> NDArray[np.bool_]:
    """Where the CRF may change something.

    Args:
        prob: (h, w) landslide probability, NaN where not seen.
        params: Limits, threshold and kernel width.

    Returns:
        (h, w) bool: seen, and undecided (``lo < prob < hi``) or no further than the smoothness kernel's width
        from an edge of the thresholded mask. A border to pixels that were not seen is no edge.
    """
    seen = np.isfinite(prob)
    above = prob >= params.threshold
    size = 2 * ceil(params.gaussian_sxy) + 1
    some: NDArray[np.bool_] = maximum_filter(seen & above, size=size, mode="nearest")
    every: NDArray[np.bool_] = minimum_filter(~seen | above, size=size, mode="nearest")
    undecided = (prob > params.lo) & (prob < params.hi)
    return seen & (undecided | (some & ~every))


def refine_blocks(
    height: int,
    width: int,
    read_prob: Callable[[Window], NDArray[np.float32]],
    read_image: Callable[[Window], NDArray[np.uint8]],
    params: CrfParams | None = None,
    block: int = 512,
) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Refine a raster of any size block by block.

    Inference runs only for blocks that hold pixels of ``needs_refinement``, and only these pixels change: the
    result does not depend on which blocks were skipped. Each block is read with a halo as wide as the kernels
    reach, so ``read_prob`` must go on giving the unrefined probabilities: write the results elsewhere.

    Args:
        height: Rows of the raster.
        width: Columns of the raster.
        read_prob: Gives (h, w) probabilities of a window inside the raster, NaN where not seen.
        read_image: Gives (h, w, 3) colours of a window; called only for blocks that are refined.
        params: Parameters of the CRF; defaults when None.
        block: Side of a block without its halo, in pixels.

    Yields:
        Window and its (h, w) float32 probabilities, row by row of blocks; they cover the raster exactly once.
    """
    params = params or CrfParams()
    for row in range(0, height, block):
        for col in range(0, width, block):
            top, left = max(0, row - params.halo), max(0, col - params.halo)
            bottom, right = min(row + block, height), min(col + block, width)
            outer = Window(left, top, min(right + params.halo, width) - left, min(bottom + params.halo, height) - top)
            core = np.s_[row - top : bottom - top, col - left : right - left]
            prob = read_prob(outer)
            mask = np.zeros(prob.shape, np.bool_)
            mask[core] = needs_refinement(prob, params)[core]
            if mask.any():
                # Pixels out of every kernel's reach would only cost time: they are left out like unseen ones.
                near = maximum_filter(mask, size=2 * params.halo + 1)
                refined = refine(np.where(near, prob, np.float32(np.nan)), read_image(outer), params)
                prob = np.where(mask, refined, prob)
            yield Window(col, row, right - col, bottom - row), prob[core]
