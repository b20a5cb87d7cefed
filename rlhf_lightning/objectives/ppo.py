"""The clipped objectives of proximal policy optimization (arXiv 1707.06347), token by token.

Losses are returned per token: how tokens are weighted over micro-batches, accumulation steps and ranks is
decided once, where the optimizer step is known.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.objectives.logprobs import MAX_LOG_RATIO


class PolicyLoss(NamedTuple):
    """Per-token clipped policy loss and what to watch it by; all (batch, time)."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    """1.0 where the clipped branch is the one that counts."""
    approx_kl: Tensor
    """Schulman's k3 of the old policy to the new."""


class ValueLoss(NamedTuple):
    """Per-token clipped value loss; all (batch, time)."""

    loss: Tensor
    clipped: Tensor


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float) -> PolicyLoss:
    """-min(A * ratio, A * clip(ratio, 1 - eps, 1 + eps)), equation 7.

    Args:
        logprobs: (batch, time) under the policy being trained.
        old_logprobs: (batch, time) under the policy that sampled.
        advantages: (batch, time).
        clip_range: eps.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return PolicyLoss(
        loss=torch.maximum(unclipped, clipped),
        ratio=ratio.detach(),
        clipped=(clipped > unclipped).float().detach(),
        approx_kl=(ratio - 1.0 - log_ratio).detach(),
    )


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> ValueLoss:
    """0.5 * max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2).

    Args:
        values: (batch, time) of the critic being trained.
        old_values: (batch, time) at the time of the rollout.
        returns: (batch, time).
        clip_range: eps, in units of reward; None: 0.5 * (V - R)^2.
    """
    if clip_range is None:
        return ValueLoss(loss=0.5 * (values - returns) ** 2, clipped=torch.zeros_like(values).detach())
    # Not old + clamp(V - old): within the range V must be V to the last bit, or rounding would count as clipping.
    kept_near = values.clamp(old_values - clip_range, old_values + clip_range)
    unclipped = (values - returns) ** 2
    clipped = (kept_near - returns) ** 2
    return ValueLoss(
        loss=0.5 * torch.maximum(unclipped, clipped),
        clipped=(clipped > unclipped).float().detach(),
    )
