"""Rankings become pairs; every expected list is written out by hand."""

from __future__ import annotations

import pytest

from rlhf_lightning.data.comparisons import Pairing, ranking_to_preferences
from rlhf_lightning.records import Prompt, Ranking

PROMPT = Prompt("hello")


def pairs(responses: str, ranks: tuple[int, ...], pairing: Pairing) -> list[str]:
    preferences = ranking_to_preferences(Ranking(PROMPT, tuple(responses), ranks), pairing)
    assert all(each.prompt == PROMPT and each.margin is None for each in preferences)
    return [each.chosen + each.rejected for each in preferences]


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [
        ("all", ["ba", "bd", "bc", "ad", "ac", "dc"]),
        ("adjacent", ["ba", "ad", "dc"]),
        ("best_versus_rest", ["ba", "bd", "bc"]),
    ],
)
def test_without_ties(pairing: Pairing, expected: list[str]) -> None:
    # From best to worst: b, a, d, c. Ranks need not be consecutive.
    assert pairs("abcd", (2, 1, 9, 4), pairing) == expected


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [
        # Levels: {a, c}, {b}, {d, e}. No pair within a level.
        ("all", ["ab", "cb", "ad", "ae", "cd", "ce", "bd", "be"]),
        # {a, c} meets {b}, and {b} meets {d, e}: each response of one level with each of the next.
        ("adjacent", ["ab", "cb", "bd", "be"]),
        # Both of the best against all others.
        ("best_versus_rest", ["ab", "cb", "ad", "ae", "cd", "ce"]),
    ],
)
def test_ties_make_no_pair(pairing: Pairing, expected: list[str]) -> None:
    assert pairs("abcde", (1, 2, 1, 3, 3), pairing) == expected


@pytest.mark.parametrize("pairing", ["all", "adjacent", "best_versus_rest"])
def test_nothing_to_learn_from_a_complete_tie_or_from_equal_responses(pairing: Pairing) -> None:
    assert pairs("abc", (1, 1, 1), pairing) == []
    assert pairs("aa", (1, 2), pairing) == []
