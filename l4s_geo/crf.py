"""Dense CRF: moves the borders of landslides to where the image changes, in haloed blocks and several processes.

Kraehenbuehl and Koltun (2011), "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
NeurIPS 24: two labels, a Potts model, one kernel over position (smoothness) and one over position and colour
(appearance), mean-field inference on a permutohedral lattice.

Worker processes import this module, so what only ``refine_blocks`` needs is imported there.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from l4s_geo.errors import InputError
from l4s_geo.threads import in_order
from l4s_geo.workers import processes, usable_cores

if TYPE_CHECKING:
    from rasterio.windows import Window

    #: Window of a block without its halo, where it lies in the block, probabilities, and where they may change.
    _Block = tuple[Window, tuple[slice, slice], NDArray[np.float32], NDArray[np.bool_]]

#: Standardized values that become 0 and 255. Fixed, so that neighbouring blocks see the same colours.
COLOUR_RANGE = (-3.0, 5.0)

#: Probabilities are kept this far from 0 and 1: their log-odds must be finite.
_EPS = 1e-6

#: After so many kernel widths along rows and along columns the permutohedral lattice repeats: pydensecrf scales feature
#: i by (d + 1) sqrt(2 / 3) / sqrt((i + 1) (i + 2)), i = 1, 2, onto a lattice of period d + 1.
_LATTICE_PERIOD = np.sqrt([3.0, 9.0])

#: Kernel widths around pixels that may change whose pixels take part, and around blocks that are looked at.
_REACH, _HALO = 0.7, 1.2

#: Side of a block without its halo, in pixels: small ones stay in the processor's cache.
BLOCK = 256

#: Processes that are started by default at most: one process, which reads the blocks, could hardly feed more.
_MOST_WORKERS = 8

#: Rasters of fewer blocks are refined before processes would have started; blocks that may wait for each process.
_FEW, _AHEAD = 16, 8

T = TypeVar("T")


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
    def reach(self) -> int:
        """How far around pixels that may change others take part: ``_REACH`` kernel widths.

        With three, where a Gaussian has fallen to 1 %, the CRF takes up to three times as long, and 0.02 % of the
        pixels of Hokkaido and Taitung come to lie on the other side of the threshold.
        """
        return ceil(_REACH * max(self.gaussian_sxy, self.bilateral_sxy))

    @property
    def halo(self) -> int:
        """Pixels around a block that are looked at: more than ``reach``, as blocks cut through undecided areas."""
        return ceil(_HALO * max(self.gaussian_sxy, self.bilateral_sxy))

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


def refine(
    prob: NDArray[np.float32],
    image: NDArray[np.uint8],
    params: CrfParams | None = None,
    corner: tuple[int, int] = (0, 0),
) -> NDArray[np.float32]:
    """Landslide probability after dense CRF inference over the whole array.

    Pixels that were not seen are no nodes of the CRF, so they pass nothing on to their neighbours.

    Args:
        prob: (h, w) landslide probability, NaN where not seen.
        image: (h, w, 3) colours, see ``to_uint8``.
        params: Kernels, weights and the threshold; defaults when None.
        corner: Row and column of the first pixel in the raster that the array was cut from. Inference is approximate
            on a lattice; this puts all parts of a raster on the same one.

    Returns:
        (h, w) float32 probability, NaN exactly where ``prob`` is.

    Raises:
        InputError: pydensecrf2 is not installed.
    """
    params = params or CrfParams()
    refined = prob.astype(np.float32, copy=True)
    seen = np.isfinite(prob)
    if seen.any():
        refined[seen] = _mean_field(prob[seen], np.argwhere(seen) + corner, image[seen], params)
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
    if params.gaussian_compat:
        crf.addPairwiseEnergy(_in_widths(position, params.gaussian_sxy), compat=params.gaussian_compat)
    if params.bilateral_compat:
        rgb = np.ascontiguousarray(colour.T, dtype=np.float32) / np.float32(params.bilateral_srgb)
        features = np.concatenate([_in_widths(position, params.bilateral_sxy), rgb])
        crf.addPairwiseEnergy(features, compat=params.bilateral_compat)
    landslide = np.asarray(crf.inference(params.iterations), dtype=np.float32)[1]
    refined: NDArray[np.float32] = (1 / (1 + np.exp(-(_log_odds(landslide) + offset)))).astype(np.float32)
    return refined


def _in_widths(position: NDArray[np.int64], width: float) -> NDArray[np.float32]:
    """Positions (n, 2) in widths of a kernel (2, n), small: whole periods of the lattice in front of all are left out.

    The lattice counts its vertices in 16 bits, and float32 is finer near 0.
    """
    periods = np.floor(position.min(axis=0) / width / _LATTICE_PERIOD)
    return np.ascontiguousarray((position / width - periods * _LATTICE_PERIOD).T, dtype=np.float32)


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
    from scipy.ndimage import maximum_filter, minimum_filter

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
    block: int = BLOCK,
    workers: int | None = None,
    first: int = 0,
) -> Generator[tuple[Window, NDArray[np.float32]]]:
    """Refine a raster of any size block by block, in worker processes unless it is small.

    Inference runs only around pixels of ``needs_refinement``, and only these pixels change: the result does not
    depend on which blocks were skipped, nor on the number of workers. Each block is read with a halo, so ``read_prob``
    must go on giving the unrefined probabilities: write the results elsewhere. Both readers are called by the thread
    that takes the results. Close the iterator where it may be left early; the processes end with it.

    Args:
        height: Rows of the raster.
        width: Columns of the raster.
        read_prob: Gives (h, w) probabilities of a window inside the raster, NaN where not seen.
        read_image: Gives (h, w, 3) colours of a window; called only for blocks that are refined.
        params: Parameters of the CRF; defaults when None.
        block: Side of a block without its halo, in pixels.
        workers: Processes; with 1, blocks are refined in this one. None: one for every core, up to 8.
        first: Row to begin with, the first of a row of blocks.

    Yields:
        Window and its (h, w) float32 probabilities, row by row of blocks; from ``first`` on they cover the raster
        exactly once.

    Raises:
        InputError: pydensecrf2 is not installed.
        L4SError: A worker process was ended from outside.
    """
    params = params or CrfParams()
    workers = workers or min(usable_cores(), _MOST_WORKERS)
    blocks = _read_blocks(range(first, height, block), width, height, read_prob, read_image, params)
    few = workers == 1 or height * width < _FEW * block**2
    begun: deque[_Block] = deque()
    with nullcontext() if few else processes(workers) as pool:

        def refined() -> Iterator[Future[NDArray[np.float32]]]:
            for found, call in blocks:
                begun.append(found)
                if call is not None and pool is not None:
                    yield pool.submit(refine, *call)
                else:
                    yield _done(found[2] if call is None else refine(*call))

        with closing(in_order(refined(), 0 if few else _AHEAD * workers)) as answers:
            for answer in answers:
                window, core, prob, where = begun.popleft()
                yield window, np.where(where, answer, prob)[core]


def _done(value: T) -> Future[T]:
    """A future whose result is there."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _read_blocks(
    rows: range,
    width: int,
    height: int,
    read_prob: Callable[[Window], NDArray[np.float32]],
    read_image: Callable[[Window], NDArray[np.uint8]],
    params: CrfParams,
) -> Iterator[tuple[_Block, tuple[Any, ...] | None]]:
    """Blocks with their halo, row by row, and the arguments of ``refine`` where something may change.

    Pixels out of reach of those that may change are left out like unseen ones.
    """
    from rasterio.windows import Window
    from scipy.ndimage import maximum_filter

    halo, block = params.halo, rows.step
    for row, col in product(rows, range(0, width, block)):
        top, left = max(0, row - halo), max(0, col - halo)
        bottom, right = min(row + block, height), min(col + block, width)
        outer = Window(left, top, min(right + halo, width) - left, min(bottom + halo, height) - top)
        core = np.s_[row - top : bottom - top, col - left : right - left]
        prob = read_prob(outer)
        needed = needs_refinement(prob, params)
        where = np.zeros_like(needed)
        where[core] = needed[core]
        call = None
        if where.any():
            near = maximum_filter(needed, size=2 * params.reach + 1)
            call = np.where(near, prob, np.float32(np.nan)), read_image(outer), params, (top, left)
        yield (Window(col, row, right - col, bottom - row), core, prob, where), call
