"""What holds for any batch: what stands outside a mask is never read, and padding cannot be felt."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning.objectives.advantages import explained_variance, generalized_advantages, token_rewards
from rlhf_lightning.objectives.kl import estimate_kl
from rlhf_lightning.objectives.logprobs import token_entropies, token_logprobs
from rlhf_lightning.objectives.masked_stats import (
    masked_mean,
    masked_sum,
    masked_variance,
    masked_whiten,
    sequence_sums,
)
from rlhf_lightning.objectives.ppo import clipped_policy_loss, clipped_value_loss

few = settings(max_examples=25, deadline=None, derandomize=True)

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Batch:
    """Two series of numbers on masked tokens, and the same mask with other things outside it and more padding.

    Attributes:
        lengths: tokens of each row, at least 1.
        one: (batch, time) with zeros outside the mask.
        other: likewise.
        garbage: stands outside the mask of the padded versions.
        extra: columns of padding that they have more.
    """

    lengths: tuple[int, ...]
    one: Tensor
    other: Tensor
    garbage: float
    extra: int

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.one.shape[1]) < torch.tensor(self.lengths)[:, None]

    @property
    def padded_mask(self) -> Tensor:
        return torch.nn.functional.pad(self.mask, (0, self.extra))

    def padded(self, values: Tensor) -> Tensor:
        """The values with garbage where no token is."""
        wide = torch.nn.functional.pad(values, (0, self.extra))
        return torch.where(self.padded_mask, wide, torch.full_like(wide, self.garbage))

    def cut(self, values: Tensor) -> Tensor:
        """Without the further padding, which must hold zeros."""
        width = self.one.shape[1]
        assert not values[:, width:].any()
        return values[:, :width]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    lengths = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=5)))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    one, other = (
        torch.randn(mask.shape, generator=numbers, dtype=torch.float64).masked_fill(~mask, 0.0) for _ in range(2)
    )
    return Batch(lengths, one, other, draw(st.sampled_from([NAN, INF, -INF, 1e9, 0.0])), draw(st.integers(0, 4)))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-5)


@few
@given(batches())
def test_masked_statistics_read_tokens_only(batch: Batch) -> None:
    real, padded = batch.one[batch.mask], batch.padded(batch.one)
    close(masked_sum(padded, batch.padded_mask), real.sum())
    close(masked_mean(padded, batch.padded_mask), real.mean())
    close(masked_variance(padded, batch.padded_mask), real.var(correction=0))
    close(sequence_sums(padded, batch.padded_mask), batch.one.sum(dim=1))


@few
@given(batches())
def test_whitened_tokens_have_the_moments_that_they_should(batch: Batch) -> None:
    mask, padded = batch.padded_mask, batch.padded(batch.one)
    for shift_mean in (True, False):
        whitened = masked_whiten(padded, mask, shift_mean=shift_mean)
        assert not whitened[~mask].any()
        real = batch.one[batch.mask]
        if len(real) > 1:
            close(whitened[mask].var(correction=0), torch.tensor(1.0))
        close(whitened[mask].mean(), torch.tensor(0.0) if shift_mean else real.mean())
        close(batch.cut(whitened), masked_whiten(batch.one, batch.mask, shift_mean=shift_mean))


@few
@given(batches(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_advantages_are_the_recursion_and_feel_no_padding(batch: Batch, gamma: float, gae_lambda: float) -> None:
    rewards, values = batch.padded(batch.one), batch.padded(batch.other)
    advantages, returns = generalized_advantages(rewards, values, batch.padded_mask, gamma, gae_lambda)
    expected = torch.zeros_like(batch.one)
    for row, length in enumerate(batch.lengths):
        later_advantage = later_value = 0.0
        for step in reversed(range(length)):
            value = batch.other[row, step].item()
            delta = batch.one[row, step].item() + gamma * later_value - value
            later_advantage = delta + gamma * gae_lambda * later_advantage
            later_value = value
            expected[row, step] = later_advantage
    close(batch.cut(advantages), expected)
    close(batch.cut(returns), (expected + batch.other).masked_fill(~batch.mask, 0.0))


@few
@given(batches())
def test_with_gamma_and_lambda_1_returns_are_rewards_to_go(batch: Batch) -> None:
    _, returns = generalized_advantages(batch.padded(batch.one), batch.padded(batch.other), batch.padded_mask, 1.0, 1.0)
    to_go = batch.one.flip(1).cumsum(1).flip(1).masked_fill(~batch.mask, 0.0)
    close(batch.cut(returns), to_go)


@few
@given(batches(), st.floats(0.0, 2.0))
def test_rewards_sum_to_the_score_less_the_priced_kl(batch: Batch, coef: float) -> None:
    scores = torch.linspace(-2.0, 3.0, len(batch.lengths), dtype=torch.float64)
    rewards = token_rewards(scores, batch.padded(batch.one), batch.padded_mask, coef)
    close(rewards.sum(dim=1), scores - coef * batch.one.sum(dim=1))
    # The score is on the last token, and nowhere else.
    without = batch.cut(rewards) + coef * batch.one
    last = torch.tensor(batch.lengths) - 1
    close(without[torch.arange(len(last)), last], scores)
    close(without.sum(), scores.sum())


@few
@given(batches(), st.sampled_from(["k1", "k2", "k3"]))
def test_kl_estimates_feel_no_padding(batch: Batch, estimator: str) -> None:
    padded = estimate_kl(estimator, batch.padded(batch.one), batch.padded(batch.other))  # type: ignore[arg-type]
    plain = estimate_kl(estimator, batch.one, batch.other)  # type: ignore[arg-type]
    close(sequence_sums(padded, batch.padded_mask), sequence_sums(plain, batch.mask))


@few
@given(batches(), st.floats(0.05, 0.5))
def test_neither_losses_nor_gradients_depend_on_what_stands_in_the_pads(batch: Batch, clip: float) -> None:
    def mean_losses(logprobs: Tensor, other: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        policy = clipped_policy_loss(logprobs, other, other.flip(0), clip)
        value = clipped_value_loss(logprobs, other, other.flip(0), clip)
        return masked_mean(policy.loss, mask), masked_mean(value.loss, mask)

    # Rows of equal lengths, so that the advantages of a token are those of another one.
    if len(set(batch.lengths)) > 1:
        batch = Batch((min(batch.lengths),) * len(batch.lengths), batch.one, batch.other, batch.garbage, batch.extra)
    plain, padded = batch.one.clone().requires_grad_(), batch.padded(batch.one).requires_grad_()
    expected = mean_losses(plain, batch.other, batch.mask)
    found = mean_losses(padded, batch.padded(batch.other), batch.padded_mask)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours.detach(), theirs.detach())
    sum(found).backward()  # type: ignore[union-attr]
    sum(expected).backward()  # type: ignore[union-attr]
    assert padded.grad is not None
    assert plain.grad is not None
    close(padded.grad[batch.padded_mask], plain.grad[batch.mask])


@few
@given(batches())
def test_explained_variance_feels_no_padding(batch: Batch) -> None:
    padded = explained_variance(batch.padded(batch.one), batch.padded(batch.other), batch.padded_mask)
    close(padded, explained_variance(batch.one, batch.other, batch.mask))


@few
@given(batches(), st.floats(0.3, 3.0))
def test_logprobs_and_entropies_are_those_of_a_distribution(batch: Batch, temperature: float) -> None:
    logits = 3.0 * torch.stack([batch.one, batch.other, batch.one * batch.other, -batch.one], dim=-1)
    tokens = torch.arange(batch.one.numel()).view(batch.one.shape) % 4
    every = [token_logprobs(logits, torch.full_like(tokens, token), temperature).double() for token in range(4)]
    close(torch.stack(every).exp().sum(dim=0), torch.ones_like(batch.one))
    close(token_entropies(logits, temperature), -sum(one.exp() * one for one in every))
    chosen = torch.stack(every).gather(0, tokens[None])[0]
    close(token_logprobs(logits, tokens, temperature), chosen)


def test_the_strategy_draws_what_the_properties_need() -> None:
    """Rows of different lengths, garbage of every kind, padding or none."""
    drawn: list[Batch] = []

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(batches())
    def collect(batch: Batch) -> None:
        drawn.append(batch)

    collect()
    assert any(len(set(batch.lengths)) > 1 for batch in drawn)
    assert {batch.extra > 0 for batch in drawn} == {True, False}
    assert sum(batch.garbage != batch.garbage for batch in drawn) > 3
    with pytest.raises(AssertionError):
        close(torch.tensor(NAN), torch.tensor(0.0))
