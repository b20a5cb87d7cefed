"""Per-token rewards from one score per reply."""

from __future__ import annotations

import torch
from torch import Tensor


def replace_unfinished(scores: Tensor, finished: Tensor, penalty: float | None) -> Tensor:
    """A reply that did not end itself gets the penalty *instead of* its score (lm-human-preferences).

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
