"""Curves: what the start, the end and a stretch of iterations are."""

from __future__ import annotations

import pytest

from rlhf_lightning.evaluation.doctor_record import Curve, figure, override, spans


def curve(*values: float) -> Curve:
    return Curve("m", tuple(range(len(values))), values)


def test_the_end_is_the_median_of_the_last_fifth() -> None:
    assert curve(*range(8), 100.0, 3.0).end == 51.5  # the last two of ten
    assert curve(*[0.0] * 12, 1.0, 2.0, 99.0).end == 2.0  # the last three of fifteen
    assert curve(7.0).end == 7.0


def test_the_running_median_ignores_two_odd_values_in_a_row() -> None:
    assert curve(1, 1, 1, 50, 60, 1, 1).smooth.values == (1, 1, 1, 1, 1, 1, 1)
    assert curve(1, 3).smooth.values == (1, 2)


def test_a_value_is_looked_up_at_the_iteration_or_before_it() -> None:
    sparse = Curve("m", (0, 3, 4), (1.0, 2.0, 3.0))
    assert [sparse.at(iteration) for iteration in (0, 1, 3, 4, 9)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert sparse.where(lambda value: value > 1.5) == [3, 4]
    assert sparse.peak() == (4, 3.0)


def test_stretches_of_iterations() -> None:
    assert spans([3]) == "3"
    assert spans([0, 1, 2, 7, 8, 20]) == "0-2, 7-8, 20"
    # The longest three of five.
    assert spans([0, 2, 3, 5, 7, 8, 9, 11, 12]) == "2-3, 7-9, 11-12 and 2 more"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1230"), (0.000312, "0.000312"), (3.1e-7, "3.1e-07"), (-0.08333, "-0.0833"), (714.2, "714")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_overrides_have_two_digits() -> None:
    assert override("ppo.learning_rate", 0.000316) == "ppo.learning_rate=0.00032"
    assert override("kl.coef", 0.12000001) == "kl.coef=0.12"
