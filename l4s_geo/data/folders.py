"""What a folder of patches is: Landslide4Sense in one of its layouts, or chips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from l4s_geo.data.chips import open_chips
from l4s_geo.data.l4s import open_l4s
from l4s_geo.data.patches import LISTED, Patches, check_labels
from l4s_geo.errors import InputError


def open_patches(
    path: str | Path,
    bands: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    units: str = "auto",
    split: str = "train",
    labels: bool = True,
) -> Patches:
    """Open a folder of patches; they are read one by one when asked for.

    Recognised are the Landslide4Sense layouts (``TrainData/img`` ..., ``images/train`` ...), one split of them
    (``img`` and ``mask``), a flat folder of ``image_N.h5`` (and ``mask_N.h5``), and chips (``images/NAME.tif`` and
    ``masks/NAME.tif``).

    Args:
        path: The folder.
        bands: Wanted of every image, in this order; all if not given.
        names: For chips: bands in file order, where the files do not say.
        units: For chips: as in ``open_scene``.
        split: ``train``, ``validation`` or ``test``, where the folder has several.
        labels: Whether every image must have its mask, with something to learn from.

    Raises:
        InputError: It is none of these, or something is missing in it; the message says what was found.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(path)!r}. Check the path.")
    patches = open_l4s(folder, bands, split=split, labels=labels)
    if patches is None:
        patches = open_chips(folder, bands, names=names, units=units, labels=labels)
    if patches is None:
        raise InputError(
            f"{folder} holds no patches, but {found_in(folder)}. Expected: TrainData/img or images/train with "
            "image_N.h5 (Landslide4Sense), image_N.h5 itself, or images/ and masks/ with .tif or .png of equal names. "
            "A labelled scene is a folder with rgb.tif (or image.tif) and labels.tif."
        )
    if labels:
        check_labels(patches)
    return patches


def found_in(folder: Path) -> str:
    """What a folder holds, in a few words."""
    entries = sorted(folder.iterdir())
    folders = [f"{p.name}/" for p in entries if p.is_dir()]
    kinds = Counter(p.suffix or "without ending" for p in entries if not p.is_dir())
    parts = [*folders[:LISTED], *(["more folders"] if len(folders) > LISTED else [])]
    parts += [f"{n} file{'s'[: n > 1]} {kind}" for kind, n in kinds.most_common(LISTED)]
    return ", ".join(parts) or "nothing at all"
