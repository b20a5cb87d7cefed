"""Repetition within a response and diversity across responses: early signs of reward hacking and mode collapse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

REPEATED = 3
"""Tokens in the pieces that count as repetition."""


def repetition(response: Sequence[int]) -> float:
    """The share of a response's 3-grams that stood in it before; 0 where it is too short to have two."""
    pieces = list(ngrams(response, REPEATED))
    return 1.0 - len(set(pieces)) / len(pieces) if pieces else 0.0


def ngrams(response: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    """All runs of n tokens, in order."""
    return (tuple(response[start : start + n]) for start in range(len(response) - n + 1))


OPENING = 3
"""Tokens that make up an opening."""

Tokens = Sequence[int]


def distinct(responses: Sequence[Tokens], n: int) -> float:
    """Different n-grams over all n-grams of all responses (distinct-n, Li et al. 2016, arXiv 1510.03055).

    It falls with the number of responses, so compare it at the same number only. 0 where there are no n-grams.
    """
    pieces = Counter(piece for response in responses for piece in ngrams(response, n))
    return len(pieces) / pieces.total() if pieces else 0.0


def top_opening_share(responses: Sequence[Tokens]) -> float:
    """The share of responses that begin with the most frequent first three tokens; 0 without responses."""
    openings = Counter(tuple(response[:OPENING]) for response in responses)
    return openings.most_common(1)[0][1] / openings.total() if openings else 0.0
