"""What a training holds in memory, in bytes, by what it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Footprint:
    """The tensors of a training.

    Attributes:
        weights: bytes by model, in the order in which the models were named; weights that several models share count
            for the first of them.
        trainable: parameters.
        gradients: bytes.
        optimizer: bytes of the optimizer's state.
        phases: by phase (`generate`, `evaluate`, `update`, `step`), the most bytes beside the weights that it holds at
            once, gradients and optimizer state among them.
    """

    weights: Mapping[str, int]
    trainable: int
    gradients: int
    optimizer: int
    phases: Mapping[str, int]

    @property
    def largest_phase(self) -> str:
        """The phase that decides the peak."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def activations(self) -> int:
        """What the largest phase holds beside weights, gradients and optimizer state."""
        return max(0, self.phases[self.largest_phase] - self.gradients - self.optimizer)

    @property
    def peak(self) -> int:
        """Bytes of tensors at the worst moment."""
        return sum(self.weights.values()) + max(self.phases.values())


def deeper(shallow: Footprint, deep: Footprint, *, depths: tuple[int, int], depth: int) -> Footprint:
    """The footprint of the same training with more blocks, from two that were measured.

    Blocks are alike, so each number grows by as much a block.

    Args:
        shallow: measured with `depths[0]` blocks.
        deep: measured with `depths[1]` blocks.
        depth: the number of blocks that is wanted.
    """

    def line(one: int, other: int) -> int:
        return one + round((other - one) * (depth - depths[0]) / (depths[1] - depths[0]))

    return Footprint(
        weights={name: line(size, deep.weights[name]) for name, size in shallow.weights.items()},
        trainable=line(shallow.trainable, deep.trainable),
        gradients=line(shallow.gradients, deep.gradients),
        optimizer=line(shallow.optimizer, deep.optimizer),
        phases={name: line(size, deep.phases[name]) for name, size in shallow.phases.items()},
    )
