"""Estimators of the KL divergence from samples (Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

from torch import Tensor


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref: unbiased, may be negative on a token. The estimator that trains.

    Args:
        logprobs: (batch, time) of the sampled tokens under the policy that sampled them.
        reference_logprobs: (batch, time) of the same tokens under the reference.

    Returns:
        (batch, time), in nats.
    """
    return logprobs - reference_logprobs


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = log pi - log pi_ref: unbiased, never negative, lower variance. For monitoring."""
    difference = (reference_logprobs - logprobs).clamp(-20.0, 20.0)
    return difference.exp() - 1.0 - difference
