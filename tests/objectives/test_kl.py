"""Estimators of the KL divergence: by hand, and against the sum over all tokens of a small vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf_lightning.objectives import kl
from rlhf_lightning.objectives.kl import SampleEstimator, estimate_kl, exact_kl, k1, k2, k3, kl_loss

SAMPLE_ESTIMATORS: tuple[SampleEstimator, ...] = ("k1", "k2", "k3")

POLICY = torch.tensor([[-1.0, -2.0]])
REFERENCE = torch.tensor([[-1.5, -1.0]])


def test_k1_is_the_difference_and_keeps_its_sign() -> None:
    assert k1(POLICY, REFERENCE).tolist() == [[0.5, -1.0]]


def test_k2_is_half_the_square() -> None:
    assert k2(POLICY, REFERENCE).tolist() == [[0.125, 0.5]]


def test_k3_by_hand() -> None:
    # d = log pi - log pi_ref = 0.5 and -1: exp(-0.5) - 1 + 0.5 and exp(1) - 1 - 1.
    expected = [math.exp(-0.5) - 0.5, math.e - 2.0]
    assert k3(POLICY, REFERENCE)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "function"), [("k1", k1), ("k2", k2), ("k3", k3)])
def test_an_estimator_is_chosen_by_name(name: SampleEstimator, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert torch.equal(estimate_kl(name, POLICY, REFERENCE), function(POLICY, REFERENCE))


@pytest.mark.parametrize("name", SAMPLE_ESTIMATORS)
def test_there_is_no_divergence_between_equal_policies(name: SampleEstimator) -> None:
    assert estimate_kl(name, POLICY, POLICY).tolist() == [[0.0, 0.0]]


def test_k3_is_never_negative_nor_infinite() -> None:
    policy = torch.linspace(-200.0, 0.0, 101)
    estimates = k3(policy, torch.full_like(policy, -100.0))
    assert (estimates >= 0).all()
    assert torch.isfinite(estimates).all()


def test_the_exact_kl_of_two_tokens_by_hand() -> None:
    # Odds 3 to 1 against odds 1 to 1: 3/4 log(3/2) + 1/4 log(1/2). At temperature 1/2 the odds are 9 to 1 and 1 to 1.
    logits, reference = torch.tensor([[[math.log(3.0), 0.0]]]), torch.zeros(1, 1, 2)
    warm = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    cool = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert exact_kl(logits, reference, 1.0).item() == pytest.approx(warm)
    assert exact_kl(logits, reference, 0.5).item() == pytest.approx(cool)


def random_logits(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    ours, theirs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    return ours, theirs


def test_the_exact_kl_is_that_of_torch() -> None:
    logits, reference = random_logits(0, 3, 4, 11)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=logits / 0.7), torch.distributions.Categorical(logits=reference / 0.7)
    )
    torch.testing.assert_close(exact_kl(logits, reference, 0.7), expected)


def test_chunks_change_neither_the_exact_kl_nor_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, reference = random_logits(1, 5, 4, 11)
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    found = {}
    # A row is 44 logits: all at once, two rows, one row at a time.
    for chunk in (10**6, 88, 1):
        monkeypatch.setattr(kl, "EXACT_CHUNK", chunk)
        ours = logits.clone().requires_grad_()
        divergence = exact_kl(ours, reference, 0.7)
        (divergence * weight).sum().backward()
        assert ours.grad is not None
        with torch.no_grad():
            assert torch.equal(exact_kl(ours, reference, 0.7), divergence)
        found[chunk] = divergence.detach(), ours.grad
    for chunk in (88, 1):
        torch.testing.assert_close(found[chunk], found[10**6], atol=1e-7, rtol=0)
    # The gradient that the chain rule gives without checkpoints.
    ours = logits.clone().requires_grad_()
    logprobs, theirs = torch.log_softmax(ours / 0.7, dim=-1), torch.log_softmax(reference / 0.7, dim=-1)
    ((logprobs.exp() * (logprobs - theirs)).sum(dim=-1) * weight).sum().backward()
    torch.testing.assert_close(found[1][1], ours.grad)


def test_the_exact_kl_of_half_precision_logits_is_in_float32() -> None:
    logits, reference = (tensor.bfloat16() for tensor in random_logits(3, 2, 2, 7))
    assert torch.equal(exact_kl(logits, reference, 1.0), exact_kl(logits.float(), reference.float(), 1.0))


# Expectations over samples, by enumeration: every token of a vocabulary of nine counts with its probability under the
# policy that samples it.

OLD, REF = torch.log_softmax(torch.randn(2, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=-1)
MOVED = torch.log_softmax(
    OLD + 0.7 * torch.randn(9, generator=torch.Generator().manual_seed(4), dtype=torch.float64), dim=-1
)


def gradient(loss_of: Callable[[Tensor], Tensor], logprobs: Tensor) -> Tensor:
    """Of a loss of the log-probs, with respect to the logits."""
    logits = logprobs.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss_of(torch.log_softmax(logits, dim=-1)), logits)
    return found


def divergence(logprobs: Tensor) -> Tensor:
    return (logprobs.exp() * (logprobs - REF)).sum()


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(name: SampleEstimator) -> None:
    torch.testing.assert_close((OLD.exp() * estimate_kl(name, OLD, REF)).sum(), divergence(OLD))


def test_k2_is_biased_but_little_near_the_reference() -> None:
    far = (OLD.exp() * k2(OLD, REF)).sum()
    assert abs(far - divergence(OLD)) > 0.05
    near = torch.log_softmax(REF + 0.01 * OLD, dim=-1)
    torch.testing.assert_close((near.exp() * k2(near, REF)).sum(), divergence(near), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_expected_loss_of_old_samples_is_the_kl_of_the_policy_as_it_is_now(name: SampleEstimator) -> None:
    torch.testing.assert_close((OLD.exp() * kl_loss(name, MOVED, OLD, REF)).sum(), divergence(MOVED))


@pytest.mark.parametrize("name", SAMPLE_ESTIMATORS)
@pytest.mark.parametrize("now", [OLD, MOVED], ids=["on_policy", "off_policy"])
def test_the_expected_gradient_is_that_of_the_exact_kl(name: SampleEstimator, now: Tensor) -> None:
    expected = gradient(divergence, now)
    found = gradient(lambda logprobs: (OLD.exp() * kl_loss(name, logprobs, OLD, REF)).sum(), now)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected)


def test_without_the_ratio_the_gradients_would_be_others() -> None:
    # What the ratio is there for: of k1 nothing would be left, of k3 the gradient of KL(pi_ref || pi).
    bare = {
        name: gradient(lambda logprobs, name=name: (OLD.exp() * estimate_kl(name, logprobs, REF)).sum(), OLD)
        for name in ("k1", "k3")
    }
    torch.testing.assert_close(bare["k1"], torch.zeros_like(OLD))
    torch.testing.assert_close(bare["k3"], gradient(lambda logprobs: -(REF.exp() * logprobs).sum(), OLD))


def test_k2_and_k3_have_the_same_gradient_on_every_token() -> None:
    # ratio * (exp(-d) - 1 + d) differentiates to ratio * d: what k2 gives, and k1 but for its ratio * (d + 1).
    found = {
        name: gradient(lambda logprobs, name=name: kl_loss(name, logprobs, OLD, REF)[3], MOVED)
        for name in SAMPLE_ESTIMATORS
    }
    torch.testing.assert_close(found["k2"], found["k3"])
    assert not torch.allclose(found["k1"], found["k3"])


def test_a_far_ratio_gives_a_finite_loss() -> None:
    far = torch.tensor([-80.0, 0.0])
    for name in SAMPLE_ESTIMATORS:
        assert torch.isfinite(kl_loss(name, far, far.flip(0), far)).all()
        assert torch.isfinite(kl_loss(name, far, far.flip(0), far.flip(0))).all()
