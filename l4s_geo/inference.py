"""An ensemble over a scene: strips in, stitched rows of probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from l4s_geo.errors import InputError
from l4s_geo.stitch import stitch
from l4s_geo.tiling import Tiling, pad

#: Reads ``rows`` full-width rows from ``row`` on: standardized image (C, rows, width), valid (rows, width).
ReadRows = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.bool_]]]


class Patch(NamedTuple):
    """A standardized patch (C, patch, patch) and the scene pixel of its upper left corner."""

    row: int
    column: int
    image: NDArray[np.float32]


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Raises:
        InputError: The device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"Device {name!r} cannot be used here: {str(e).splitlines()[0]}. Try --device cpu.") from e
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` takes bfloat16 where the processor has it in hardware, else float32."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16", False) else torch.float32


class Ensemble:
    """Networks on one device that answer a batch of patches with one probability per network.

    Args:
        networks: Each maps (N, C, h, w) to landslide logits (N, 1, h, w).
        device: Where they run.
        dtype: Of the forward pass (autocast).
        tta: Average over the eight flips and quarter turns of the patch (the dihedral group D4).
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        device: torch.device,
        dtype: torch.dtype,
        *,
        tta: bool = False,
    ) -> None:
        self.networks = [n.to(device).to(memory_format=torch.channels_last).eval() for n in networks]
        self.device = device
        self.dtype = dtype
        self.tta = tta

    def __len__(self) -> int:
        return len(self.networks)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (N, networks, h, w) float32 of standardized patches (N, C, h, w) float32."""
        x = torch.from_numpy(images).to(self.device).contiguous(memory_format=torch.channels_last)
        turns = [(k, flip) for flip in (False, True) for k in range(4)] if self.tta else [(0, False)]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            views = [self._forward(_turn(x, k, flip)) for k, flip in turns]
        p = torch.stack([_turn_back(v, k, flip) for v, (k, flip) in zip(views, turns, strict=True)]).mean(0)
        found: NDArray[np.float32] = p.cpu().numpy()
        return found

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([n(x) for n in self.networks], dim=1).float().sigmoid()


def _turn(x: torch.Tensor, k: int, flip: bool) -> torch.Tensor:
    y = torch.rot90(x, k, (-2, -1))
    return (y.flip(-1) if flip else y).contiguous(memory_format=torch.channels_last)


def _turn_back(x: torch.Tensor, k: int, flip: bool) -> torch.Tensor:
    return torch.rot90(x.flip(-1) if flip else x, -k, (-2, -1))


def cut_patches(read: ReadRows, tiling: Tiling) -> Iterator[Patch]:
    """Patches of a scene that hold at least one valid pixel, row by row; every scene row is read once."""
    held = 0  # scene row of the first row in the buffer
    image: NDArray[np.float32] | None = None
    valid: NDArray[np.bool_] | None = None
    for row, rows in tiling.strips():
        if image is None or valid is None:
            image, valid = read(row, rows)
        else:
            keep = held + image.shape[1] - row
            fresh, seen = read(row + keep, rows - keep)
            image = np.concatenate([image[:, -keep:] if keep else image[:, :0], fresh], axis=1)
            valid = np.concatenate([valid[-keep:] if keep else valid[:0], seen], axis=0)
        held = row
        columns: NDArray[np.bool_] = np.any(valid, axis=0)
        padded = pad(image, tiling.patch)
        for column in tiling.columns():
            if columns[column : column + tiling.patch].any():
                yield Patch(row, column, padded[:, : tiling.patch, column : column + tiling.patch])


def batched(patches: Iterable[Patch], size: int) -> Iterator[list[Patch]]:
    """Patches in lists of ``size``, the last one shorter."""
    iterator = iter(patches)
    while batch := list(islice(iterator, size)):
        yield batch


def predict(
    read: ReadRows,
    tiling: Tiling,
    ensemble: Ensemble,
    *,
    batch_size: int,
    on_batch: Callable[[Patch], None] = lambda _: None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Map a scene.

    Args:
        read: Gives standardized rows.
        tiling: Size of the scene, of the patches and of their overlap.
        ensemble: The networks.
        batch_size: Patches per forward pass.
        on_batch: Called with the last patch of every batch, for progress.

    Yields:
        ``(first row, probabilities (networks, rows, width) float32)`` from top to bottom without gaps; NaN where no
        patch saw anything. Invalid pixels inside a patch do have (meaningless) values: mask them with the scene's
        valid mask.
    """

    def answers() -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        for batch in batched(cut_patches(read, tiling), batch_size):
            probabilities = ensemble(np.stack([p.image for p in batch]))
            for patch, p in zip(batch, probabilities, strict=True):
                yield patch.row, patch.column, p
            on_batch(batch[-1])

    return stitch(answers(), tiling, len(ensemble))
