"""Rankings of K replies become pairs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, pairwise
from typing import Literal

from rlhf_lightning.records import Preference, Ranking

Pairing = Literal["all", "adjacent", "best_versus_rest"]


def ranking_to_preferences(ranking: Ranking, pairing: Pairing) -> list[Preference]:
    """The pairs that a ranking implies. Replies of equal rank, and equal replies, never make a pair.

    Replies are grouped into levels of equal rank, the best level first. Which pairs of levels meet is the pairing's
    choice; of two levels that meet, every reply of the better one is preferred to every reply of the worse one.

    Args:
        ranking: K replies and their ranks, the lower the better.
        pairing: `all`: every two levels meet, K(K-1)/2 pairs without ties (Ouyang et al. 2022, section 3.5).
            `adjacent`: neighbouring levels meet, K-1 pairs without ties.
            `best_versus_rest`: the best level meets all others, K-1 pairs without ties.

    Returns:
        The pairs without a margin, better levels first; none where all replies tie.
    """
    by_rank: dict[int, list[str]] = {}
    for reply, rank in zip(ranking.replies, ranking.ranks, strict=True):
        by_rank.setdefault(rank, []).append(reply)
    levels = [by_rank[rank] for rank in sorted(by_rank)]
    return [
        Preference(ranking.prompt, better, worse)
        for better_level, worse_level in _meeting(levels, pairing)
        for better in better_level
        for worse in worse_level
        if better != worse
    ]


def _meeting(levels: list[list[str]], pairing: Pairing) -> Iterable[tuple[list[str], list[str]]]:
    match pairing:
        case "all":
            return combinations(levels, 2)
        case "adjacent":
            return pairwise(levels)
        case "best_versus_rest":
            return [(levels[0], level) for level in levels[1:]]
