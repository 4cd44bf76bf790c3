"""Files that a run is asked for, what comes beside them, and whether they can be written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from rasterio.crs import CRS

from l4s_geo import outputs, qgis, qml
from l4s_geo.errors import OutputError
from l4s_geo.paths import exists


@dataclass(frozen=True)
class Outputs:
    """Files to write; the name of each is that of the option which asks for it."""

    out: Path
    prob: Path | None = None
    density: Path | None = None
    stac: Path | None = None
    report: Path | None = None
    quicklook: Path | None = None

    @classmethod
    def of(cls, options: object) -> Self:
        """Those that the options of ``map`` name."""
        given: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(cls)}
        return cls(**given)

    def asked(self) -> dict[str, Path]:
        """Those that are asked for, by option."""
        return {f"--{f.name}": path for f in fields(self) if (path := getattr(self, f.name)) is not None}

    def made(self) -> dict[str, Path]:
        """Those with a record beside, by option: all but the STAC item, which says where the records are."""
        return {option: path for option, path in self.asked().items() if option != "--stac"}

    def beside(self) -> dict[Path, str]:
        """Files that come with those, and what they are."""
        records = {outputs.record_path(path): f"the provenance of {option}" for option, path in self.made().items()}
        return records | ({} if self.stac is None else {outputs.model_path(self.stac): "the item of the model"})


#: What outputs beside the polygons may be called.
EXTENSIONS = {
    "--prob": outputs.RASTER_EXTENSIONS,
    "--density": outputs.RASTER_EXTENSIONS,
    "--stac": (".json",),
    "--report": (".html", ".htm"),
    "--quicklook": (".png", ".jpg", ".jpeg"),
}

#: What QGIS draws outputs in, or a raster that shares their style file.
RAMPS = {"--out": qml.PROBABILITY, "--prob": qml.PROBABILITY, "--density": qml.DENSITY}


def check_outputs(
    wanted: Outputs,
    overwrite: bool,
    *,
    crs: CRS | None = None,
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Check all outputs before any work.

    Raises:
        OutputError: One exists and may not be replaced, is an input or another output, or cannot be written.
    """
    asked = wanted.asked()
    for option, path in asked.items():
        outputs.check_output(path, EXTENSIONS.get(option, tuple(outputs.VECTOR_DRIVERS)), crs=crs)
    for path in asked.values():
        same = [other for other, p in asked.items() if p.resolve() == path.resolve()]
        if len(same) > 1:
            raise OutputError(f"{' and '.join(same)} are both {path}. Give one of them another name.")
    for path, what in wanted.beside().items():
        if path.is_dir():
            raise OutputError(f"{path} is a folder where {what} goes. Rename it, or give another name.")
        outputs.check_replaceable(path)
        same = [option for option, p in asked.items() if p.absolute() == path.absolute()]
        if same:
            raise OutputError(f"{same[0]} is {path}, where {what} goes. Give it another name.")
    given = [path for path in inputs if path is not None]
    for option, path in asked.items():
        for file in (path, outputs.record_path(path)):
            if file.exists() and any(exists(p) and file.samefile(p) for p in given):
                raise OutputError(f"{file} is an input and would be lost. Give {option} another name.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists. Give --overwrite to replace it, or another name.")
    if wanted.stac is not None and (model := outputs.model_path(wanted.stac)).exists() and not overwrite:
        raise OutputError(f"{model} exists, where the item of the model goes. Give --overwrite, or another --stac.")
    rasters = [asked[option] for option in ("--prob", "--density") if option in asked]
    if len({qgis.style_path(path) for path in rasters}) < len(rasters):
        shared = qgis.style_path(rasters[0])
        raise OutputError(f"--prob and --density would share their colours in {shared}. Give one another name.")


def styles(wanted: Outputs) -> dict[Path, Sequence[qml.Stop]]:
    """Style files to write, and how each draws a raster; a GeoPackage has its styles inside."""
    return {
        qgis.style_path(path): RAMPS[option]
        for option, path in wanted.asked().items()
        if option in RAMPS and path.suffix.lower() != ".gpkg"
    }


def kept_style(path: Path) -> str:
    """What the user should know about a style file that is somebody else's."""
    return f"QGIS takes the colours from {path}, which l4s-map has not written and leaves as it is"
