"""Which principles a critique or a label goes by: a function of the seed and of what it is for, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from rlhf_lightning.settings.constitution import Principle, PrincipleSampling


def applicable(principles: Sequence[Principle], kind: str | None) -> list[Principle]:
    """The principles that concern a kind of prompt; of a prompt whose kind nobody knows, all."""
    return [one for one in principles if kind is None or one.applies_to is None or kind in one.applies_to]


def drawn(
    principles: Sequence[Principle], sampling: PrincipleSampling, *, chain: int, step: int, seed: int
) -> list[Principle]:
    """The principles of one step, in the order in which they are gone by.

    Args:
        principles: at least one.
        chain: the number of the chain, or of the pair.
        step: of the chain.
    """
    turn = chain if sampling.per == "chain" else chain + step
    match sampling.mode:
        case "all":
            return list(principles)
        case "round_robin":
            return [principles[turn % len(principles)]]
        case "uniform":
            weights = [1.0] * len(principles)
        case "weighted":
            weights = [principle.weight for principle in principles]
    rng = Random(f"{seed}:{chain}" if sampling.per == "chain" else f"{seed}:{chain}:{step}")
    return rng.choices(list(principles), weights)
