"""The form of responses, counted by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_lightning.evaluation.responses import text_statistics
from rlhf_lightning.rollouts.diversity import distinct, repetition, top_opening_share


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ([1, 2, 3, 1, 2, 3], 0.25),  # 123 231 312 123: one of four stood there before
        ([5, 5, 5, 5, 5], 2 / 3),  # 555 three times
        ([1, 2, 3, 4], 0.0),
        ([1, 2], 0.0),  # too short for a 3-gram
        ([], 0.0),
    ],
)
def test_repetition(response: list[int], expected: float) -> None:
    assert repetition(response) == pytest.approx(expected)


def test_distinct_counts_over_all_responses() -> None:
    responses = [[1, 1], [1, 2], [1, 2]]
    assert distinct(responses, 1) == pytest.approx(2 / 6)
    assert distinct(responses, 2) == pytest.approx(2 / 3)  # 11, 12, 12
    assert distinct([[1]], 2) == 0.0


def test_top_opening_share() -> None:
    assert top_opening_share([[1, 2, 3, 4], [1, 2, 3, 9], [7], [1, 2]]) == 0.5
    assert top_opening_share([]) == 0.0


def test_all_figures_of_two_responses() -> None:
    figures = text_statistics([[1, 2, 3, 1, 2, 3], [4, 5]], [True, False], bootstrap_samples=1000, seed=0)
    assert figures["length"] == 4.0
    assert figures["length_ci"] == [2.0, 6.0]
    assert figures["repetition"] == 0.125
    assert figures["eos_rate"] == 0.5
    assert figures["distinct_1"] == 5 / 8
    assert figures["distinct_2"] == 4 / 6  # 12 23 31 12 23, 45
    assert figures["top_opening_share"] == 0.5


def test_no_responses_have_no_mean() -> None:
    figures = text_statistics([], [], bootstrap_samples=100, seed=0)
    assert isinstance(figures["length"], float)
    assert math.isnan(figures["length"])
