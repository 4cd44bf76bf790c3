"""Mapping a folder of Landslide4Sense patches, and the archive of masks that the competition's leaderboard takes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l4s_geo import outputs
from l4s_geo.calibration import Calibrations
from l4s_geo.data.folders import open_patches
from l4s_geo.data.l4s import COUNTS, encode_mask, number_of
from l4s_geo.data.new_folder import check_new_folder, new_folder
from l4s_geo.data.patches import Patches
from l4s_geo.ensemble import Ensemble, choose_device, choose_dtype
from l4s_geo.errors import InputError, OutputError, reason
from l4s_geo.metrics import Counts, confusion
from l4s_geo.models import registry
from l4s_geo.models.card import Card
from l4s_geo.normalize import Normalizer, RobustStats
from l4s_geo.progress import Progress
from l4s_geo.provenance.record import origin, versions
from l4s_geo.results import Clock, MapResult
from l4s_geo.settings import MapOptions, agree, calibrations_of, decide, normalizer_for

#: Archive in a folder of masks.
ARCHIVE = "submission.zip"

Write = Callable[[str, NDArray[np.bool_]], None]


@dataclass(frozen=True)
class PatchOptions:
    """What ``predict-patches`` takes; None means that preset or model card decide.

    Attributes:
        folder: Of ``image_N.h5``, or of the whole data set.
        out: Archive (``.zip``), or a new folder for ``mask_N.h5`` and the archive.
        models: Names or directories; none means the bundled ensemble.
        split: ``train``, ``validation`` or ``test``, where the folder has several.
        threshold: Probability from which on a pixel is landslide.
        preset: Name in ``l4s_geo.settings.PRESETS``; only its threshold counts here.
        tta: Average over the symmetries of a patch.
        normalize: ``folder`` (all patches are one domain), ``blend``, ``model``, a name in
            ``l4s_geo.normalize.NAMED``, or a file; None: as the card says.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        dtype: ``auto``, ``fp32``, ``bf16``, ``fp16``.
        batch_size: Patches per forward pass.
        overwrite: Replace an archive that exists.
    """

    folder: Path
    out: Path
    models: tuple[str, ...] = ()
    split: str = "test"
    threshold: float | None = None
    preset: str = "balanced"
    tta: bool | None = None
    normalize: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    overwrite: bool = False


def predict_patches(options: PatchOptions, progress: Progress) -> MapResult:
    """Map every patch of a folder and write the masks.

    Raises:
        InputError: The folder or an option cannot be used.
        ModelError: A model cannot be used.
        OutputError: The output is there already or cannot be written; nothing is left of it.
    """
    clock = Clock()
    _check_output(options.out, options.overwrite)
    models = [registry.find(name) for name in options.models or (registry.DEFAULT,)]
    card = agree([m.card for m in models])
    wanted = MapOptions(
        str(options.folder), options.out, threshold=options.threshold, preset=options.preset, tta=options.tta, crf=False
    )
    settings, calibrations = decide(wanted, [m.card for m in models]), calibrations_of([m.card for m in models])
    patches = open_patches(options.folder, card.bands, split=options.split, labels=False)
    if patches.kind != "l4s":
        raise InputError(f"{options.folder} holds chips, not image_N.h5. Map them one by one with `l4s-map map`.")
    with clock.stage("statistics"):
        normalizer = _normalizer(options.normalize, card, patches, progress)
    device = choose_device(options.device)
    networks = [registry.load_network(m, n) for m in models for n in m.card.networks]
    dtype = choose_dtype(options.dtype, device)
    ensemble = Ensemble(networks, device, dtype, tta=settings.tta)
    batch = options.batch_size or (128 if device.type == "cuda" else 16)
    with clock.stage("networks"), _writer(options.out) as (write, until):
        figures = _map(patches, normalizer, ensemble, calibrations, settings.threshold, batch, write, progress)
        summary = {"out": str(options.out), **figures, "threshold": settings.threshold, "notes": _notes(len(patches))}
        record = {
            "record": origin("predict-patches"),
            "versions": versions(),
            "inputs": {"folder": str(options.folder), "split": options.split, "patches": len(patches)},
            "models": [
                {
                    "name": m.card.name,
                    "version": m.card.version,
                    "sha256": {n.name: n.sha256 for n in m.card.networks},
                    "calibration": m.card.calibration or None,
                }
                for m in models
            ],
            "normalization": normalizer.to_dict(),
            "settings": {k: v for k, v in asdict(options).items() if k not in ("folder", "out", "models")}
            | {"threshold": settings.threshold, "tta": settings.tta},
            "result": summary,
        }
        outputs.write_provenance(options.out.with_name(options.out.name + ".json"), record, until=until)
    summary["seconds"] = {**clock.seconds, "total": round(sum(clock.seconds.values()), 3)}
    return MapResult(summary, _message(summary))


def _check_output(out: Path, overwrite: bool) -> None:
    """Raises OutputError where the output is there already or cannot be written."""
    if out.suffix.lower() == ".zip":
        outputs.check_output(out, (".zip",))
        if out.exists() and not overwrite:
            raise OutputError(f"{out} exists. Give --overwrite to replace it, or another name.")
    else:
        check_new_folder(out)


def _normalizer(name: str | None, card: Card, patches: Patches, progress: Progress) -> Normalizer:
    """What ``--normalize`` names; for ``folder``, statistics of all its patches as of one region."""

    def own() -> Normalizer:
        stats = RobustStats(card.bands)
        progress.start("statistics", len(patches))
        for patch in patches:
            stats.update(patch.image, patch.valid)
            progress.advance()
        progress.finish()
        return stats.normalizer(card.compression, f"folder {patches.source.name}")

    return normalizer_for("scene" if name == "folder" else name, card, own)


def _map(
    patches: Patches,
    normalizer: Normalizer,
    ensemble: Ensemble,
    calibrations: Calibrations,
    threshold: float,
    batch_size: int,
    write: Write,
    progress: Progress,
) -> dict[str, Any]:
    """Write the mask of every patch; figures where there is truth."""
    counts, landslides, mapped = Counts(), 0, 0
    progress.start("mapping", len(patches))
    for start in range(0, len(patches), batch_size):
        batch = list(patches[start : start + batch_size])
        members = torch.from_numpy(ensemble(np.stack([normalizer(p.image, p.valid) for p in batch])))
        found = (calibrations.mean(members.movedim(1, 0)) >= threshold).numpy()
        for item, patch, mask in zip(patches.items[start:], batch, found, strict=False):
            mask &= patch.valid
            write(f"mask_{number_of(item)}.h5", mask)
            counts += confusion(mask, patch.truth)
            landslides += int(mask.sum())
            mapped += bool(mask.any())
        progress.advance(len(batch))
    progress.finish()
    pixels = len(patches) * found[0].size
    figures: dict[str, Any] = {
        "patches": len(patches),
        "with_landslides": mapped,
        "landslide_share": round(landslides / pixels, 6),
    }
    if counts.total:
        figures |= {k: round(getattr(counts, k), 4) for k in ("precision", "recall", "f1")}
    return figures


@contextmanager
def _writer(out: Path) -> Iterator[tuple[Write, ExitStack]]:
    """Takes masks by file name; everything appears at the end, with what else is put on the stack."""
    try:
        with ExitStack() as until:
            folder = None
            if out.suffix.lower() == ".zip":
                archive = until.enter_context(outputs.atomic(out))
            else:
                folder = until.enter_context(new_folder(out))
                archive = folder / ARCHIVE
            file = until.enter_context(zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED))

            def write(name: str, mask: NDArray[np.bool_]) -> None:
                data = encode_mask(mask)
                file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # dated 1980: equal runs, equal files
                if folder is not None:
                    (folder / name).write_bytes(data)

            yield write, until
    except outputs.FAILURES as e:
        raise OutputError(f"{out} cannot be written: {reason(e)}. Check the space left and the permissions.") from e


def _notes(patches: int) -> list[str]:
    if patches in (COUNTS["validation"], COUNTS["test"]):
        return []
    return [
        f"the leaderboard takes all {COUNTS['validation']} validation or all {COUNTS['test']} test patches; "
        f"these are {patches}"
    ]


def _message(summary: dict[str, Any]) -> str:
    lines = [
        f"{summary['patches']} masks, {summary['with_landslides']} with landslides on "
        f"{summary['landslide_share']:.1%} of all pixels ({summary['seconds']['total']:.0f} s) in {summary['out']}"
    ]
    if "f1" in summary:
        lines.append(f"against the masks there: P {summary['precision']} R {summary['recall']} F1 {summary['f1']}")
    return "\n".join([*lines, *(f"note: {n}" for n in summary["notes"])])
