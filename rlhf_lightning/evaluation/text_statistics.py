"""What replies look like, whatever they say: length, repetition, variety. Reward hacking shows here first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlhf_lightning.evaluation.statistics import bootstrap_mean
from rlhf_lightning.rollouts.repetition import ngrams, repetition

OPENING = 3
"""Tokens that make up an opening."""

Tokens = Sequence[int]


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


def distinct(replies: Sequence[Tokens], n: int) -> float:
    """Different n-grams over all n-grams of all replies (distinct-n, Li et al. 2016, arXiv 1510.03055).

    It falls with the number of replies, so compare it at the same number only. 0 where there are no n-grams.
    """
    pieces = Counter(piece for reply in replies for piece in ngrams(reply, n))
    return len(pieces) / pieces.total() if pieces else 0.0


def top_opening_share(replies: Sequence[Tokens]) -> float:
    """The share of replies that begin with the most frequent first three tokens; 0 without replies."""
    openings = Counter(tuple(reply[:OPENING]) for reply in replies)
    return openings.most_common(1)[0][1] / openings.total() if openings else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
