"""Per-band standardization with the statistics of the domain (region) an image comes from.

Standardizing every region with its own statistics is what the winners of Landslide4Sense call separated
normalization (Ghorbanzadeh et al. 2022, IEEE JSTARS 15, doi:10.1109/JSTARS.2022.3220845). Here the statistics
are a winsorized mean and standard deviation, which clouds, snow and borders move little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from l4s_geo.errors import InputError, reason
from l4s_geo.paths import check_input

Compression = Literal["none", "asinh"]

#: Histogram of the streaming statistics: one bin per digital number covers uint16 without loss.
BINS = 1 << 16

#: Order and values of the Landslide4Sense data set (``img_mean`` of its published notebooks).
_L4S_BANDS = (
    "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "slope", "dem",
)  # fmt: skip
_L4S_IMG_MEAN = (
    1111.81236406, 824.63171476, 663.41636217, 445.17289745, 645.8582926, 1547.73508126, 1960.44401001,
    1941.32229668, 674.07572865, 9.04787384, 1113.98338755, 519.90397929, 20.29228266, 772.83144788,
)  # fmt: skip
_BASELINE_MEAN = (
    -0.4914, -0.3074, -0.1277, -0.0625, 0.0439, 0.0803, 0.0644,
    0.0802, 0.3000, 0.4082, 0.0823, 0.0516, 0.3338, 0.7819,
)  # fmt: skip
_BASELINE_STD = (
    0.9325, 0.8775, 0.8860, 0.8869, 0.8857, 0.8418, 0.8354,
    0.8491, 0.9061, 1.6072, 0.8848, 0.9232, 0.9018, 1.2913,
)  # fmt: skip


@dataclass(frozen=True)
class Normalizer:
    """``z = compress((x - center) / scale)`` per band; what is not valid becomes 0.

    Attributes:
        bands: Band names, in the order of the arrays it is applied to.
        center: Per band, in the input's units (digital numbers, degrees, metres).
        scale: Per band, positive, in the input's units.
        compression: ``asinh`` keeps clouds and fresh scars from dominating a convolution, ``none`` is linear.
        source: Where the numbers come from, for the record.
        pixels: Valid pixels they were estimated from (0: fixed numbers).
    """

    bands: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    compression: Compression = "none"
    source: str = ""
    pixels: int = 0

    def __call__(self, x: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Normalize an image.

        Args:
            x: (C, h, w) in the input's units.
            valid: (h, w), True where the scene was seen.

        Returns:
            (C, h, w) float32, 0 where not valid.
        """
        center = np.asarray(self.center, np.float32)[:, None, None]
        factor = (1.0 / np.asarray(self.scale, np.float32))[:, None, None]
        z: NDArray[np.float32] = (x - center) * factor
        if self.compression == "asinh":
            np.arcsinh(z, out=z)
        z *= valid
        return z

    def select(self, bands: Sequence[str]) -> Normalizer:
        """The same normalizer for some of its bands, in the order asked for.

        Raises:
            InputError: A band has no statistics.
        """
        missing = [b for b in bands if b not in self.bands]
        if missing:
            raise InputError(
                f"The statistics ({self.source or 'given'}) cover {', '.join(self.bands)} but not "
                f"{', '.join(missing)}. Fit them on a scene that has these bands."
            )
        at = [self.bands.index(b) for b in bands]
        return replace(
            self,
            bands=tuple(bands),
            center=tuple(self.center[i] for i in at),
            scale=tuple(self.scale[i] for i in at),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Normalizer:
        """From what ``to_dict`` gave.

        Raises:
            InputError: A field is missing or the numbers make no sense.
        """
        try:
            found = cls(
                bands=tuple(str(b) for b in values["bands"]),
                center=tuple(float(v) for v in values["center"]),
                scale=tuple(float(v) for v in values["scale"]),
                compression=values.get("compression", "none"),
                source=str(values.get("source", "")),
                pixels=int(values.get("pixels", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise InputError(f"Not a set of band statistics: {e!r}. Write one with `l4s-map check --stats`.") from e
        sizes = {len(found.bands), len(found.center), len(found.scale)}
        numbers = all(map(math.isfinite, (*found.center, *found.scale))) and all(s > 0 for s in found.scale)
        if len(sizes) != 1 or not numbers or found.compression not in ("none", "asinh"):
            raise InputError("Band statistics need one centre and one positive scale for every band.")
        return found

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Normalizer:
        """Read what ``save`` wrote.

        Raises:
            InputError: The file is missing or is not such a JSON.
        """
        try:
            check_input(path)
            values = json.loads(path.read_text(encoding="utf-8"))
        except (InputError, OSError, ValueError, RecursionError) as e:
            why = reason(e) if isinstance(e, InputError | OSError) else f"it is no JSON ({reason(e)})"
            raise InputError(
                f"Cannot read band statistics from {path}: {why}. Write them with `l4s-map check --stats`."
            ) from e
        try:
            return cls.from_dict(values)
        except InputError as e:
            raise InputError(f"{path}: {e}") from e


def l4s_contract() -> Normalizer:
    """What the published h5 patches hold: ``raw / img_mean`` for 14 bands."""
    return Normalizer(_L4S_BANDS, (0.0,) * 14, _L4S_IMG_MEAN, source="l4s")


def l4s_baseline() -> Normalizer:
    """The organisers' baseline: ``(raw / img_mean - mean) / std`` (Landslide-Competition repository, dataset code)."""
    center = tuple(m * i for m, i in zip(_BASELINE_MEAN, _L4S_IMG_MEAN, strict=True))
    scale = tuple(s * i for s, i in zip(_BASELINE_STD, _L4S_IMG_MEAN, strict=True))
    return Normalizer(_L4S_BANDS, center, scale, source="l4s-baseline")


#: Normalizers with fixed numbers, by name.
NAMED = {"l4s": l4s_contract, "l4s-baseline": l4s_baseline}

#: Ways to standardize that need the scene's own statistics, as ``l4s_geo.settings.normalizer_for`` explains them.
OF_THE_SCENE = ("scene", "blend", "centre")

#: Way of ``blend`` from a scene's own statistics to those of the training regions: docs/model.md, "Blended statistics".
SHARE = 0.15

#: All that ``--normalize`` and cards may name.
WAYS = (*OF_THE_SCENE, "model", *NAMED)


def blend(own: Normalizer, training: Normalizer, share: float = SHARE) -> Normalizer:
    """A scene's mean and spread, moved towards those of the training regions.

    The mean and the spread of a scene say as much about how much forest, rock or field it holds as about light and
    air. Shrinking an estimate of one group towards that of all groups lowers its error (James and Stein 1961).

    Args:
        own: Statistics of the scene.
        training: Of the training regions; at least the bands of ``own``.
        share: Of the way; 0 gives ``own``, 1 ``training``.

    Raises:
        InputError: A band is missing in ``training``.
    """
    training = training.select(own.bands)

    def between(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
        return tuple(round(m + share * (t - m), 3) for m, t in zip(mine, theirs, strict=True))

    return replace(
        own,
        center=between(own.center, training.center),
        scale=between(own.scale, training.scale),
        source=f"{own.source}, {share:.0%} of the way to {training.source}",
    )


class RobustStats:
    """Streaming quantiles per band, by histogram: memory does not depend on how many pixels pass.

    Values are counted in bins of one unit between ``low`` and ``low + 65536`` (digital numbers, metres and
    degrees all fit; quantiles are interpolated inside a bin), values beyond are counted in the outer bins.
    """

    def __init__(self, bands: Sequence[str], low: int = -1024) -> None:
        self.bands = tuple(bands)
        self.low = low
        self.counts = np.zeros((len(self.bands), BINS), np.int64)

    def update(self, x: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Count the valid pixels of ``x`` (C, h, w)."""
        for band, counts in zip(x, self.counts, strict=True):
            index = np.clip(np.floor(band[valid]) - self.low, 0, BINS - 1).astype(np.int64)
            counts += np.bincount(index, minlength=BINS)

    @property
    def pixels(self) -> int:
        """Valid pixels counted so far."""
        return int(self.counts[0].sum()) if len(self.bands) else 0

    def quantile(self, q: float) -> NDArray[np.float64]:
        """The ``q`` quantile of every band, (C,), linear inside a bin; NaN before any pixel was counted."""
        if not self.pixels:
            return np.full(len(self.bands), np.nan)
        cumulated = np.cumsum(self.counts, axis=1)
        rank = q * cumulated[:, -1]
        at = np.array([np.searchsorted(c, r) for c, r in zip(cumulated, rank, strict=True)])
        at = np.minimum(at, BINS - 1)
        rows = np.arange(len(self.bands))
        inside = self.counts[rows, at]
        below = cumulated[rows, at] - inside
        share = np.divide(rank - below, inside, out=np.zeros(len(rows)), where=inside > 0)
        found: NDArray[np.float64] = at + self.low + share
        return found

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Winsorized mean and standard deviation of every band, (C,) each (Tukey 1962, doi:10.1214/aoms/1177704711).

        Values beyond the 2 % and 98 % quantiles count as these. The bright tail (scars, gravel, fields) must count, for
        landslides lie in it. Clouds must not: the tail is cut at eight times half the 16..84 % range from the median.
        """
        low, median, high = (self.quantile(q) for q in (0.02, 0.5, 0.98))
        reach = 4 * np.maximum(self.quantile(0.84) - self.quantile(0.16), 1.0)
        values = np.arange(BINS) + self.low + 0.5
        mean, deviation = np.empty((2, len(self.bands)))
        for i, counts in enumerate(self.counts):
            clipped = np.clip(values, max(low[i], median[i] - reach[i]), min(high[i], median[i] + reach[i]))
            mean[i] = np.average(clipped, weights=counts)
            deviation[i] = np.sqrt(np.average((clipped - mean[i]) ** 2, weights=counts))
        return mean, deviation

    def normalizer(self, compression: Compression = "asinh", source: str = "") -> Normalizer:
        """Standardization with the winsorized ``moments``.

        Raises:
            InputError: No valid pixel was counted.
        """
        if not self.pixels:
            raise InputError(f"No valid pixel to take statistics from ({source or 'scene'}); check nodata and masks.")
        mean, deviation = self.moments()
        return Normalizer(
            self.bands,
            tuple(round(float(v), 3) for v in mean),
            tuple(round(max(float(v), 1.0), 3) for v in deviation),
            compression,
            source,
            self.pixels,
        )


def fit(
    blocks: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]],
    bands: Sequence[str],
    compression: Compression = "asinh",
    source: str = "",
) -> Normalizer:
    """Robust normalizer of a stream of ``(image (C, h, w), valid (h, w))`` blocks."""
    stats = RobustStats(bands)
    for x, valid in blocks:
        stats.update(x, valid)
    return stats.normalizer(compression, source)
