"""Log-probabilities and entropies of tokens, in float32 whatever the precision of the model."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""|log ratio| is clamped here: exp(20) is past any trust region and short of an overflow."""


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at the given tokens.

    Never materializes the whole log-softmax: a gather minus a log-sum-exp.

    Args:
        logits: (batch, time, vocab); position t predicts `tokens[:, t]`.
        tokens: (batch, time) int64.
        temperature: that the tokens were sampled at.

    Returns:
        (batch, time) float32.
    """
    scaled = logits.float() / temperature
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(scaled, dim=-1)


def token_entropies(logits: Tensor, temperature: float) -> Tensor:
    """The entropy, in nats, of each position's distribution.

    Args:
        logits: (batch, time, vocab).

    Returns:
        (batch, time) float32.
    """
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)
