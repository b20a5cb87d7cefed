"""The share of a response that was said before."""

from __future__ import annotations

import pytest

from rlhf_lightning.rollouts.diversity import ngrams, repetition


def test_the_runs_of_a_response_in_order() -> None:
    assert list(ngrams([5, 6, 7, 8], 3)) == [(5, 6, 7), (6, 7, 8)]
    assert list(ngrams([5, 6], 3)) == []


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ([5, 6, 7, 8, 9], 0.0),
        # Four pieces of the same three tokens: three of them stood there before.
        ([5, 5, 5, 5, 5, 5], 0.75),
        # 567, 675, 756, 567: one of four.
        ([5, 6, 7, 5, 6, 7], 0.25),
        # Single tokens may come again.
        ([5, 6, 5, 7, 5, 8], 0.0),
        ([5, 5], 0.0),
        ([], 0.0),
    ],
)
def test_repetition_by_hand(response: list[int], share: float) -> None:
    assert repetition(response) == share
