"""The clipped policy and value losses, case by case."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_lightning.objectives.ppo import clipped_policy_loss, clipped_value_loss


def logprobs_of_ratios(*ratios: float) -> Tensor:
    """Log-probs that have these ratios to old log-probs of 0."""
    return torch.tensor([[math.log(ratio) for ratio in ratios]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        # Better than expected and already more likely: no further than 1.2, -2 * 1.2.
        (1.5, 2.0, -2.4, 1.0),
        # Better than expected and less likely: the whole way back counts, -2 * 0.5.
        (0.5, 2.0, -1.0, 0.0),
        # Worse than expected and more likely: the whole way back counts, 2 * 1.5.
        (1.5, -2.0, 3.0, 0.0),
        # Worse than expected and already less likely: no further than 0.8, 2 * 0.8.
        (0.5, -2.0, 1.6, 1.0),
        # Within the range nothing is clipped, whatever the sign.
        (1.1, 2.0, -2.2, 0.0),
        (1.1, -2.0, 2.2, 0.0),
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, clipped: float) -> None:
    result = clipped_policy_loss(
        logprobs_of_ratios(ratio), torch.zeros(1, 1), torch.tensor([[advantage]]), clip_range=0.2
    )
    assert result.loss.item() == pytest.approx(loss, abs=1e-6)
    assert result.clipped.item() == clipped
    assert result.ratio.item() == pytest.approx(ratio)
    # k3 of old against new: r - 1 - log r.
    assert result.approx_kl.item() == pytest.approx(ratio - 1.0 - math.log(ratio), abs=1e-6)


def test_a_clipped_token_gives_no_gradient_and_the_others_minus_advantage_times_ratio() -> None:
    logprobs = logprobs_of_ratios(1.5, 0.5, 1.5, 0.5).requires_grad_()
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0]])
    clipped_policy_loss(logprobs, torch.zeros(1, 4), advantages, clip_range=0.2).loss.sum().backward()
    assert logprobs.grad is not None
    # d/d logprob of -A * ratio is -A * ratio.
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, -1.0, 3.0, 0.0]]))


def test_equal_policies_give_ratio_1_and_minus_the_advantage() -> None:
    logprobs, advantages = torch.tensor([[-3.0, -700.0]]), torch.tensor([[1.5, -0.5]])
    result = clipped_policy_loss(logprobs, logprobs, advantages, clip_range=0.2)
    assert result.loss.tolist() == [[-1.5, 0.5]]
    assert result.ratio.tolist() == [[1.0, 1.0]]
    assert result.approx_kl.tolist() == [[0.0, 0.0]]
    assert result.clipped.tolist() == [[0.0, 0.0]]


def test_the_log_ratio_is_clamped_at_20() -> None:
    logprobs = torch.tensor([[0.0, -500.0]], requires_grad=True)
    old = torch.tensor([[-500.0, 0.0]])
    result = clipped_policy_loss(logprobs, old, torch.tensor([[-1.0, -1.0]]), clip_range=0.2)
    assert result.ratio.tolist() == [[pytest.approx(math.exp(20.0)), pytest.approx(math.exp(-20.0))]]
    result.loss.sum().backward()
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()


@pytest.mark.parametrize(
    ("value", "loss", "clipped"),
    [
        # Old value 1, return 2, range 0.2. Inside the range both branches are equal: 0.5 * 0.9^2.
        (1.1, 0.405, 0.0),
        # Jumped onto the return: the clipped branch stays at 1.2 and counts, 0.5 * 0.8^2.
        (2.0, 0.32, 1.0),
        # Jumped away from the return: the unclipped branch is the larger, 0.5 * 2^2.
        (0.0, 2.0, 0.0),
        # Jumped over the return to 2.5: |0.5| is closer than the clipped branch's |0.8|, 0.5 * 0.8^2.
        (2.5, 0.32, 1.0),
        # Jumped far over the return: the unclipped branch is the larger, 0.5 * 2^2.
        (4.0, 2.0, 0.0),
    ],
)
def test_value_loss_by_hand(value: float, loss: float, clipped: float) -> None:
    result = clipped_value_loss(torch.tensor([[value]]), torch.tensor([[1.0]]), torch.tensor([[2.0]]), clip_range=0.2)
    assert result.loss.item() == pytest.approx(loss, abs=1e-6)
    assert result.clipped.item() == clipped


def test_without_a_range_the_value_loss_is_half_the_squared_error() -> None:
    values = torch.tensor([[3.0, -1.0]], requires_grad=True)
    result = clipped_value_loss(values, torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), None)
    assert result.loss.tolist() == [[2.0, 4.5]]  # 0.5 * 2^2 and 0.5 * 3^2, however far from the old values
    assert result.clipped.tolist() == [[0.0, 0.0]]
    result.loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[2.0, -3.0]]


def test_value_loss_gradient_is_the_error_or_nothing() -> None:
    values = torch.tensor([[1.1, 2.0, 0.0]], requires_grad=True)
    clipped_value_loss(values, torch.full((1, 3), 1.0), torch.full((1, 3), 2.0), clip_range=0.2).loss.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([[-0.9, 0.0, -2.0]]))


def test_what_is_watched_carries_no_gradient() -> None:
    logprobs = torch.zeros(1, 1, requires_grad=True)
    policy = clipped_policy_loss(logprobs, torch.zeros(1, 1), torch.ones(1, 1), clip_range=0.2)
    value = clipped_value_loss(logprobs, torch.zeros(1, 1), torch.ones(1, 1), clip_range=0.2)
    watched = (policy.ratio, policy.clipped, policy.approx_kl, value.clipped)
    assert not any(figure.requires_grad for figure in watched)


def test_rounding_is_no_clipping() -> None:
    generator = torch.Generator().manual_seed(0)
    old, values, returns = torch.randn(3, 100, 10, generator=generator)
    found = clipped_value_loss(values, old, returns, clip_range=100.0)
    assert not found.clipped.any()
    assert torch.equal(found.loss, 0.5 * (values - returns) ** 2)
