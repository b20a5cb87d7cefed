"""Process group of a run: ranks and collective operations.

The group is opened here, before Lightning, whose strategies adopt one that is open. In a run of one process everything
in this file does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as group
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed.rendezvous import rendezvous

from rlhf_lightning.ranks import RankInfo

Value = TypeVar("Value")

START_TIMEOUT = timedelta(minutes=15)
"""Timeout for all processes to start."""

COLLECTIVE_TIMEOUT = timedelta(hours=24)
"""Timeout of collective operations: rank 0 may work for hours alone, in an evaluation."""


def join(place: RankInfo, *, on_gpu: bool) -> None:
    """Initialize the process group, unless it is initialized.

    Args:
        place: this process's.
        on_gpu: models are on GPUs; tensors on the CPU are exchanged all the same.
    """
    if group.is_initialized():
        return
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    rank_zero_only.rank = place.rank  # type: ignore[attr-defined]
    group.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=_store(place),
        rank=place.rank,
        world_size=place.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )


def _store(place: RankInfo) -> Store:
    if place.world_size == 1:
        return HashStore()
    address = f"tcp://{place.address}:{place.port}"
    store, _, _ = next(rendezvous(address, place.rank, place.world_size, timeout=START_TIMEOUT))
    assert isinstance(store, Store)
    return store


def leave() -> None:
    """Destroy the process group after a barrier.

    A process that fails does not call this: the operating system closes its connections, which is how the others learn
    of it.
    """
    if group.is_initialized():
        barrier()
        group.destroy_process_group()


def rank() -> int:
    """Rank of this process; 0 without a group."""
    return group.get_rank() if group.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a group."""
    return group.get_world_size() if group.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    all_reduce_sum(torch.zeros(()))  # over the CPU: NCCL's own barrier would ask which GPU is meant


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes (all-reduce)."""
    if world_size() == 1:
        return tensor
    summed = tensor.detach().clone()
    group.all_reduce(summed)
    return summed


def all_reduce_means(figures: Mapping[str, Tensor], weight: int) -> tuple[dict[str, Tensor], int]:
    """Means over all processes, and their total weight. (Lightning's own reduction rounds such a weight down.)

    Args:
        figures: scalars, means over what this process has; the same names on each.
        weight: how many (tokens, pairs) they are means over.
    """
    if world_size() == 1:
        return dict(figures), weight
    stacked = torch.stack([figure.detach().double() for figure in figures.values()])
    sums = all_reduce_sum(torch.cat([stacked * weight, stacked.new_tensor([weight])]))
    means = (sums[:-1] / sums[-1]).float()
    return dict(zip(figures, means, strict=True)), round(float(sums[-1]))


def broadcast_object(value: Value | None) -> Value:
    """The value passed by rank 0; the values of other ranks are ignored."""
    held = [value]
    if world_size() > 1:
        group.broadcast_object_list(held, src=0)
    (received,) = held
    assert received is not None
    return received


def all_gather_object(value: Value) -> list[Value]:
    """The values of all ranks, in rank order; tensors in them should be on the CPU."""
    if world_size() == 1:
        return [value]
    held: list[Value | None] = [None] * world_size()
    group.all_gather_object(held, value)
    return [part for part in held if part is not None]


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of an FSDP shard; any other tensor unchanged. A collective operation."""
    from torch.distributed.tensor import DTensor  # takes most of a second

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
