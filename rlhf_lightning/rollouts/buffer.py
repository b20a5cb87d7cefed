"""The rollout buffer: filled once an iteration, read in reshuffled minibatches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset

from rlhf_lightning.batches import TensorRecord
from rlhf_lightning.distributed import rank, world_size
from rlhf_lightning.rollouts.rollout import Rollout


@dataclass(frozen=True, eq=False)
class Minibatch(TensorRecord):
    """A micro-batch of rollouts.

    Attributes:
        rollout: what goes through the model together.
        step_weight: the reply tokens of the whole optimizer step that it belongs to. The step's loss is the sum of
            token losses over its micro-batches divided by this, whatever their number and size.
    """

    rollout: Rollout
    step_weight: int

    def to(self, device: torch.device | str) -> Minibatch:
        return Minibatch(self.rollout.to(device), self.step_weight)


class RolloutBuffer(IterableDataset[Minibatch]):
    """Iterates over the rollouts it holds: `epochs` passes, each in an order of its own, minibatch by minibatch.

    Every process holds all rollouts of an iteration, and gets its share of each minibatch's micro-batches.

    Its length is known before it is filled, since Lightning asks for it first: an iterable without a length is
    pre-fetched *before* the callback that fills it.

    Args:
        batch_size: rollouts an iteration.
        epochs: passes over them.
        minibatches: optimizer steps a pass.
        micro_batch_size: rollouts a forward pass of a process, at most: as many as its share of a minibatch.
        seed: decides the orders, with the iteration.
    """

    def __init__(self, *, batch_size: int, epochs: int, minibatches: int, micro_batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.epochs = epochs
        self.minibatch_size = batch_size // minibatches
        self.micro_batch_size = min(micro_batch_size, self.minibatch_size // world_size())
        self.seed = seed
        self._rollout: Rollout | None = None
        self._iteration = -1

    def fill(self, rollout: Rollout, iteration: int) -> None:
        """Put the next iteration's rollouts in the place of the last one's."""
        assert len(rollout) == self.batch_size
        self._rollout = rollout
        self._iteration = iteration

    @property
    def micro_batches_per_step(self) -> int:
        """Lightning's `accumulate_grad_batches` for one optimizer step."""
        return self.minibatch_size // self.micro_batch_size // world_size()

    def __len__(self) -> int:
        return self.epochs * (self.batch_size // self.minibatch_size) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[Minibatch]:
        assert self._rollout is not None, "the rollout buffer is read before the callback filled it"
        rollout = self._rollout
        for epoch in range(self.epochs):
            order = list(range(self.batch_size))
            random.Random(f"{self.seed}:{self._iteration}:{epoch}").shuffle(order)
            for start in range(0, self.batch_size, self.minibatch_size):
                yield from self._micro_batches(rollout, torch.tensor(order[start : start + self.minibatch_size]))

    def _micro_batches(self, rollout: Rollout, rows: torch.Tensor) -> Iterator[Minibatch]:
        rows = rows.to(rollout.reply_mask.device)
        step_weight = int(rollout.reply_mask[rows].sum())
        for part in rows.split(self.micro_batch_size)[rank() :: world_size()]:
            yield Minibatch(rollout.select(part), step_weight)
