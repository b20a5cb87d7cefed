"""Repetition within a reply, an early sign of reward hacking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

REPEATED = 3
"""Tokens in the pieces that count as repetition."""


def repetition(reply: Sequence[int]) -> float:
    """The share of a reply's 3-grams that stood in it before; 0 where it is too short to have two."""
    pieces = list(ngrams(reply, REPEATED))
    return 1.0 - len(set(pieces)) / len(pieces) if pieces else 0.0


def ngrams(reply: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    """All runs of n tokens, in order."""
    return (tuple(reply[start : start + n]) for start in range(len(reply) - n + 1))
