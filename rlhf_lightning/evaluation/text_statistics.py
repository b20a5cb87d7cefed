"""Surface statistics of replies: length, repetition, variety. Reward hacking shows here first."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.evaluation.statistics import bootstrap_mean
from rlhf_lightning.rollouts.repetition import repetition
from rlhf_lightning.rollouts.variety import Tokens, distinct, top_opening_share


def text_statistics(
    replies: Sequence[Tokens], finished: Sequence[bool], bootstrap_samples: int, seed: int
) -> dict[str, float | list[float]]:
    """Figures on the form of `replies`.

    Args:
        replies: token ids of each reply, without prompt, padding and end-of-sequence token.
        finished: whether each reply was ended by the policy itself.

    Returns:
        `length` (tokens a reply, with `length_ci`), `repetition`, `distinct_1`, `distinct_2`, `top_opening_share`,
        `eos_rate`.
    """
    length = bootstrap_mean([len(reply) for reply in replies], bootstrap_samples, seed)
    return {
        "length": length.mean,
        "length_ci": length.interval,
        "repetition": _mean([repetition(reply) for reply in replies]),
        "distinct_1": distinct(replies, 1),
        "distinct_2": distinct(replies, 2),
        "top_opening_share": top_opening_share(replies),
        "eos_rate": _mean([float(ended) for ended in finished]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
