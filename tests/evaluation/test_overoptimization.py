"""The fit of reward against distance, on curves whose coefficients are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_lightning.evaluation.curves import HistoryRow, Point, points
from rlhf_lightning.evaluation.overoptimization import RewardFit, fit_reward, reward_path


def test_the_fit_finds_the_coefficients_of_an_exact_curve() -> None:
    truth = RewardFit(start=-0.5, a=1.1, b=1.2)
    distance = np.asarray([0.0, 0.3, 0.8, 1.5, 2.0, 3.0])
    fit = fit_reward(distance, truth.at(distance))
    assert fit is not None
    assert (fit.start, fit.a, fit.b) == pytest.approx((-0.5, 1.1, 1.2))


def test_the_curve_by_hand() -> None:
    # At d = e: 1 + e (2 - 0.5 * 1); at d = 0 the product with the logarithm vanishes.
    values = RewardFit(start=1.0, a=2.0, b=0.5).at(np.asarray([0.0, 1.0, math.e]))
    assert values == pytest.approx([1.0, 3.0, 1.0 + 1.5 * math.e])


def test_the_peak_is_where_the_slope_vanishes() -> None:
    fit = RewardFit(start=0.0, a=1.1, b=1.2)
    assert fit.peak == pytest.approx(math.exp(1.1 / 1.2 - 1.0))
    below, peak, above = fit.at(np.asarray([fit.peak - 0.01, fit.peak, fit.peak + 0.01]))
    assert peak > below
    assert peak > above


@pytest.mark.parametrize("b", [0.0, -0.3, 1e-6])
def test_a_curve_that_keeps_rising_has_no_peak(b: float) -> None:
    assert RewardFit(start=0.0, a=1.0, b=b).peak is None


def test_too_few_or_equal_points_are_not_fitted() -> None:
    assert fit_reward(np.arange(4.0), np.arange(4.0)) is None
    assert fit_reward(np.ones(9), np.arange(9.0)) is None


def _row(step: int, name: str, value: float) -> HistoryRow:
    return HistoryRow("ppo", step, 10 * step, f"objective/{name}", value)


def test_the_path_keeps_iterations_where_everything_is_finite() -> None:
    history = [
        *(_row(step, "kl", kl) for step, kl in ((1, -0.01), (2, 4.0), (3, 9.0), (4, math.inf))),
        *(_row(step, "score", step / 10) for step in (1, 2, 3, 4)),
        *(_row(step, "gold", -step / 10) for step in (1, 2, 4)),
    ]
    path = reward_path(history)
    assert path is not None
    assert path.distance.tolist() == [0.0, 2.0]
    assert path.proxy.tolist() == [0.1, 0.2]
    assert path.gold is not None
    assert path.gold.tolist() == [-0.1, -0.2]


def test_without_gold_the_path_has_the_proxy_only() -> None:
    path = reward_path([_row(1, "kl", 1.0), _row(1, "score", 2.0)])
    assert path is not None
    assert path.gold is None
    assert reward_path([_row(1, "kl", 1.0)]) is None
    assert reward_path([_row(1, "kl", 1.0), _row(2, "score", 2.0)]) is None


def test_a_step_logged_twice_counts_once() -> None:
    history = [_row(2, "kl", 1.0), _row(1, "kl", 0.5), _row(2, "kl", 7.0)]
    assert points(history, "ppo", "objective/kl") == [Point(1, 10, 0.5), Point(2, 20, 7.0)]


def test_a_fit_explains_all_of_its_own_curve_and_nothing_of_a_constant() -> None:
    fit = RewardFit(start=-0.5, a=1.1, b=1.2)
    distance = np.asarray([0.1, 0.5, 1.0, 2.0])
    assert fit.explained(distance, fit.at(distance)) == pytest.approx(1.0)
    assert fit.explained(distance, np.ones(4)) == 0.0
    # Rewards at +-1 around a fit that says 0 everywhere: all of the variance is left over.
    assert RewardFit(start=0.0, a=0.0, b=0.0).explained(distance, np.asarray([1.0, -1.0, 1.0, -1.0])) == 0.0
