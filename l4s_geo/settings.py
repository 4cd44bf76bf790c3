"""Options of a map, filled in from presets and model cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from l4s_geo import crf
from l4s_geo.calibration import Calibration, Calibrations
from l4s_geo.crf import CrfParams
from l4s_geo.errors import InputError, ModelError
from l4s_geo.models.card import Card
from l4s_geo.normalize import NAMED, Normalizer, blend
from l4s_geo.tiling import PATCH


@dataclass(frozen=True)
class Preset:
    """What a preset stands for. ``threshold`` names one of the card's tuned thresholds."""

    threshold: str = "balanced"
    overlap: float = 0.5
    min_area: float = 500.0
    min_slope: float = 5.0
    max_hole: float = 500.0


PRESETS = {
    "balanced": Preset(),
    "recall": Preset(threshold="recall", min_area=200.0),
    "precision": Preset(threshold="precision", min_area=2000.0),
    "fast": Preset(overlap=0.25),
}


@dataclass(frozen=True)
class Decided:
    """What an earlier run had decided, for one that repeats it.

    Attributes:
        settings: Some of the fields of ``Settings``.
        normalizer: With the statistics that it used; None: they are found again.
        record: The file that says so.
        notes: For the user.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    normalizer: Normalizer | None = None
    record: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MapOptions:
    """What ``map`` takes; None means that preset or model card decide.

    Attributes:
        scene: Path, folder, glob or GDAL address.
        out: Vector file to write.
        dem: Elevation raster.
        slope: Slope raster, degrees.
        aoi: Polygons; nothing outside is mapped, but the networks see what is around.
        masks: Polygons or rasters of what is hidden, also from the networks and from the statistics.
        bands: Names of the scene's bands in file order.
        units: ``auto``, ``dn``, ``reflectance``, ``byte``.
        s2_offset: ``auto``, ``0``, ``-1000``: added to digital numbers.
        scl: Leave out what the scene classification of a Level-2A product calls cloud, shadow or snow.
        clouds: Leave out what looks like cloud in the bands of a Level-1C scene.
        pre: Scene from before the event, as ``scene``; says which landslides are new.
        pre_action: What happens to landslides that are not new: ``drop`` or ``flag``.
        models: Names or directories; none means the bundled ensemble.
        prob: Probability raster to write.
        density: Raster of landslide area per square kilometre to write.
        stac: STAC item to write, which describes the other outputs.
        report: Page to write, HTML.
        quicklook: Picture to write, PNG or JPEG.
        threshold: Probability from which on a pixel is landslide.
        preset: Name in ``PRESETS``.
        min_area: Smallest landslide, m2.
        min_slope: Landslides on ground that is flatter on average are left out, degrees; 0 keeps all.
        max_hole: Holes below are closed, m2.
        simplify: Outline tolerance, m.
        overlap: Share of a patch's side.
        tta: Average over the symmetries of a patch; off unless asked for, it gains less than it costs.
        crf: Refine with the dense CRF.
        normalize: As in ``normalizer_for``; None: as the card says.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, or several joined by commas.
        dtype: ``auto``, ``fp32``, ``bf16``, ``fp16``.
        batch_size: Patches per forward pass.
        workers: Processor cores to use; all if not given.
        resume: Go on with what an interrupted run has left.
        overwrite: Replace existing outputs.
        decided: What is kept of an earlier run, whatever preset and model card say.
    """

    scene: str
    out: Path
    dem: str | None = None
    slope: str | None = None
    aoi: str | None = None
    masks: tuple[str, ...] = ()
    bands: tuple[str, ...] | None = None
    units: str = "auto"
    s2_offset: str = "auto"
    scl: bool = True
    clouds: bool = False
    pre: str | None = None
    pre_action: str = "drop"
    models: tuple[str, ...] = ()
    prob: Path | None = None
    density: Path | None = None
    stac: Path | None = None
    report: Path | None = None
    quicklook: Path | None = None
    threshold: float | None = None
    preset: str = "balanced"
    min_area: float | None = None
    min_slope: float | None = None
    max_hole: float | None = None
    simplify: float = 0.0
    overlap: float | None = None
    tta: bool | None = None
    crf: bool | None = None
    normalize: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    resume: bool = False
    overwrite: bool = False
    decided: Decided = Decided()


@dataclass(frozen=True)
class Settings:
    """Decided values; names as in ``MapOptions``.

    ``crf`` is None where no CRF runs. It was tuned on what networks say, so that its probabilities are not calibrated.
    """

    threshold: float
    min_area: float
    min_slope: float
    max_hole: float
    simplify: float
    stride: int
    tta: bool
    crf: CrfParams | None
    notes: tuple[str, ...] = ()


def decide(options: MapOptions, cards: Sequence[Card]) -> Settings:
    """Fill in what the user left open.

    Raises:
        InputError: Unknown preset, or a CRF that is asked for where pydensecrf is missing.
    """
    if options.preset not in PRESETS:
        raise InputError(f"Unknown preset {options.preset!r}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[options.preset]
    overlap = preset.overlap if options.overlap is None else options.overlap
    tuned = [c.thresholds[preset.threshold] for c in cards]
    threshold = sum(tuned) / len(tuned) if options.threshold is None else options.threshold
    params, notes = _crf(options, cards[0], float(calibrations_of(cards).inverse(threshold)))
    found = Settings(
        threshold=threshold,
        min_area=preset.min_area if options.min_area is None else options.min_area,
        min_slope=preset.min_slope if options.min_slope is None else options.min_slope,
        max_hole=preset.max_hole if options.max_hole is None else options.max_hole,
        simplify=options.simplify,
        stride=max(1, round(PATCH * (1 - overlap))),
        tta=bool(options.tta),
        crf=params,
        notes=notes,
    )
    return replace(found, **options.decided.settings)


def _crf(options: MapOptions, card: Card, threshold: float) -> tuple[CrfParams | None, tuple[str, ...]]:
    wanted = bool(card.crf.get("default", False)) and options.preset != "fast" if options.crf is None else options.crf
    if not wanted:
        return None, ()
    if not crf.available():
        if options.crf:
            raise InputError(
                "--crf needs the package pydensecrf2, which is not installed (it does not build on Python 3.13). "
                "Install it, or map with --no-crf."
            )
        return None, ("no CRF: pydensecrf2 is not installed",)
    tuned = CrfParams.from_dict(card.crf.get("params", {}))
    return at_threshold(tuned, threshold), ()


def at_threshold(params: CrfParams, threshold: float) -> CrfParams:
    """The same CRF around another threshold, which has to lie among the undecided probabilities."""
    t = min(max(threshold, 0.01), 0.99)
    return replace(params, threshold=t, lo=min(params.lo, t / 2), hi=max(params.hi, (1 + t) / 2))


def calibrations_of(cards: Sequence[Card]) -> Calibrations:
    """How models that are averaged are calibrated, each as its own card says."""
    return Calibrations(tuple((len(c.networks), Calibration.from_dict(c.calibration)) for c in cards))


def agree(cards: Sequence[Card]) -> Card:
    """Check that models can be averaged; the first one's card then speaks for all.

    Raises:
        ModelError: They want different input.
    """
    first = cards[0]
    for other in cards[1:]:
        if _wanted(other) != _wanted(first):
            raise ModelError(
                f"Models {first.name} ({' '.join(first.bands)}, {first.resolution_m:g} m) and {other.name} "
                f"({' '.join(other.bands)}, {other.resolution_m:g} m) want different input and cannot be averaged. "
                "Map with each alone."
            )
    return first


def _wanted(card: Card) -> tuple[object, ...]:
    """What input a model wants."""
    return card.bands, card.compression, card.normalization, card.resolution_m


def normalizer_for(name: str | None, card: Card, own: Callable[[], Normalizer]) -> Normalizer:
    """The normalizer that ``--normalize`` (or else the card) names.

    Args:
        name: ``scene`` (its own mean and spread), ``model`` (those of the training regions), ``blend`` (its own, moved
            a bit towards those), ``centre`` (its own mean, the spread of the training regions), a name in
            ``l4s_geo.normalize.NAMED``, or a JSON file.
        card: Of the model.
        own: Gives the scene's own statistics of the card's bands; called where they are needed.

    Raises:
        InputError: No such file, or it lacks a band.
    """
    name = name or card.normalization
    if name == "scene":
        return own()
    if name == "model":
        found = Normalizer.from_dict(card.statistics)
    elif name == "blend":
        found = blend(own(), Normalizer.from_dict(card.statistics))
    elif name == "centre":
        found = own()
        spread = Normalizer.from_dict(card.statistics).select(found.bands)
        found = replace(found, scale=spread.scale, source=f"{found.source}, spread of {card.name}")
    elif name in NAMED:
        found = NAMED[name]()
    else:
        found = Normalizer.load(Path(name))
    return found.select(card.bands)
