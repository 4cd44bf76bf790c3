"""Networks on one or more devices, and batches of patches that they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l4s_geo.errors import InputError
from l4s_geo.normalize import Normalizer
from l4s_geo.tiling import pad

#: Threads that feed each GPU, so that it computes while the next batch is copied.
FEEDERS = 2


class Batch(NamedTuple):
    """Patches of one row, and the part of its strip that they lie in, which begins at the first one's column."""

    row: int
    columns: tuple[int, ...]
    image: NDArray[np.float32]
    valid: NDArray[np.bool_]


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


def choose_devices(names: str) -> list[torch.device]:
    """Devices joined by commas, such as ``cuda:0,cuda:1``; the first one's kind goes for all.

    Raises:
        InputError: One is not there, is named twice, or they are of different kinds.
    """
    devices = [choose_device(name) for name in names.split(",")]
    if len({str(d) for d in devices}) < len(devices) or len({d.type for d in devices}) > 1:
        raise InputError(f"--device {names} must be different devices of one kind, such as cuda:0,cuda:1.")
    return devices


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` takes bfloat16 where the processor has it in hardware, else float32."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16", False) else torch.float32


@dataclass(frozen=True)
class Replica:
    """Networks on one device, for one thread at a time."""

    networks: tuple[nn.Module, ...]
    device: torch.device
    stream: torch.cuda.Stream | None = None


class Ensemble:
    """Networks on one or more devices that answer a batch of patches with one probability per network.

    Args:
        networks: Each maps (N, C, h, w) to landslide logits (N, 1, h, w).
        device: Where they run; on each of several devices runs a copy.
        dtype: Of the forward pass (autocast).
        tta: Average over the eight flips and quarter turns of the patch (the dihedral group D4).
        workers: Threads on the CPU, one core each; as many as torch would use if not given.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        device: torch.device | Sequence[torch.device],
        dtype: torch.dtype,
        *,
        tta: bool = False,
        workers: int | None = None,
    ) -> None:
        devices = [device] if isinstance(device, torch.device) else list(device)
        self.device, self.dtype, self.tta = devices[0], dtype, tta
        copies = [networks, *(deepcopy(list(networks)) for _ in devices[1:])]
        placed = [tuple(_placed(n, d) for n in own) for own, d in zip(copies, devices, strict=True)]
        self.networks = placed[0]
        self.replicas = [r for own, d in zip(placed, devices, strict=True) for r in _replicas(own, d, workers)]
        self._free: SimpleQueue[Replica] = SimpleQueue()
        for replica in self.replicas:
            self._free.put(replica)

    def __len__(self) -> int:
        """Channels of an answer."""
        return len(self.networks)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Answers (N, K, h, w) float32 to standardized patches (N, C, h, w) float32."""
        found: NDArray[np.float32] = self.answer(torch.from_numpy(images).to(self.device), self.networks).cpu().numpy()
        return found

    def _fitting(self, x: Tensor, networks: Sequence[nn.Module]) -> Tensor:
        """Answers in as many parts as the device's memory asks for."""
        try:
            return self.answer(x, networks)
        except torch.OutOfMemoryError:
            if len(x) == 1:
                raise InputError("The device has not enough memory for one patch. Map with --device cpu.") from None
        return torch.cat([self._fitting(half, networks) for half in x.tensor_split(2)])

    def answer(self, x: Tensor, networks: Sequence[nn.Module]) -> Tensor:
        """Probabilities (N, networks, h, w) float32 of standardized patches (N, C, h, w) on the networks' device."""
        turns = [(k, flip) for flip in (False, True) for k in range(4)] if self.tta else [(0, False)]
        with self.autocast(x.device):
            views = [_forward(networks, _turn(x, k, flip)) for k, flip in turns]
        return torch.stack([_turn_back(v, k, flip) for v, (k, flip) in zip(views, turns, strict=True)]).mean(0)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The number format of the forward pass."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)

    def batch(self, batch: Batch, patch: int, normalizer: Normalizer | None) -> Tensor:
        """Answers (N, K, patch, patch) to a batch; any thread may call."""
        return self.anywhere(lambda device: cut_patches(batch, patch, normalizer, device))

    @torch.inference_mode()
    def anywhere(self, patches_on: Callable[[torch.device], Tensor]) -> Tensor:
        """Answers to patches that are made on whichever device is free; any thread may call."""
        replica = self._free.get()
        try:
            with torch.cuda.stream(replica.stream) if replica.stream else nullcontext():
                found = self._fitting(patches_on(replica.device), replica.networks).to(self.device)
            if replica.stream:
                replica.stream.synchronize()
                found.record_stream(torch.cuda.current_stream(self.device))  # used there, allocated here
            return found
        finally:
            self._free.put(replica)


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device).to(memory_format=torch.channels_last).eval()


def _replicas(networks: tuple[nn.Module, ...], device: torch.device, workers: int | None) -> list[Replica]:
    """One per thread: networks that do not learn may be shared."""
    if device.type == "cuda":
        streams = [torch.cuda.Stream(device) for _ in range(FEEDERS)]  # type: ignore[no-untyped-call]
        return [Replica(networks, device, stream) for stream in streams]
    return [Replica(networks, device)] * (workers or torch.get_num_threads())


def _forward(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    return torch.cat([n(x) for n in networks], dim=1).float().sigmoid()


def cut_patches(batch: Batch, patch: int, normalizer: Normalizer | None, device: torch.device) -> Tensor:
    """Standardized patches (N, C, patch, patch) of a batch on the device, where they are standardized and cut."""
    padded = pad(batch.image, patch), pad(batch.valid, patch)
    image, valid = (torch.from_numpy(np.ascontiguousarray(a)) for a in padded)
    if device.type == "cuda":
        image, valid = (t.pin_memory().to(device, non_blocking=True) for t in (image, valid))
        image = image if normalizer is None else standardize(image, valid, normalizer)
    elif normalizer is not None:
        image = torch.from_numpy(normalizer(*padded))  # numpy's asinh is ten times as fast as torch's
    first = batch.columns[0]
    patches = [image[:, :patch, c - first : c - first + patch] for c in batch.columns]
    return torch.stack(patches).contiguous(memory_format=torch.channels_last)


def standardize(image: Tensor, valid: Tensor, normalizer: Normalizer) -> Tensor:
    """What ``normalizer`` does to an image (C, h, w), on its device."""
    center, scale = (torch.tensor(v, device=image.device)[:, None, None] for v in (normalizer.center, normalizer.scale))
    z = (image - center) * (1 / scale)
    if normalizer.compression == "asinh":
        z = torch.asinh(z)
    return z * valid


def _turn(x: Tensor, k: int, flip: bool) -> Tensor:
    y = torch.rot90(x, k, (-2, -1))
    return (y.flip(-1) if flip else y).contiguous(memory_format=torch.channels_last)


def _turn_back(x: Tensor, k: int, flip: bool) -> Tensor:
    return torch.rot90(x.flip(-1) if flip else x, -k, (-2, -1))


@contextmanager
def one_core_each(ensemble: Ensemble) -> Iterator[None]:
    """Keep torch from using all cores in every thread while several work."""
    before = torch.get_num_threads()
    if ensemble.device.type == "cpu" and len(ensemble.replicas) > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
