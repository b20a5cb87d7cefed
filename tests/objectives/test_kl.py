"""Estimators of the KL divergence: by hand, and against the exact sum over a small vocabulary."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.objectives.kl import k1, k3

POLICY = torch.tensor([[-1.0, -2.0]])
REFERENCE = torch.tensor([[-1.5, -1.0]])


def test_k1_is_the_difference_and_keeps_its_sign() -> None:
    assert k1(POLICY, REFERENCE).tolist() == [[0.5, -1.0]]


def test_k3_by_hand() -> None:
    # d = log pi - log pi_ref = 0.5 and -1: exp(-0.5) - 1 + 0.5 and exp(1) - 1 - 1.
    expected = [math.exp(-0.5) - 0.5, math.e - 2.0]
    assert k3(POLICY, REFERENCE)[0].tolist() == pytest.approx(expected)


def test_both_are_0_between_equal_policies() -> None:
    assert k1(POLICY, POLICY).tolist() == [[0.0, 0.0]]
    assert k3(POLICY, POLICY).tolist() == [[0.0, 0.0]]


def test_both_are_unbiased() -> None:
    # Weighted by the policy's own probabilities, the estimates of all tokens sum to the exact divergence.
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    policy, reference = torch.log_softmax(logits, dim=-1)
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * k1(policy, reference)).sum(), exact)
    torch.testing.assert_close((policy.exp() * k3(policy, reference)).sum(), exact)


def test_k3_is_never_negative_nor_infinite() -> None:
    policy = torch.linspace(-200.0, 0.0, 101)
    estimates = k3(policy, torch.full_like(policy, -100.0))
    assert (estimates >= 0).all()
    assert torch.isfinite(estimates).all()
