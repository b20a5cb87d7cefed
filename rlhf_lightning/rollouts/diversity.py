"""Repetition within a reply and diversity across replies: early signs of reward hacking and mode collapse."""

from __future__ import annotations

from collections import Counter
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


OPENING = 3
"""Tokens that make up an opening."""

Tokens = Sequence[int]


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
