"""What a scene is, and what would go wrong in mapping it, from a sample of its pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from l4s_geo.errors import InputError
from l4s_geo.models.card import Card
from l4s_geo.normalize import Compression, Normalizer, RobustStats
from l4s_geo.raster import sample_windows
from l4s_geo.scene import L4S_BANDS, L4S_MEAN, TERRAIN_BANDS, Scene, open_scene

#: A median this many times above or below the training data's mean looks like other units.
FAR = 5.0

#: Water and shadow lie far below this in visible bands; with the offset of baseline 04.00 nothing does.
OFFSET = 1000.0


@dataclass(frozen=True)
class BandRange:
    """Distribution of a band's valid pixels, in digital numbers (degrees and metres for slope and DEM)."""

    band: str
    low: float
    median: float
    high: float
    typical: float | None


@dataclass(frozen=True)
class Report:
    """What ``check_scene`` found.

    Attributes:
        source: The scene as given.
        problems: What makes mapping impossible or meaningless.
        warnings: What may make it worse.
        notes: What will be done to the scene before mapping.
        crs: Of the input.
        size: Width and height of the grid that is mapped, in pixels.
        pixel_m: Pixel size of the input in metres on the ground, x and y.
        valid_share: Share of sampled pixels that every input covers.
        ranges: Per band; ``low`` and ``high`` are the 2 % and 98 % quantiles.
    """

    source: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    name: str | None = None
    date: str | None = None
    level: str | None = None
    bands: tuple[str, ...] = ()
    units: str | None = None
    crs: str | None = None
    size: tuple[int, int] | None = None
    pixel_m: tuple[float, float] | None = None
    valid_share: float | None = None
    ranges: tuple[BandRange, ...] = ()
    statistics: Normalizer | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Whether mapping makes sense."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with ``ok``."""
        return {"ok": self.ok, **asdict(self)}

    def text(self) -> str:
        """For people: facts, then the band table, then what is wrong."""
        return "\n".join([*self._facts(), *self._table(), *self._findings()])

    def _facts(self) -> Iterator[str]:
        facts = {
            "scene": self.source,
            "date": self.date,
            "level": self.level,
            "bands": " ".join(self.bands) or None,
            "units": self.units,
            "CRS": self.crs,
            "size": self.size and f"{self.size[0]} x {self.size[1]} pixels",
            "pixel": self.pixel_m and f"{self.pixel_m[0]:.2f} x {self.pixel_m[1]:.2f} m",
            "valid": None if self.valid_share is None else f"{self.valid_share:.1%} of the sampled pixels",
        }
        return (f"{key:8}{value}" for key, value in facts.items() if value is not None)

    def _table(self) -> Iterator[str]:
        if self.ranges:
            yield f"\n{'band':8}{'2 %':>9}{'median':>9}{'98 %':>9}{'typical':>9}"
        for r in self.ranges:
            typical = "" if r.typical is None else f"{r.typical:.0f}"
            yield f"{r.band:8}{r.low:>9.0f}{r.median:>9.0f}{r.high:>9.0f}{typical:>9}"

    def _findings(self) -> Iterator[str]:
        yield ""
        kinds = (("note", self.notes), ("warning", self.warnings), ("problem", self.problems))
        yield from (f"{kind}: {line}" for kind, lines in kinds for line in lines)
        yield ("This scene can be mapped." if self.ok else "Mend the problems before mapping this scene.")


def check_scene(
    path: str | Path,
    cards: Sequence[Card],
    *,
    bands: Sequence[str] | None = None,
    dem: str | Path | None = None,
    slope: str | Path | None = None,
    units: str = "auto",
    s2_offset: str = "auto",
    scl: bool = True,
    clouds: bool = False,
) -> Report:
    """Look at a scene without mapping it.

    Args:
        path: As ``open_scene`` takes it.
        cards: Models that it would be mapped with, at least one; the first says at which resolution.
        bands: Names of the bands in file order, if the files do not say.
        dem: Elevation raster, metres.
        slope: Slope raster, degrees.
        units: ``auto``, ``dn``, ``reflectance`` or ``byte``.
        s2_offset: ``auto``, ``0`` or ``-1000``, as ``open_scene`` takes it.
        scl: Leave out what a scene classification calls cloud, shadow or snow.
        clouds: Leave out what looks like cloud.

    Returns:
        The report; a scene that cannot be opened gives a report with that one problem.
    """
    opened = partial(
        open_scene,
        path,
        bands=bands,
        dem=dem,
        slope=slope,
        units=units,
        s2_offset=s2_offset,
        scl=scl,
        clouds=clouds,
    )
    resolution = cards[0].resolution_m
    compression: Compression = "asinh" if cards[0].compression == "asinh" else "none"
    try:
        with opened(resolution=None) as native:
            pixel, crs = native.grid.pixel_size_m(), crs_name(native.native_crs)
        with opened(resolution=resolution) as scene:
            stats, valid_share, twins = _sample(scene)
            facts = Report(
                source=str(path),
                notes=tuple(scene.notes),
                name=scene.name,
                date=scene.date,
                level=scene.level,
                bands=scene.bands,
                units=scene.units,
                crs=crs,
                size=(scene.grid.width, scene.grid.height),
                pixel_m=pixel,
                valid_share=valid_share,
                ranges=_ranges(stats, scene.units),
                statistics=stats.normalizer(compression, f"scene {scene.name}") if stats.pixels else None,
            )
    except InputError as e:
        return Report(str(path), problems=(str(e),))
    problems = (*_missing(facts, cards), *_meaningless(facts, twins, cards, resolution))
    return replace(facts, problems=problems, warnings=tuple(_doubtful(facts, resolution)))


