"""Per-token rewards from one score per response, and advantage estimators on them."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.objectives.masked_stats import masked_variance


def replace_unfinished(scores: Tensor, finished: Tensor, penalty: float | None) -> Tensor:
    """A response that did not end itself gets the penalty *instead of* its score (lm-human-preferences).

    Args:
        scores: (batch,).
        finished: (batch,) bool.
        penalty: None leaves all scores as they are.
    """
    if penalty is None:
        return scores
    return torch.where(finished, scores, torch.full_like(scores, penalty))


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = -kl_coef * kl_t on response tokens, plus the score once, on the last of them (the EOS, if there is one).

    Some implementations put the score one token later, on the first pad: there it is masked or mis-credited.

    Args:
        scores: (batch,).
        kl: (batch, time) per-token KL.
        mask: (batch, time) bool, True on response tokens, which are contiguous from position 0.

    Returns:
        (batch, time), 0 outside the mask.
    """
    rewards = torch.where(mask, -kl_coef * kl, torch.zeros_like(kl))
    last = mask.sum(dim=1) - 1
    has_tokens = last >= 0
    rows = torch.arange(len(scores), device=scores.device)[has_tokens]
    rewards[rows, last[has_tokens]] += scores[has_tokens].to(rewards.dtype)
    return rewards


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (arXiv 1506.02438, equation 16), with nothing beyond the end of a response.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma gae_lambda A_{t+1}; rewards and values after the last
    token are zeroed first, so that no bootstrap and no pad leaks into the response.

    Args:
        rewards: (batch, time).
        values: (batch, time); V_t is the value *before* token t.
        mask: (batch, time) bool, True on response tokens, contiguous from position 0.

    Returns:
        Raw advantages and returns = raw advantages + values, both (batch, time) float32 and 0 outside the mask.
    """
    zero = torch.zeros((), device=rewards.device)
    rewards = torch.where(mask, rewards.float(), zero)
    values = torch.where(mask, values.float(), zero)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    # A_t is a discounted suffix sum of deltas: one matrix product instead of a Python loop over a device tensor. In
    # float64, since TF32 would round its factors to ten bits.
    steps = torch.arange(deltas.shape[1], device=deltas.device)
    distance = steps[:, None] - steps[None, :]
    decay = torch.where(distance >= 0, float(gamma * gae_lambda) ** distance.clamp(min=0).double(), zero.double())
    advantages = torch.where(mask, (deltas.double() @ decay).float(), zero)
    return advantages, torch.where(mask, advantages + values, zero)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that knows only the mean.

    NaN-free: where returns do not vary, 0 is returned.
    """
    variance = masked_variance(returns, mask)
    unexplained = masked_variance(returns - values, mask)
    return torch.where(variance > 0, 1.0 - unexplained / variance.clamp(min=1e-12), torch.zeros_like(variance))
