"""A scene from before the event, laid on the scene's grid window by window and compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from l4s_geo.before.alignment import Pair, Shift, find_shift
from l4s_geo.before.novelty import RADIUS, local_contrast
from l4s_geo.errors import InputError
from l4s_geo.masks import EVERYWHERE, Limits
from l4s_geo.normalize import Normalizer, RobustStats
from l4s_geo.raster import Layered, row_windows, sample_windows
from l4s_geo.scene import Grid, Scene, open_scene
from l4s_geo.scene.warp import Pixels, clip

#: Bands that are compared: bare ground is bright in all of them, and darker than plants in the near infrared.
BANDS = ("B4", "B3", "B2")

#: Side of the windows that show how far the scenes lie apart, smaller in scenes that are, and how many are looked at.
SIZE, MOST = 128, 64

#: Peaks of the correlation from which on a shift is believed. Hokkaido before and after, snow against none, has 45 in
#: 28 windows and up to 34 in one of them alone; noise and other ground have 4.8 to 7.6.
PEAK = 10.0

#: How much brighter a pixel may have been than it is now, in standardized units: cloud and snow are brighter than the
#: bare ground of a scar, and hide what was there.
BRIGHTER = 1.0

#: Shifts in pixels below which nothing is done, and above which the position of one scene must be wrong: those of
#: Sentinel-2 agree within one or two.
LEAST, FARTHEST = 0.1, 5.0


@dataclass(frozen=True)
class Before:
    """A scene from before the event.

    Attributes:
        scene: The one from after it.
        earlier: The one from before, on the same grid.
        limits: What masks cover counts for nothing; ground outside an area of interest is ground around all the same.
        bands: That are compared.
        shift: Of the earlier one, taken out where it is reliable.
        notes: For the user.
    """

    scene: Scene
    earlier: Scene
    limits: Limits
    bands: tuple[str, ...]
    shift: Shift
    notes: tuple[str, ...]

    def read(self, window: Window) -> tuple[Pixels, Pixels]:
        """Bands and validity in a window of the scene and of the earlier one."""
        one, seen = self.scene.read(window, self.bands)
        return (one, seen & self.limits.clear(window)), self.earlier.read(window, self.bands)

    def comparison(self, raster: Layered, layer: str, threshold: float) -> Comparison:
        """Ready to compare: with the statistics of both scenes where both are seen and nothing is mapped.

        Landslides must not count, for they would widen the spread of one scene and not of the other.

        Args:
            raster: Of probabilities.
            layer: Their name in it.
            threshold: Probability from which on a pixel is mapped.
        """
        for windows in (sample_windows(self.scene.grid), row_windows(self.scene.grid)):
            stats, pixels, both = (RobustStats(self.bands), RobustStats(self.bands)), 0, 0
            for window in windows:
                (one, seen), (other, seen_before) = self.read(window)
                pixels, both = pixels + int(seen.sum()), both + int((seen & seen_before).sum())
                ground = seen & seen_before & ~(raster.read(window, layer) >= threshold)
                for own, image in zip(stats, (one, other), strict=True):
                    own.update(image, ground)
            if stats[0].pixels:
                names = (f"scene {self.scene.name}", f"scene {self.earlier.name}")
                normalizers = tuple(s.normalizer("asinh", name) for s, name in zip(stats, names, strict=True))
                return Comparison(self, raster, layer, threshold, normalizers, both / pixels)
        return Comparison(self, raster, layer, threshold, (), 0.0)


@dataclass(frozen=True)
class Comparison:
    """What stands out now, and what stood out before. For one thread at a time.

    Attributes:
        before: The scenes.
        raster: Of probabilities.
        layer: Their name in it.
        threshold: Probability from which on a pixel is mapped.
        normalizers: Of the scene and of the earlier one, from the ground that both see; none if there is none.
        share: Of what the scene sees, as far as the earlier one sees it too.
    """

    before: Before
    raster: Layered
    layer: str
    threshold: float
    normalizers: tuple[Normalizer, ...]
    share: float

    def contrasts(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """How far pixels stand out from the ground around, now and before.

        Args:
            window: Full-width rows of the grid.

        Returns:
            (h, w) each, in standard deviations of the scenes (beyond one of them compressed by asinh), means of the
            bands; NaN where either is not seen, or where something much brighter was there.
        """
        wide = clip(window, self.before.scene.grid, RADIUS)
        row, col = int(window.row_off - wide.row_off), int(window.col_off - wide.col_off)
        inner = np.s_[row : row + int(window.height), col : col + int(window.width)]
        (one, seen), (other, seen_before) = self.before.read(wide)
        both = seen & seen_before
        if not self.normalizers:
            nothing = np.full(both.shape, np.nan, np.float32)[inner]
            return nothing, nothing
        pairs = zip(self.normalizers, (one, other), strict=True)
        bright = [normalize(image, both).mean(axis=0) for normalize, image in pairs]
        told = both & (bright[1] <= bright[0] + BRIGHTER)
        around = both & ~(self.raster.read(wide, self.layer) >= self.threshold)
        now, before = (np.where(told, local_contrast(b, around), np.float32(np.nan))[inner] for b in bright)
        return now, before

    def notes(self) -> Iterator[str]:
        """For the user."""
        yield from self.before.notes
        if self.share < 0.995:
            source = self.before.earlier.source
            yield f"--pre {source} sees {self.share:.0%} of what the scene sees; `new` is unknown elsewhere"

    def record(self) -> dict[str, Any]:
        """For the provenance."""
        earlier, shift = self.before.earlier, self.before.shift
        east, south = earlier.grid.pixel_size_m()
        return {
            "name": earlier.name,
            "date": earlier.date,
            "bands": list(self.before.bands),
            "seen_share": round(self.share, 4),
            "shift": {
                "east_m": round(shift.column * east, 2),
                "south_m": round(shift.row * south, 2),
                "peak": round(shift.peak, 1),
                "windows": shift.windows,
                "taken_out": _reliable(shift) and _far(shift) >= LEAST,
            },
            "normalization": [n.to_dict() for n in self.normalizers],
        }


@contextmanager
def open_before(
    path: str,
    scene: Scene,
    limits: Limits = EVERYWHERE,
    *,
    wanted: Sequence[str] = BANDS,
    bands: Sequence[str] | None = None,
    units: str = "auto",
    scl: bool = True,
    clouds: bool = False,
) -> Iterator[Before]:
    """Open a scene from before the event on the grid of another, find out how far they lie apart, and take that out.

    An offset of its digital numbers does not matter: each scene is standardized with its own statistics.

    Args:
        path: As ``open_scene`` takes it.
        scene: The one from after the event.
        limits: Where that is looked at.
        wanted: Bands that the scene is mapped with.
        bands: As in ``open_scene``; not for products, which know theirs.
        units: As in ``open_scene``.
        scl: As in ``open_scene``.
        clouds: As in ``open_scene``.

    Raises:
        InputError: It cannot be used, does not reach the scene, or shows the same ground far away.
    """
    compared = tuple(b for b in BANDS if b in wanted)
    if not compared:
        raise InputError(
            f"--pre compares brightness in {', '.join(BANDS)}, and the model uses none of them. Leave --pre out."
        )
    opened = partial(_opened, path, bands=bands, units=units, scl=scl, clouds=clouds, wanted=compared)
    with opened(grid=scene.grid) as first:
        size = min(SIZE, *scene.grid.shape)
        shift = find_shift(_pairs(scene, first, limits, compared, size), size)
    if _reliable(shift) and _far(shift) > FARTHEST:
        raise InputError(
            f"--pre {path} shows the same ground as {scene.source} {_spoken(shift, scene.grid)}. Scenes of Sentinel-2 "
            "agree within one or two pixels: one of the two has a wrong position. Mend it, or give another scene."
        )
    moved = _reliable(shift) and _far(shift) >= LEAST
    grid = scene.grid.part(Window(shift.column, shift.row, scene.grid.width, scene.grid.height))
    with opened(grid=grid if moved else scene.grid) as earlier:
        yield Before(scene, earlier, limits, compared, shift, tuple(_notes(path, scene, earlier, shift)))


def _opened(
    path: str, *, grid: Grid, bands: Sequence[str] | None, units: str, scl: bool, clouds: bool, wanted: Sequence[str]
) -> Scene:
    """The scene from before on a grid; messages say that it is meant."""
    try:
        try:
            found = open_scene(path, units=units, scl=scl, clouds=clouds, wanted=wanted, grid=grid)
        except InputError:
            if bands is None:
                raise
            # Names are for the scene that is mapped; they serve here too where the files do not say
            found = open_scene(path, bands=bands, units=units, scl=scl, clouds=clouds, wanted=wanted, grid=grid)
    except InputError as e:
        raise InputError(f"--pre: {e}") from e
    missing = [b for b in wanted if b not in found.bands]
    if missing:
        found.close()
        raise InputError(
            f"--pre: {path} has the bands {', '.join(found.bands)}; comparing takes {', '.join(wanted)}. Add what is "
            "missing, or leave --pre out."
        )
    return found


def _pairs(scene: Scene, earlier: Scene, limits: Limits, bands: Sequence[str], size: int) -> Iterator[Pair]:
    """Brightness in windows of both scenes, on a scale where clouds do not outshine all else."""
    for window in sample_windows(scene.grid, size, MOST):
        (one, seen), (other, seen_before) = (s.read(window, bands) for s in (scene, earlier))
        first, second = (np.log(np.maximum(image.mean(axis=0), 1)) for image in (one, other))
        yield first, second, seen & seen_before & limits.clear(window)


def _reliable(shift: Shift) -> bool:
    return shift.peak >= PEAK


def _far(shift: Shift) -> float:
    return float(np.hypot(shift.row, shift.column))


def _spoken(shift: Shift, grid: Grid) -> str:
    """Such as ``6.5 m east and 7.5 m south``."""
    across, down = grid.pixel_size_m()
    east, south = shift.column * across, shift.row * down
    sides = "east" if east >= 0 else "west", "south" if south >= 0 else "north"
    return f"{abs(east):.1f} m {sides[0]} and {abs(south):.1f} m {sides[1]}"


def _notes(path: str, scene: Scene, earlier: Scene, shift: Shift) -> Iterator[str]:
    """What the user should know about the comparison."""
    yield from (f"--pre {path}: {note}" for note in earlier.notes)
    if _reliable(shift) and _far(shift) >= LEAST:
        yield f"--pre {path} shows the ground {_spoken(shift, scene.grid)}; this was taken out"
    elif shift.windows and not _reliable(shift):
        yield (
            f"--pre {path} does not look like the same ground: no shift of one against the other makes them alike. It "
            "was compared as it lies; look whether it is the right place, and free of clouds and snow"
        )
    elif not shift.windows:
        yield f"--pre {path}: too little is seen in both scenes to tell how far they lie apart; compared as they lie"
    if scene.date and earlier.date and earlier.date >= scene.date:
        yield f"--pre {path} is of {earlier.date}, not before the scene of {scene.date}"
