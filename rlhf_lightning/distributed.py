"""The processes of a run as one group: who is who, and what they tell each other.

The group is opened here, before Lightning, whose strategies adopt one that is open. Everything in this file is a no-op
in a run of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as group
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from rlhf_lightning.ranks import Place

Value = TypeVar("Value")

PATIENCE = timedelta(hours=24)
"""How long a process waits for the others: the first one may work for hours alone, in an evaluation."""


@contextmanager
def joined(place: Place, *, on_gpu: bool) -> Iterator[None]:
    """Joins the group for the length of a `with` block.

    The block is left together. Where an exception leaves it, nobody is waited for: the operating system closes the
    connections, and that is how the others learn of it.

    Args:
        place: this process's.
        on_gpu: models are on GPUs; tensors on the CPU are exchanged all the same.
    """
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    rank_zero_only.rank = place.rank
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if place.world_size == 1:
        group.init_process_group(backend, store=group.HashStore(), rank=0, world_size=1, timeout=PATIENCE)
    else:
        meeting = f"tcp://{place.address}:{place.port}"
        group.init_process_group(
            backend, init_method=meeting, rank=place.rank, world_size=place.world_size, timeout=PATIENCE
        )
    yield
    barrier()
    group.destroy_process_group()


def rank() -> int:
    """This process's number; 0 in a run of one."""
    return group.get_rank() if group.is_initialized() else 0


def world_size() -> int:
    """The number of processes; 1 without a group."""
    return group.get_world_size() if group.is_initialized() else 1


def barrier() -> None:
    """Waits until all processes are here."""
    # Over the CPU in any case: a barrier of NCCL would ask which GPU is meant.
    total(torch.zeros(()))


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world_size() == 1:
        return tensor
    summed = tensor.detach().clone()
    group.all_reduce(summed)
    return summed


def weighted_means(figures: Mapping[str, Tensor], weight: Tensor | int) -> dict[str, Tensor]:
    """Means over all processes of scalars that are means on each.

    Args:
        figures: the same names on each process.
        weight: what this process's means were taken over (its tokens, its pairs).
    """
    if world_size() == 1:
        return dict(figures)
    stacked = torch.stack([figure.detach().double() for figure in figures.values()])
    weights = torch.as_tensor(weight, dtype=stacked.dtype, device=stacked.device).reshape(1)
    sums = total(torch.cat([stacked * weights, weights]))
    return dict(zip(figures, (sums[:-1] / sums[-1]).float(), strict=True))


def from_first(value: Value | None) -> Value:
    """What the first process holds; whatever the others pass."""
    if world_size() == 1:
        assert value is not None
        return value
    held = [value]
    group.broadcast_object_list(held, src=0)
    (received,) = held
    assert received is not None
    return received


def gathered(value: Value) -> list[Value]:
    """What each process holds, in the order of ranks; tensors in it should be on the CPU."""
    if world_size() == 1:
        return [value]
    held: list[Value | None] = [None] * world_size()
    group.all_gather_object(held, value)
    return [part for part in held if part is not None]