def crs_name(crs: CRS) -> str:
    """``EPSG:32654``, or the name inside the definition of a CRS without a code."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt().split('"')[1]


def _sample(scene: Scene) -> tuple[RobustStats, float, list[tuple[str, str]]]:
    """Statistics of the sampled pixels, the share that is valid, and neighbouring bands that are the same."""
    stats = RobustStats(scene.bands)
    pairs = set(zip(scene.bands, scene.bands[1:], strict=False))
    seen = 0
    for window in sample_windows(scene.grid):
        image, valid = scene.read(window)
        stats.update(image, valid)
        seen += valid.size
        pairs -= _different(dict(zip(scene.bands, image, strict=True)), pairs)
    return stats, stats.pixels / seen, sorted(pairs) if stats.pixels else []


def _different(image: dict[str, NDArray[np.float32]], pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(a, b) for a, b in pairs if not np.array_equal(image[a], image[b])}


def _ranges(stats: RobustStats, units: str) -> tuple[BandRange, ...]:
    """Distributions; a rendering has no typical values."""
    if not stats.pixels:
        return ()
    means = zip(L4S_BANDS, L4S_MEAN, strict=True)
    typical = {} if units == "byte" else {b: v for b, v in means if b not in TERRAIN_BANDS}
    low, median, high = (stats.quantile(q) for q in (0.02, 0.5, 0.98))
    rows = zip(stats.bands, low, median, high, strict=True)
    return tuple(
        BandRange(band, round(float(a), 1), round(float(b), 1), round(float(c), 1), typical.get(band))
        for band, a, b, c in rows
    )


def _missing(facts: Report, cards: Sequence[Card]) -> Iterator[str]:
    """A problem for every model whose bands are not all there."""
    for card in cards:
        missing = [band for band in card.bands if band not in facts.bands]
        if missing:
            yield (
                f"Model {card.name} needs {' '.join(card.bands)}; the scene lacks {' '.join(missing)}. "
                "Add these bands, name them with --bands, give --dem or --slope, or choose another --model."
            )


def _meaningless(
    facts: Report, twins: list[tuple[str, str]], cards: Sequence[Card], resolution: float
) -> Iterator[str]:
    """Problems in the pixels themselves."""
    if not facts.ranges:
        yield "No sampled pixel is valid in every input. Check nodata values and that the inputs overlap."
    used = {band for card in cards for band in card.bands}
    flat = [r.band for r in facts.ranges if r.band in used - {*TERRAIN_BANDS} and r.high - r.low < 2]
    if flat:
        yield f"Nearly all pixels of {' '.join(flat)} have the same value. Is this the right file?"
    for a, b in twins:
        if {a, b} <= used and not {a, b} & {*flat}:
            yield f"{a} and {b} are the same image. Was one file given for both?"
    if facts.pixel_m and max(facts.pixel_m) > 3 * resolution:
        yield (
            f"Pixels of {max(facts.pixel_m):.0f} m are too coarse for models trained on {resolution:g} m: "
            "most landslides are smaller than one. Use Sentinel-2 bands at 10 m."
        )


def _doubtful(facts: Report, resolution: float) -> Iterator[str]:
    """What may make the result worse."""
    if facts.units == "byte":
        yield "A rendering of 0..255 has lost detail that the models know. Prefer the original bands."
    spectral = [r for r in facts.ranges if r.typical is not None]
    far = [r for r in spectral if r.band != "B10" and not _near(r)]
    if far:
        yield (
            f"Values of {' '.join(r.band for r in far)} are far from Sentinel-2 digital numbers "
            f"(median {far[0].median:.0f} in {far[0].band}, typically {far[0].typical:.0f}). Check --units."
        )
    visible = [r for r in spectral if r.band in ("B2", "B3", "B4")]
    if visible and not far and all(r.low >= OFFSET for r in visible):
        yield (
            "Even the darkest pixels are above 1000: the offset of processing baseline 04.00, haze or cloud. "
            "With the scene's own statistics (--normalize scene) a constant offset does no harm. If it is the offset, "
            "--s2-offset -1000 takes it off."
        )
    if facts.valid_share is not None and 0 < facts.valid_share < 0.1:
        yield f"Only {facts.valid_share:.1%} of the sampled pixels are valid."
    if facts.pixel_m and 1.2 * resolution < max(facts.pixel_m) <= 3 * resolution:
        coarse = max(facts.pixel_m)
        yield f"Pixels of {coarse:.1f} m are coarser than the models' {resolution:g} m."
    for r in facts.ranges:
        if r.band == "slope" and (r.low < 0 or r.high > 90):
            yield f"Slope runs from {r.low:.0f} to {r.high:.0f}; degrees from 0 to 90 are expected."
        if r.band == "dem" and (r.low < -500 or r.high > 9000):
            yield f"Elevation runs from {r.low:.0f} to {r.high:.0f}; metres are expected."


def _near(r: BandRange) -> bool:
    return r.typical is not None and r.typical / FAR <= r.median <= r.typical * FAR
