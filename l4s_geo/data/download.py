"""Fetching the official Landslide4Sense data set from Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l4s_geo.data.l4s import COUNTS, find_items
from l4s_geo.errors import InputError, OutputError

#: The data set, as its providers publish it (MIT licence).
REPOSITORY = "ibm-nasa-geospatial/Landslide4sense"

#: Seconds to wait for an answer before saying that there is no connection.
TIMEOUT = 10.0

BY_HAND = (
    f"Check the connection and run the same command again: it goes on where it stopped. By hand: get the data set "
    f"{REPOSITORY} of Hugging Face with a browser or git, or the original download of the competition, and use the "
    "folder that holds images and annotations (or TrainData) in place of this one."
)


def download_l4s(out: Path, *, quiet: bool = False) -> dict[str, dict[str, int]]:
    """Download the data set, or what is still missing of it, and check that it is whole.

    Files are resumed, and compared with the checksums of the hub, by huggingface_hub. What was loaded
    stays when it fails.

    Args:
        out: Folder; made if needed.
        quiet: Whether to show no progress.

    Returns:
        Images and masks by split.

    Raises:
        OutputError: The hub cannot be reached, or the folder cannot be written.
        InputError: Files are missing or damaged.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file. Give the name of a folder.")
    _refuse_damaged(_fetch(out, quiet), out)
    return check_complete(out)


def _fetch(out: Path, quiet: bool) -> Any:
    """Download, and compare with the hub's checksums.

    Returns:
        The ``FolderVerification`` of huggingface_hub.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if quiet:
        disable_progress_bars()
    api = HfApi()
    try:
        # asked first: without a connection snapshot_download would take a half-loaded folder for the whole
        revision = api.dataset_info(REPOSITORY, timeout=TIMEOUT).sha
        snapshot_download(REPOSITORY, repo_type="dataset", revision=revision, local_dir=out, etag_timeout=TIMEOUT)
        return api.verify_repo_checksums(REPOSITORY, repo_type="dataset", revision=revision, local_dir=out)
    except Exception as e:  # the hub's client lets errors of whatever HTTP library it uses through
        why = next(iter(str(e).splitlines()), type(e).__name__)
        raise OutputError(f"{REPOSITORY} cannot be downloaded to {out}: {why.rstrip('.')}. {BY_HAND}") from e


def _refuse_damaged(found: Any, out: Path) -> None:
    damaged = [m["path"] for m in found.mismatches]
    if damaged:
        raise InputError(
            f"{out}: {len(damaged)} files differ from their checksum, for instance {damaged[0]}. Delete them and run "
            "the same command again."
        )
    if found.missing_paths:
        raise InputError(
            f"{out}: {len(found.missing_paths)} files are missing, for instance {found.missing_paths[0]}. Run the same "
            "command again."
        )


def check_complete(folder: Path) -> dict[str, dict[str, int]]:
    """Count the patches of a data set.

    Returns:
        ``images`` and ``masks`` by split.

    Raises:
        InputError: There are not 3799, 245 and 800 images, each with its mask.
    """
    found = {split: find_items(folder, split, labels=True) or [] for split in COUNTS}
    wrong = [
        f"{len(items)} of {COUNTS[split]} {split}" for split, items in found.items() if len(items) != COUNTS[split]
    ]
    if wrong:
        raise InputError(f"{folder} is not the whole data set: it has {', '.join(wrong)} patches. {BY_HAND}")
    return {s: {"images": len(i), "masks": sum(x.truth is not None for x in i)} for s, i in found.items()}
