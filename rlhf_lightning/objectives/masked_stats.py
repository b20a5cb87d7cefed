"""Moments over the real tokens of a padded batch."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The sum of `values` where `mask` is True; what stands elsewhere is never read, not even NaN.

    Args:
        values: any shape.
        mask: bool, same shape.
    """
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def sequence_sums(values: Tensor, mask: Tensor) -> Tensor:
    """Sums over each row's real tokens: (batch, time) -> (batch,)."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(dim=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens (0 for an empty mask)."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """The population variance over real tokens."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Real tokens scaled to variance 1 and, with `shift_mean`, mean 0; 0 elsewhere.

    Rewards are whitened with `shift_mean=False`, which keeps their sign (lm-human-preferences).

    Args:
        values: (batch, time).
        mask: (batch, time) bool.
    """
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + eps)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, torch.zeros_like(whitened))


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of two series, in [-1, 1]; 0 where one of them does not vary."""
    one, other = one.double() - one.double().mean(), other.double() - other.double().mean()
    norms = one.norm() * other.norm()
    return torch.where(norms > 0, (one * other).sum() / norms.clamp(min=1e-12), torch.zeros_like(norms))
