"""Sample the principles of a critique or a label, as a function of the seed and the item alone."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from rlhf_lightning.settings.constitution import Principle, PrincipleSampling


def applicable(principles: Sequence[Principle], kind: str | None) -> list[Principle]:
    """The principles that apply to a kind of prompt; all of them if the kind is unknown."""
    return [one for one in principles if kind is None or one.applies_to is None or kind in one.applies_to]


def drawn(
    principles: Sequence[Principle], sampling: PrincipleSampling, *, chain: int, step: int, seed: int
) -> list[Principle]:
    """The principles of one step, in the order in which they are applied.

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
