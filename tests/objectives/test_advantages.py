"""Generalized advantages: by hand, against a plain loop in float64, and at the ends of their range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_lightning.objectives.advantages import explained_variance, generalized_advantages
from rlhf_lightning.objectives.masked_stats import masked_whiten

NAN = float("nan")


def by_loop(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> list[list[float]]:
    """Equation 11 of arXiv 1506.02438 as its recursion, one token after the other from the end."""
    advantages = [[0.0] * mask.shape[1] for _ in range(len(mask))]
    for row in range(len(mask)):
        later_advantage = later_value = 0.0
        for step in reversed(range(int(mask[row].sum()))):
            value = float(values[row, step])
            delta = float(rewards[row, step]) + gamma * later_value - value
            later_advantage = delta + gamma * gae_lambda * later_advantage
            advantages[row][step] = later_advantage
            later_value = value
    return advantages


def random_batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards and values of ten responses of 1 to 12 tokens, with NaN behind each response's end."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (10,), generator=generator)
    mask = torch.arange(12) < lengths[:, None]
    rewards, values = torch.randn(2, 10, 12, generator=generator)
    return rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN), mask


def test_three_tokens_by_hand() -> None:
    # gamma 0.9, lambda 0.5, rewards 1, 0, 2, values 0.5, 1, 1.5; behind the response stand a pad's NaN and a pad's 99.
    #   delta_2 = 2 + 0         - 1.5 = 0.5    A_2 = 0.5                          return 2.0
    #   delta_1 = 0 + 0.9 * 1.5 - 1   = 0.35   A_1 = 0.35 + 0.45 * 0.5   = 0.575  return 1.575
    #   delta_0 = 1 + 0.9 * 1   - 0.5 = 1.4    A_0 = 1.4  + 0.45 * 0.575 = 1.65875  return 2.15875
    rewards = torch.tensor([[1.0, 0.0, 2.0, NAN, 99.0]])
    values = torch.tensor([[0.5, 1.0, 1.5, 99.0, NAN]])
    mask = torch.tensor([[True, True, True, False, False]])
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[1.65875, 0.575, 0.5, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.15875, 1.575, 2.0, 0.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.97, 0.9), (1.0, 1.0), (0.5, 0.0), (0.0, 0.7)])
def test_the_matrix_product_equals_the_recursion(gamma: float, gae_lambda: float) -> None:
    for seed in range(5):
        rewards, values, mask = random_batch(seed)
        advantages, returns = generalized_advantages(rewards, values, mask, gamma, gae_lambda)
        expected = torch.tensor(by_loop(rewards, values, mask, gamma, gae_lambda))
        torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(returns, (expected + values).masked_fill(~mask, 0.0), atol=1e-5, rtol=1e-5)


def test_no_digit_is_lost_over_a_long_response() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(-64, 65, (4, 500), generator=generator) / 64  # exact, so that only the sum can round
    mask = torch.ones(4, 500, dtype=torch.bool)
    advantages, _ = generalized_advantages(rewards, torch.zeros(4, 500), mask, 1.0, 0.95)
    expected = torch.tensor(by_loop(rewards, torch.zeros(4, 500), mask, 1.0, 0.95), dtype=torch.float64)
    assert (advantages.double() - expected).abs().max() <= 2**-24 * expected.abs().max()


def test_gamma_and_lambda_1_give_reward_to_go_less_value() -> None:
    rewards, values, mask = random_batch(0)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    real = rewards.masked_fill(~mask, 0.0)
    to_go = (real.sum(dim=1, keepdim=True) - real.cumsum(dim=1) + real).masked_fill(~mask, 0.0)
    torch.testing.assert_close(returns, to_go, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(advantages, (to_go - values).masked_fill(~mask, 0.0), atol=1e-5, rtol=1e-5)


def test_lambda_0_gives_the_one_step_error() -> None:
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 5.0]])
    advantages, _ = generalized_advantages(
        rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, gae_lambda=0.0
    )
    assert advantages.tolist() == [[3.0, -4.0]]


def test_a_perfect_critic_leaves_no_advantage() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 2.0]]), torch.full((1, 3), 2.0)
    advantages, returns = generalized_advantages(
        rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, gae_lambda=0.95
    )
    assert advantages.tolist() == [[0.0, 0.0, 0.0]]
    assert returns.tolist() == [[2.0, 2.0, 2.0]]


def test_what_stands_behind_a_response_never_matters() -> None:
    rewards, values, mask = random_batch(3)
    garbage = torch.full_like(rewards, 1e9)
    with_nan = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    with_garbage = generalized_advantages(
        torch.where(mask, rewards, garbage), torch.where(mask, values, -garbage), mask, gamma=1.0, gae_lambda=0.95
    )
    assert torch.equal(with_nan[0], with_garbage[0])
    assert torch.equal(with_nan[1], with_garbage[1])


def test_returns_come_from_raw_advantages() -> None:
    # Whitening the advantages afterwards is the caller's business: returns must not know of it.
    rewards, values, mask = random_batch(4)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])
    assert not torch.allclose(returns[mask], (masked_whiten(advantages, mask) + values)[mask], atol=0.1)


def test_explained_variance_of_a_perfect_a_constant_and_a_contrary_critic() -> None:
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, NAN]])
    assert explained_variance(returns + 10.0, returns, mask).item() == pytest.approx(1.0)
    assert explained_variance(torch.full((1, 4), 7.0), returns, mask).item() == pytest.approx(0.0)
    # Returns minus values is 2 * returns: four times the variance, 1 - 4 = -3.
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0)


def test_explained_variance_of_equal_returns_is_0() -> None:
    mask = torch.tensor([[True, True]])
    assert explained_variance(torch.tensor([[1.0, 2.0]]), torch.full((1, 2), 4.0), mask).item() == 0.0
