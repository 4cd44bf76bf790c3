"""What an adaptation is asked for, and the folders that it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l4s_geo.data.new_folder import check_new_folder
from l4s_geo.errors import InputError, L4SError, OutputError
from l4s_geo.models import registry
from l4s_geo.outputs import writing

#: What was asked for, in the output folder.
ASKED = "adapt.json"


@dataclass(frozen=True)
class AdaptOptions:
    """What ``adapt`` takes.

    Attributes:
        scenes: Unlabelled scenes (file, folder or glob; ``PATH@UNITS`` states their units), or folders of
            Landslide4Sense patches.
        out: Model directory to write.
        model: To start from, a name or a directory.
        method: As ``l4s_geo.adapt.method.load`` takes it.
        source: Labelled data to learn from as well, as ``train --data`` takes it.
        labels: Polygons of a few landslides in the scenes, and maybe of background.
        truth: Labels of each scene, in the order of the scenes, that only figures are made from; none, or for all.
        aoi: Polygons; only what lies inside is used.
        masks: Rasters or polygons of what is not to be used.
        clouds: What looks like cloud is not to be used, as in ``open_scene``.
        bands: Names of the scenes' bands in file order.
        networks: Architectures that learn instead of the model's own.
        rounds: Instead of the method's.
        steps: Of each network in each round, instead of the method's.
        minutes: Most time of all trainings together; None: the steps decide alone.
        batch_size: Patches a step; None: the method's.
        seed: Of everything random.
        resume: Go on with an adaptation that was stopped.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: ``auto``, ``fp32``, ``bf16``, ``fp16`` of the forward pass.
        threads: CPU threads; 0 leaves torch's choice.
    """

    scenes: tuple[str, ...]
    out: Path
    model: str = registry.DEFAULT
    method: str = "auto"
    source: tuple[str, ...] = ()
    labels: Path | None = None
    truth: tuple[str, ...] = ()
    aoi: Path | None = None
    masks: tuple[Path, ...] = ()
    clouds: bool = False
    bands: tuple[str, ...] | None = None
    networks: tuple[str, ...] = ()
    rounds: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    seed: int = 1
    resume: bool = False
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0

    def describe(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that was stopped, as JSON types."""
        hidden = ("out", "resume", "device", "threads", "truth")
        values = {k: v for k, v in asdict(self).items() if k not in hidden}
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
        return plain | {"masks": [str(m) for m in self.masks]}

    def named(self) -> dict[str, Any]:
        """The same for the card: names of files, without folders."""
        values = self.describe()
        files = {k: [Path(p).name for p in values[k]] for k in ("scenes", "source", "masks")}
        one = {k: values[k] and Path(values[k]).name for k in ("model", "method", "labels", "aoi")}
        return values | files | one


@contextmanager
def claimed(options: AdaptOptions) -> Iterator[None]:
    """Make the output folder, or take up that of a run that was stopped; one that fails before round 1 leaves nothing.

    Raises:
        OutputError: The folder holds something else, or cannot be written.
        InputError: The run that was stopped was asked for something else.
    """
    note, fresh = options.out / ASKED, not options.out.exists()
    again = options.resume and note.is_file()
    asked = json.loads(json.dumps(options.describe()))
    if again:
        before = json.loads(note.read_text())
        changed = [k for k in asked if before.get(k) != asked[k]]
        if changed:
            raise InputError(
                f"{options.out} was begun with other settings ({', '.join(changed)}). Give the same as before, or "
                "another --out."
            )
    else:
        if note.is_file():
            raise OutputError(f"{options.out} holds an adaptation. Add --resume to go on, or choose another --out.")
        check_new_folder(options.out)
        with writing(note):
            options.out.mkdir(exist_ok=True)
            note.write_text(json.dumps(asked, indent=1) + "\n")
    try:
        yield
    except (L4SError, OSError):
        if not again and not (options.out / "round-1").exists():
            for folder in [options.out] if fresh else [options.out / "targets", options.out / "round-0"]:
                shutil.rmtree(folder, ignore_errors=True)
            note.unlink(missing_ok=True)
        raise
