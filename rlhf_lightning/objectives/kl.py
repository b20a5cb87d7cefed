"""The KL divergence to the reference: estimators from samples, the exact one, and the controller of its coefficient.

The estimators are Schulman's ("Approximating KL divergence", 2020). With d = log pi - log pi_ref of a sampled token:

* k1 = d: unbiased, may be negative on a token;
* k2 = d^2 / 2: biased as an estimate, but its gradient is that of the KL on samples of the policy itself;
* k3 = exp(-d) - 1 + d: unbiased and never negative, lower variance;
* exact: the sum over the whole vocabulary, which needs the logits of both policies.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.objectives.logprobs import MAX_LOG_RATIO

SampleEstimator = Literal["k1", "k2", "k3"]

EXACT_CHUNK = 2**22
"""Logits whose softmax is held at once by `exact_kl`."""
LARGEST_STEP = 0.2
"""The adaptive controller's relative error is clipped to this (arXiv 1909.08593)."""


def estimate_kl(estimator: SampleEstimator, logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Per-token KL from sampled tokens.

    Args:
        estimator: which one.
        logprobs: (batch, time) of the sampled tokens under the policy that sampled them.
        reference_logprobs: (batch, time) of the same tokens under the reference.

    Returns:
        (batch, time), in nats.
    """
    return {"k1": k1, "k2": k2, "k3": k3}[estimator](logprobs, reference_logprobs)


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Half of its square."""
    return 0.5 * (logprobs - reference_logprobs) ** 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d."""
    difference = (reference_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference.exp() - 1.0 - difference


def exact_kl(logits: Tensor, reference_logits: Tensor, temperature: float) -> Tensor:
    """sum over tokens v of pi(v) * (log pi(v) - log pi_ref(v)), at each position.

    The softmax of a few rows at a time is held, in the backward pass too.

    Args:
        logits: (batch, time, vocab) of the policy.
        reference_logits: (batch, time, vocab).
        temperature: that the responses were sampled at.

    Returns:
        (batch, time) float32, in nats.
    """
    rows = max(1, EXACT_CHUNK // (logits.shape[1] * logits.shape[2]))
    chunks = zip(logits.split(rows), reference_logits.split(rows), strict=True)
    if logits.requires_grad:
        parts = [checkpoint(_exact_kl, *chunk, temperature, use_reentrant=False) for chunk in chunks]
    else:
        parts = [_exact_kl(*chunk, temperature) for chunk in chunks]
    return torch.cat(parts)


def _exact_kl(logits: Tensor, reference_logits: Tensor, temperature: float) -> Tensor:
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    reference_logprobs = torch.log_softmax(reference_logits.float() / temperature, dim=-1)
    return (logprobs.exp() * (logprobs - reference_logprobs)).sum(dim=-1)


def kl_loss(estimator: SampleEstimator, logprobs: Tensor, old_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """A per-token loss whose gradient is, in expectation, that of KL(pi || pi_ref) at the policy as it is now.

    The tokens were sampled by the old policy, so the estimate is weighted by the ratio. For k1 and k3 the gradient
    also passes through the ratio: without it, that of k1 would be 0 and that of k3 another divergence's (arXiv
    2510.01555). k2 is made for the gradient of its own value, so its ratio is a mere weight.

    Args:
        estimator: which one; `exact` needs no samples and is its own loss.
        logprobs: (batch, time) under the policy being trained.
        old_logprobs: (batch, time) under the policy that sampled.
        reference_logprobs: (batch, time).
    """
    ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    weight = ratio.detach() if estimator == "k2" else ratio
    return weight * estimate_kl(estimator, logprobs, reference_logprobs)


def adapted_coefficient(coef: float, *, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The adaptive controller: coef * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon) (arXiv 1909.08593).

    Args:
        kl: of the last rollouts, summed over each response's tokens and averaged over responses.
        episodes: responses in them.
        horizon: episodes within which the coefficient may change by about `LARGEST_STEP`.
    """
    error = min(max(kl / target - 1.0, -LARGEST_STEP), LARGEST_STEP)
    return coef * (1.0 + error * episodes / horizon)
