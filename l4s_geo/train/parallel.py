"""One training by several processes, which torchrun starts: each takes its part of every batch.

The gradients are averaged by hand rather than by ``DistributedDataParallel``: stages change which parameters learn, and
networks have hooks and several outputs, none of which a plain exchange after the backward pass has to know of.

Without torchrun there is one process, the first, and nothing here does anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from l4s_geo.errors import InputError

T = TypeVar("T")

#: Numbers the trainings of a process: torchrun keeps what earlier ones told each other.
_groups = count()

#: How long processes wait for each other: for all of the first one's validation. torchrun ends those that wait in vain.
PATIENCE = timedelta(days=1)

#: Seconds that the process that failed first has to say so before the others end by themselves.
LAST_WORDS = 10.0


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the other processes of torchrun inside the ``with`` block; without torchrun, or inside another, do nothing.

    They exchange by nccl between GPUs, where each process takes the GPU of its number, and by gloo between CPUs. Where
    several fail, only the first raises its error; the others end.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        InputError: There are not as many GPUs as processes, or ``device`` is a certain one.
    """
    if not dist.is_available() or dist.is_initialized() or not dist.is_torchelastic_launched():
        yield
        return
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"training {next(_groups)}", store)  # type: ignore[attr-defined]
    try:
        backend = "cpu:gloo,cuda:nccl" if _take_gpu(device) else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
        yield
        dist.destroy_process_group()
    except (Exception, KeyboardInterrupt):
        if store.add("failed", 1) > 1:
            time.sleep(LAST_WORDS)  # torchrun ends this process as soon as the one that failed first has ended
            raise SystemExit(1) from None
        raise


def _take_gpu(device: str) -> bool:
    """Whether the processes compute on GPUs; if so, this one from now on means its own by ``cuda``."""
    if device == "cpu" or not torch.cuda.is_available():
        return False
    if ":" in device:
        raise InputError(f"--device {device} is one GPU, but every process needs its own. Say --device cuda.")
    needed, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if needed > there:
        raise InputError(f"{needed} processes need as many GPUs; there are {there}. Lower torchrun's --nproc-per-node.")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return True


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that validates, shows progress and writes files."""
    return rank() == 0


def by_first(work: Callable[[], T]) -> T:
    """What ``work`` returns in the first process, which alone does it while the others wait."""
    found = [work() if is_first() else None]
    if world() > 1:
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    return cast(T, found[0])


def prepare(net: nn.Module) -> nn.Module:
    """Give a network, on its device, the weights that it has in the first process.

    On GPUs its batch norms take their statistics from the patches of all processes (``SyncBatchNorm``), so that N
    processes are one with the whole batch. torch has that for GPUs only. On CPUs each process normalizes by its own
    patches, as one process does with a batch in N parts.
    """
    if world() == 1:
        return net
    if next(net.parameters()).device.type == "cuda":
        # timm's function, for torch's own drops the activations inside of timm's batch norms
        net = convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    for value in net.state_dict().values():
        dist.broadcast(value, src=0)
    return net


def synchronize(net: nn.Module, loss: torch.Tensor) -> None:
    """Average over the processes, in place: gradients, running statistics of batch norms, and the loss.

    Every process then takes the same optimizer step. Means of the running variances leave out how far the means of the
    processes are apart, which is little where patches are drawn at random.
    """
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    statistics = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    average([loss, *gradients, *statistics])


@torch.no_grad()
def average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors on one device by their means over the processes, in one exchange."""
    if world() == 1:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    means = torch.split(flat / world(), [t.numel() for t in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view_as(tensor))
