"""Every objective on tensors small enough to be worked out on paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_lightning.objectives.advantages import (
    explained_variance,
    generalized_advantages,
    replace_unfinished,
    token_rewards,
)
from rlhf_lightning.objectives.kl import adapted_coefficient, estimate_kl, exact_kl, kl_loss
from rlhf_lightning.objectives.logprobs import token_entropies, token_logprobs
from rlhf_lightning.objectives.masked_stats import correlation, masked_mean, masked_variance, masked_whiten
from rlhf_lightning.objectives.ppo import clipped_policy_loss, clipped_value_loss
from rlhf_lightning.objectives.preference import bradley_terry_loss, centering_loss, classification_loss

NAN = float("nan")

MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])
"""A response of three tokens and one of one token."""


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_logprobs_and_entropy_at_a_temperature() -> None:
    # Logits 2 log 3 and 0 at temperature 2 are odds of 3 to 1.
    logits = torch.tensor([[[2 * math.log(3.0), 0.0], [2 * math.log(3.0), 0.0]]])
    close(token_logprobs(logits, torch.tensor([[0, 1]]), 2.0), row(math.log(0.75), math.log(0.25)))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    close(token_entropies(logits, 2.0), row(entropy, entropy))


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", (math.log(2.0), -math.log(2.0))),
        ("k2", (math.log(2.0) ** 2 / 2, math.log(2.0) ** 2 / 2)),
        # exp(-d) - 1 + d for d = log 2 and -log 2: 1/2 - 1 + log 2 and 2 - 1 - log 2.
        ("k3", (math.log(2.0) - 0.5, 1.0 - math.log(2.0))),
    ],
)
def test_kl_estimators_of_probabilities_one_half_and_one_quarter(estimator: str, expected: tuple[float, float]) -> None:
    ours, theirs = row(math.log(0.5), math.log(0.25)), row(math.log(0.25), math.log(0.5))
    close(estimate_kl(estimator, ours, theirs), row(*expected))  # type: ignore[arg-type]


def test_exact_kl_at_a_temperature() -> None:
    # Odds of 3 to 1 against even odds: 3/4 log(3/2) + 1/4 log(1/2).
    logits = torch.tensor([[[2 * math.log(3.0), 0.0]]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    close(exact_kl(logits, torch.zeros_like(logits), 2.0), row(expected))


@pytest.mark.parametrize(
    ("estimator", "loss", "slope"),
    [
        # Probability 1/2 now, 1/4 when it was sampled, 1/8 under the reference: ratio 2, d = log 4.
        # k1: 2 d, of slope 2 (d + 1); k2: d^2, of slope 2 d; k3: 2 (1/4 - 1 + d), of slope 2 d.
        ("k1", 2 * math.log(4.0), 2 * (math.log(4.0) + 1)),
        ("k2", math.log(4.0) ** 2, 2 * math.log(4.0)),
        ("k3", 2 * (math.log(4.0) - 0.75), 2 * math.log(4.0)),
    ],
)
def test_kl_losses_and_their_gradients(estimator: str, loss: float, slope: float) -> None:
    logprobs = row(math.log(0.5)).requires_grad_()
    found = kl_loss(estimator, logprobs, row(math.log(0.25)), row(math.log(0.125)))  # type: ignore[arg-type]
    found.sum().backward()
    close(found.detach(), row(loss))
    assert logprobs.grad is not None
    close(logprobs.grad, row(slope))


def test_the_adaptive_coefficient_is_clipped() -> None:
    # Target 6, 128 episodes of a horizon of 1280: an error of at most 20% changes it by at most 2%.
    found = [adapted_coefficient(0.5, kl=kl, target=6.0, episodes=128, horizon=1280) for kl in (6.0, 6.6, 60.0, 0.0)]
    assert found == pytest.approx([0.5, 0.505, 0.51, 0.49])


def test_an_unfinished_response_has_the_penalty_for_its_score() -> None:
    scores, finished = torch.tensor([3.0, 4.0]), torch.tensor([True, False])
    assert replace_unfinished(scores, finished, -1.0).tolist() == [3.0, -1.0]
    assert replace_unfinished(scores, finished, None).tolist() == [3.0, 4.0]


def test_the_score_lands_on_the_last_token_and_the_kl_on_every_one() -> None:
    kl = torch.tensor([[1.0, 2.0, -3.0, NAN], [4.0, NAN, NAN, NAN]])
    rewards = token_rewards(torch.tensor([5.0, 7.0]), kl, MASK, 0.1)
    close(rewards, torch.tensor([[-0.1, -0.2, 5.3, 0.0], [6.6, 0.0, 0.0, 0.0]]))


def test_moments_and_whitening_of_the_tokens() -> None:
    # Tokens 1, 2, 3 and 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5.
    values = torch.tensor([[1.0, 2.0, 3.0, NAN], [6.0, NAN, 99.0, NAN]])
    assert masked_mean(values, MASK).item() == 3.0
    assert masked_variance(values, MASK).item() == pytest.approx(3.5)
    spread = math.sqrt(3.5)
    centered = torch.tensor([[-2.0, -1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]) / spread
    close(masked_whiten(values, MASK), centered)
    close(masked_whiten(values, MASK, shift_mean=False), (centered + 3.0) * MASK)


def test_advantages_and_returns() -> None:
    # gamma 1/2, lambda 1/2. delta_2 = 4 - 1 = 3; delta_1 = 0 + 1/2 * 1 - 2 = -1.5; delta_0 = 1 + 1/2 * 2 - 3 = -1.
    # A_2 = 3; A_1 = -1.5 + 3/4 = -0.75; A_0 = -1 - 0.75/4 = -1.1875. The other response: 2 - 5 = -3.
    rewards = torch.tensor([[1.0, 0.0, 4.0, NAN], [2.0, 50.0, NAN, NAN]])
    values = torch.tensor([[3.0, 2.0, 1.0, 50.0], [5.0, NAN, 50.0, NAN]])
    advantages, returns = generalized_advantages(rewards, values, MASK, 0.5, 0.5)
    close(advantages, torch.tensor([[-1.1875, -0.75, 3.0, 0.0], [-3.0, 0.0, 0.0, 0.0]]))
    close(returns, torch.tensor([[1.8125, 1.25, 4.0, 0.0], [2.0, 0.0, 0.0, 0.0]]))


def test_gamma_and_lambda_are_not_the_same() -> None:
    # Rewards 0, 8; values 0, 4. gamma 1/2, lambda 1: A_0 = (2 - 0) + 1/2 * 4 = 4. gamma 1, lambda 1/2: 4 + 1/2 * 4 = 6.
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert generalized_advantages(row(0.0, 8.0), row(0.0, 4.0), mask, 0.5, 1.0)[0].tolist() == [[4.0, 4.0]]
    assert generalized_advantages(row(0.0, 8.0), row(0.0, 4.0), mask, 1.0, 0.5)[0].tolist() == [[6.0, 4.0]]


def test_explained_variance() -> None:
    # Returns 1, 2, 3, 6 of variance 3.5; off by 0, 0, 0, 2, of variance 0.75.
    returns = torch.tensor([[1.0, 2.0, 3.0, NAN], [6.0, NAN, NAN, NAN]])
    values = torch.tensor([[1.0, 2.0, 3.0, NAN], [4.0, NAN, NAN, NAN]])
    assert explained_variance(values, returns, MASK).item() == pytest.approx(1.0 - 0.75 / 3.5)


def test_correlation() -> None:
    # Deviations -1, 0, 1 and -2, 1, 1.
    found = correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 3.0, 3.0])).item()
    assert found == pytest.approx(3.0 / math.sqrt(12.0))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        # -A * ratio, and its slope -A * ratio, unless the clipped branch is the larger loss, which has none.
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.5, 2.0, -2.4, 0.0, 1.0),
        (0.5, 2.0, -1.0, -1.0, 0.0),
        (1.5, -2.0, 3.0, 3.0, 0.0),
        (0.5, -2.0, 1.6, 0.0, 1.0),
    ],
)
def test_policy_loss(ratio: float, advantage: float, loss: float, slope: float, clipped: float) -> None:
    logprobs = row(math.log(ratio) - 1.0).requires_grad_()
    found = clipped_policy_loss(logprobs, row(-1.0), row(advantage), 0.2)
    found.loss.sum().backward()
    assert found.loss.item() == pytest.approx(loss)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(slope)
    assert found.clipped.item() == clipped
    assert found.ratio.item() == pytest.approx(ratio)
    assert found.approx_kl.item() == pytest.approx(ratio - 1.0 - math.log(ratio), abs=1e-7)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope", "clipped"),
    [
        # Half the larger square of V - R and of V kept within 0.5 of the old value; the kept one has no slope.
        (1.2, 1.0, 3.0, 1.62, -1.8, 0.0),
        (2.0, 1.0, 3.0, 1.125, 0.0, 1.0),
        (2.0, 1.0, 0.0, 2.0, 2.0, 0.0),
        (0.0, 1.0, 0.0, 0.125, 0.0, 1.0),
        (0.0, 1.0, 3.0, 4.5, -3.0, 0.0),
    ],
)
def test_value_loss(value: float, old: float, target: float, loss: float, slope: float, clipped: float) -> None:
    values = row(value).requires_grad_()
    found = clipped_value_loss(values, row(old), row(target), 0.5)
    found.loss.sum().backward()
    assert found.loss.item() == pytest.approx(loss)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(slope)
    assert found.clipped.item() == clipped


def test_losses_of_preferences() -> None:
    chosen, rejected = torch.tensor([math.log(3.0), 1.0]), torch.tensor([0.0, 1.0])
    # -log sigmoid(log 3) = log 4/3; at a margin of log 3 as at equal rewards log 2.
    found = bradley_terry_loss(chosen, rejected, torch.tensor([0.0, 0.0]))
    assert found.tolist() == pytest.approx([math.log(4 / 3), math.log(2.0)])
    found = bradley_terry_loss(chosen, rejected, torch.tensor([math.log(3.0), 0.0]))
    assert found.tolist() == pytest.approx([math.log(2.0), math.log(2.0)])
    assert centering_loss(chosen, rejected).tolist() == pytest.approx([math.log(3.0) ** 2, 4.0])
    logits = torch.tensor([[0.0, math.log(3.0)]])
    # The chosen response is the second label at 3 to 1, the rejected one is not the first: log 4/3 + log 4.
    assert classification_loss(logits, logits, 1).item() == pytest.approx(math.log(4 / 3) + math.log(4.0))
