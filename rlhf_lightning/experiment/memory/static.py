"""Static memory of a training: weights, gradients and optimizer state, counted exactly.

Not counted: activations, the rollouts of an iteration, DDP's buckets (a copy of the gradients), and the constants of
4-bit weights.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.algorithms.optimization import OptimizerFactory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StaticMemory:
    """Bytes of one process; under FSDP those of its shards.

    Attributes:
        weights: by model, buffers included; a tensor that several models share counts for the first of them.
        trainable_parameters: number of trained weights.
        gradients: of the trained weights, in their dtype.
        optimizer: state; None where it is not known before the first step.
    """

    weights: Mapping[str, int]
    trainable_parameters: int
    gradients: int
    optimizer: int | None

    @classmethod
    def of(cls, models: Mapping[str, nn.Module], make_optimizer: OptimizerFactory) -> StaticMemory:
        """Count models as they are, and the gradients and optimizer state that training them will add.

        Args:
            models: all that the stage holds, by name.
            make_optimizer: the optimizer takes a step on copies without data.
        """
        weights: dict[str, int] = {}
        seen: dict[int, Tensor] = {}
        for name, model in models.items():
            own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in seen}
            weights[name] = _bytes(own.values())
            seen |= own
        trained = [_local(tensor) for tensor in seen.values() if tensor.requires_grad]
        parameters = sum(tensor.numel() for tensor in trained)
        return cls(weights, parameters, _bytes(trained), _optimizer_bytes(trained, make_optimizer))

    def __str__(self) -> str:
        by_model = ", ".join(f"{name} {in_words(size)}" for name, size in self.weights.items())
        optimizer = "of unknown size" if self.optimizer is None else in_words(self.optimizer)
        return (
            f"weights {in_words(sum(self.weights.values()))} ({by_model}), gradients {in_words(self.gradients)}, "
            f"optimizer {optimizer}"
        )


def in_words(size: int) -> str:
    """A number of bytes as text with a unit."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def _optimizer_bytes(trained: Iterable[Tensor], make_optimizer: OptimizerFactory) -> int | None:
    # The state of one tensor depends on its shape and dtype, so one of each kind takes the step for all of them.
    kinds = Counter((tensor.shape, tensor.dtype) for tensor in trained)
    copies = {kind: nn.Parameter(torch.empty(kind[0], dtype=kind[1], device="meta")) for kind in kinds}
    for copy in copies.values():
        copy.grad = torch.empty_like(copy)
    optimizer = make_optimizer(copies.values(), lr=1e-3)
    try:
        optimizer.step()
    except RuntimeError as error:  # raised by a meta tensor whose data is asked for, as Adafactor does
        logger.info("Memory: the optimizer's state is not known before its first step (%s).", error)
        return None
    return sum(
        number * _bytes(value for value in optimizer.state[copies[kind]].values() if isinstance(value, Tensor))
        for kind, number in kinds.items()
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_local(tensor).nbytes for tensor in tensors)


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor  # takes most of a second

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
