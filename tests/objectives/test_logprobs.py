"""Log-probabilities and entropies against torch's log-softmax and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.objectives.logprobs import token_entropies, token_logprobs

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3.0 * torch.randn(4, 5, 11, generator=GENERATOR)
TOKENS = torch.randint(0, 11, (4, 5), generator=GENERATOR)


def test_two_tokens_by_hand() -> None:
    # Odds 3 to 1 at temperature 1: probabilities 3/4 and 1/4. At temperature 0.5 the odds are squared: 9/10 and 1/10.
    logits = torch.tensor([[[math.log(3.0), 0.0], [math.log(3.0), 0.0]]])
    tokens = torch.tensor([[0, 1]])
    warm = token_logprobs(logits, tokens, temperature=1.0)
    cool = token_logprobs(logits, tokens, temperature=0.5)
    torch.testing.assert_close(warm.exp(), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(cool.exp(), torch.tensor([[0.9, 0.1]]))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_logprobs_are_the_log_softmax_of_logits_divided_by_temperature(temperature: float) -> None:
    expected = torch.log_softmax(LOGITS.double() / temperature, dim=-1).gather(-1, TOKENS[..., None])[..., 0]
    torch.testing.assert_close(token_logprobs(LOGITS, TOKENS, temperature), expected.float(), atol=1e-5, rtol=0)


def test_probabilities_of_all_tokens_sum_to_1() -> None:
    everything = torch.stack(
        [token_logprobs(LOGITS, torch.full_like(TOKENS, token), temperature=0.7) for token in range(11)]
    )
    torch.testing.assert_close(everything.exp().sum(dim=0), torch.ones(4, 5))


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    shifted = token_logprobs(LOGITS + 50.0, TOKENS, temperature=1.0)
    torch.testing.assert_close(shifted, token_logprobs(LOGITS, TOKENS, temperature=1.0), atol=1e-5, rtol=0)


def test_half_precision_logits_are_computed_in_float32() -> None:
    halved = LOGITS.bfloat16()
    logprobs = token_logprobs(halved, TOKENS, temperature=0.7)
    assert logprobs.dtype == torch.float32
    # The same numbers in float32 give the same answer bit for bit: nothing but the input was rounded.
    assert torch.equal(logprobs, token_logprobs(halved.float(), TOKENS, temperature=0.7))
    assert token_entropies(halved, temperature=0.7).dtype == torch.float32


def test_extreme_logits_give_finite_logprobs() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0]]])
    assert token_logprobs(logits, torch.tensor([[0]]), temperature=1.0).item() == 0.0
    assert token_logprobs(logits, torch.tensor([[1]]), temperature=1.0).item() == -2e4
    assert token_entropies(logits, temperature=1.0).item() == 0.0


def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size() -> None:
    torch.testing.assert_close(token_entropies(torch.zeros(2, 3, 8), temperature=0.4), torch.full((2, 3), math.log(8)))


def test_entropy_of_two_tokens_by_hand() -> None:
    # -(3/4 log 3/4 + 1/4 log 1/4) = log 4 - 3/4 log 3
    entropy = token_entropies(torch.tensor([[[math.log(3.0), 0.0]]]), temperature=1.0)
    assert entropy.item() == pytest.approx(math.log(4.0) - 0.75 * math.log(3.0))


def test_entropy_is_the_expected_negative_logprob() -> None:
    everything = torch.stack(
        [token_logprobs(LOGITS, torch.full_like(TOKENS, token), temperature=1.7) for token in range(11)]
    )
    expected = -(everything.exp() * everything).sum(dim=0)
    torch.testing.assert_close(token_entropies(LOGITS, temperature=1.7), expected)
