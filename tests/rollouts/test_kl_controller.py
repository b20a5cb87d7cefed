"""What a nat of KL costs, and how the adaptive controller changes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rlhf_lightning.objectives.kl import adapted_coefficient
from rlhf_lightning.rollouts.reward_shaping import KlController
from rlhf_lightning.rollouts.settings import KlSettings

MakeKl = Callable[..., KlSettings]


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        # Target 4, 10 episodes of a horizon of 100: a relative error of e changes the coefficient by e / 10.
        (4.0, 1.0),
        (4.4, 1.01),
        (3.6, 0.99),
        # Errors beyond 20% count as 20%.
        (4.8, 1.02),
        (400.0, 1.02),
        (3.2, 0.98),
        (0.0, 0.98),
        (-5.0, 0.98),
    ],
)
def test_the_coefficient_follows_the_clipped_error(kl: float, factor: float) -> None:
    assert adapted_coefficient(0.3, kl=kl, target=4.0, episodes=10, horizon=100) == pytest.approx(0.3 * factor)


def test_the_adaptive_controller_changes_its_coefficient_and_carries_it(make_kl: MakeKl) -> None:
    controller = KlController(make_kl("adaptive", coef=0.2, target=2.0, horizon=50))
    assert controller.metrics() == {"kl/coef": 0.2, "kl/target": 2.0}
    controller.update(kl=3.0, episodes=25)
    assert controller.coef == pytest.approx(0.2 * 1.1)
    controller.update(kl=1.9, episodes=25)
    assert controller.coef == pytest.approx(0.2 * 1.1 * 0.975)
    again = KlController(make_kl("adaptive", coef=0.2, target=2.0, horizon=50))
    again.load_state_dict(controller.state_dict())
    assert again.coef == controller.coef == again.reward_coef


def test_a_fixed_coefficient_stays(make_kl: MakeKl) -> None:
    controller = KlController(make_kl("fixed", coef=0.2))
    controller.update(kl=100.0, episodes=1000)
    assert controller.metrics() == {"kl/coef": 0.2}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_penalty_is_paid_in_one_place(estimator: str, make_kl: MakeKl) -> None:
    in_reward = KlController(make_kl("fixed", estimator=estimator, coef=0.2))
    assert (in_reward.in_reward, in_reward.in_loss, in_reward.reward_coef) == (True, False, 0.2)
    in_loss = KlController(make_kl("adaptive", estimator=estimator, coef=0.2, apply_to="loss"))
    assert (in_loss.in_reward, in_loss.in_loss, in_loss.reward_coef, in_loss.coef) == (False, True, 0.0, 0.2)
    assert in_reward.estimator == in_loss.estimator == estimator


def test_the_exact_kl_is_no_estimate_from_samples(make_kl: MakeKl) -> None:
    assert KlController(make_kl("fixed", estimator="exact")).estimator is None


def test_without_a_penalty_nothing_is_paid(make_kl: MakeKl) -> None:
    controller = KlController(make_kl("none"))
    assert (controller.coef, controller.reward_coef, controller.in_reward, controller.in_loss) == (0, 0, False, False)
    controller.update(kl=100.0, episodes=1000)
    assert controller.metrics() == {"kl/coef": 0.0}
