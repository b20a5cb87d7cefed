"""Sampling whose randomness depends only on a seed and the index of the draw.

A token is the argmax of logits / temperature + Gumbel noise, which samples the softmax exactly (Gumbel, 1954; Maddison
et al., arXiv 1411.0030). The noise is a hash of (seed, draw, position, token) instead of the next number of a shared
generator. So a reply is the same whichever replies are sampled beside it, in chunks of whatever size, on whichever of
several processes, before or after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

GOLDEN_RATIO = -7046029254386353131
"""2^64 divided by the golden ratio, as a signed number: the increment of SplitMix64."""
FIRST_FACTOR = -4658895280553007687
SECOND_FACTOR = -7723592293110705685
"""The multipliers of SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
BITS = 24
"""Random bits behind a uniform number: what a float32 holds."""


class KeyedSampling(LogitsProcessor):
    """Turns greedy decoding into sampling, and remembers the log-probs of what was sampled.

    Args:
        seed: of all draws.
        draws: the number of each row's draw; a draw's noise is the same wherever it is drawn.
        temperature: divides the logits.
        prompt_length: tokens before the first sampled one.
        device: of the model.
    """

    def __init__(
        self, *, seed: int, draws: Sequence[int], temperature: float, prompt_length: int, device: torch.device
    ) -> None:
        self.temperature = temperature
        self.prompt_length = prompt_length
        numbers = torch.tensor(list(draws), dtype=torch.int64, device=device)
        self.keys = mixed(numbers * GOLDEN_RATIO + mixed(torch.tensor(seed, dtype=torch.int64, device=device)))
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scaled = scores.float() / self.temperature
        position = input_ids.shape[1] - self.prompt_length
        step = torch.tensor(position + 1) * GOLDEN_RATIO  # a tensor, whose product wraps around
        perturbed = scaled + gumbel_noise(mixed(self.keys + step), scaled.shape[1])
        chosen = perturbed.argmax(dim=-1, keepdim=True)
        self._logprobs.append(scaled.gather(1, chosen).squeeze(1) - torch.logsumexp(scaled, dim=-1))
        return perturbed

    @property
    def logprobs(self) -> Tensor:
        """(batch, R) float32, of each sampled token under the distribution that it was sampled from."""
        return torch.stack(self._logprobs, dim=1)


def gumbel_noise(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel variables.

    Args:
        keys: (batch,) int64; a row is a function of its key.
        count: variables a row.

    Returns:
        (batch, count) float32.
    """
    counters = torch.arange(1, count + 1, device=keys.device) * GOLDEN_RATIO
    bits = _shifted(mixed(keys[:, None] + counters), 64 - BITS)
    uniform = (bits.float() + 0.5) * 2.0**-BITS
    return -torch.log(-torch.log1p(-uniform))


def mixed(state: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 numbers in, as many that look random out."""
    state = (state ^ _shifted(state, 30)) * FIRST_FACTOR
    state = (state ^ _shifted(state, 27)) * SECOND_FACTOR
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own keeps the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
