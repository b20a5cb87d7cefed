"""Noise that is a function of seed, draw, position and token, and looks like chance all the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_lightning.rollouts import sampler
from rlhf_lightning.rollouts.sampler import KeyedSampling, gumbel_noise, mixed

CPU = torch.device("cpu")
EULER = 0.5772156649015329


def noise(draws: range, position: int = 0, *, seed: int = 0, vocabulary: int = 64) -> Tensor:
    """(draws, vocabulary): what the processor adds to logits of 0."""
    processor = KeyedSampling(seed=seed, draws=draws, temperature=1.0, prompt_length=3, device=CPU)
    return processor(torch.zeros(len(draws), 3 + position, dtype=torch.long), torch.zeros(len(draws), vocabulary))


def test_the_hash_is_splitmix64() -> None:
    # The first three outputs of the reference implementation from seed 1234567 (its state grows by the golden ratio).
    step = -7046029254386353131
    state = torch.tensor(1234567) + torch.arange(1, 4) * step
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [value % 2**64 for value in mixed(state).tolist()] == expected


def test_the_noise_has_the_moments_and_the_distribution_of_gumbels() -> None:
    sample = gumbel_noise(mixed(torch.arange(2000)), 200).flatten().double()
    # Mean Euler's constant, variance pi^2 / 6; 400000 numbers know the mean to 0.002.
    assert sample.mean().item() == pytest.approx(EULER, abs=0.01)
    assert sample.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    # Kolmogorov and Smirnov: the largest distance of the distribution functions, here below 1.95 / sqrt(n) but for one
    # fair sample of a thousand.
    ordered = sample.sort().values
    ranks = torch.arange(1, len(ordered) + 1) / len(ordered)
    distance = (torch.exp(-torch.exp(-ordered)) - ranks).abs().max().item()
    assert distance < 1.95 / math.sqrt(len(ordered))
    assert torch.isfinite(sample).all()


def test_the_extremes_of_the_hash_give_finite_noise() -> None:
    keys = torch.cat([torch.tensor([0, -1, 2**63 - 1, -(2**63)]), mixed(torch.arange(5000))])
    assert torch.isfinite(gumbel_noise(keys, 300)).all()


@pytest.mark.parametrize("state", [0, -1], ids=["smallest", "largest"])
def test_the_extremes_of_the_uniform_number_give_finite_noise(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "mixed", lambda keys: torch.full_like(keys, state))
    # With 23 bits the uniform number u is 2^-24 or 1 - 2^-24, so -log(-log(1 - u)) is 24 log 2 or -log(24 log 2).
    expected = -math.log(24 * math.log(2)) if state else 24 * math.log(2)
    assert gumbel_noise(torch.tensor([1]), 1).item() == pytest.approx(expected, rel=1e-6)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize("shift", [1, 2, 63, 64])
def test_neighbors_in_any_respect_are_independent(shift: int) -> None:
    draws = range(500)
    base = noise(draws)
    # 32000 pairs of independent numbers correlate by 0.0056 times a standard normal one: 0.025 is 4.5 of them.
    others = {
        "seed": noise(draws, seed=shift),
        "draw": noise(range(shift, 500 + shift)),
        "position": noise(draws, position=shift),
        "token": base.roll(shift % 64 or 1, dims=1),
        "draw and position": noise(range(shift, 500 + shift), position=shift),
        "seed and draw": noise(range(shift, 500 + shift), seed=shift),
    }
    for what, other in others.items():
        assert abs(correlation(base, other)) < 0.025, what
    # Which token wins is independent, too: of 500 draws 500 / 64 agree by chance.
    for what, other in others.items():
        if what != "token":
            assert (base.argmax(dim=1) == other.argmax(dim=1)).sum() < 25, what


def test_the_sum_of_draw_and_position_is_no_key() -> None:
    # Draw 5 at position 7 and draw 7 at position 5 share no noise.
    assert not torch.equal(noise(range(5, 6), position=7), noise(range(7, 8), position=5))
    assert not torch.equal(noise(range(5, 6), position=7), noise(range(6, 7), position=6))


def test_the_same_key_gives_the_same_noise_whatever_stands_beside_it() -> None:
    assert torch.equal(noise(range(10, 20))[3], noise(range(13, 14))[0])
    assert torch.equal(noise(range(10, 20), vocabulary=100)[:, :64], noise(range(10, 20)))


def test_frequencies_are_the_softmax_at_the_temperature() -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 1.5
    draws = 20000
    for temperature in (0.5, 1.0, 2.0):
        processor = KeyedSampling(seed=1, draws=range(draws), temperature=temperature, prompt_length=0, device=CPU)
        drawn = processor(torch.zeros(draws, 0, dtype=torch.long), logits.expand(draws, -1)).argmax(dim=1)
        expected = torch.softmax(logits / temperature, dim=0) * draws
        counts = torch.bincount(drawn, minlength=12)
        # 11 degrees of freedom: a fair sample exceeds 31.3 once in a thousand.
        assert float(((counts - expected) ** 2 / expected).sum()) < 31.3, temperature
        recorded = processor.logprobs[:, 0]
        torch.testing.assert_close(recorded, torch.log_softmax(logits / temperature, dim=0)[drawn], atol=1e-5, rtol=0)


def test_consecutive_positions_of_a_draw_are_drawn_independently() -> None:
    # The joint frequencies of two tokens are the products: 15 degrees of freedom, 37.7 once in a thousand.
    logits = torch.tensor([0.0, 0.5, 1.0, -0.5])
    draws = 8000
    processor = KeyedSampling(seed=2, draws=range(draws), temperature=1.0, prompt_length=0, device=CPU)
    first, second = (
        processor(torch.zeros(draws, position, dtype=torch.long), logits.expand(draws, -1)).argmax(dim=1)
        for position in (0, 1)
    )
    chance = torch.softmax(logits, dim=0)
    expected = (chance[:, None] * chance[None, :]).flatten() * draws
    counts = torch.bincount(4 * first + second, minlength=16)
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.7
    assert processor.logprobs.shape == (draws, 2)


def test_half_precision_logits_are_perturbed_in_float32() -> None:
    processor = KeyedSampling(seed=0, draws=range(2), temperature=0.7, prompt_length=1, device=CPU)
    perturbed = processor(torch.zeros(2, 1, dtype=torch.long), torch.randn(2, 50).bfloat16())
    assert perturbed.dtype == processor.logprobs.dtype == torch.float32
