"""The frozen reference never changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.models.reference import FrozenReference

MakeModel = Callable[..., PreTrainedModel]
Padded = Callable[..., tuple[Tensor, Tensor]]

ROWS = [([5, 9], [12, 1]), ([11], [20, 30, 1])]


def test_a_copy_says_what_the_policy_says(make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy()
    sequences, mask = padded(ROWS, 2, 3, 0)
    reference = FrozenReference.copy_of(policy).logprobs(sequences, mask, 3, 0.7)
    torch.testing.assert_close(reference, ActorCritic(policy)(sequences, mask, 3, 0.7).logprobs, atol=5e-6, rtol=0)
    assert not reference.requires_grad


def test_training_the_policy_leaves_the_reference_as_it_was(make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy()
    reference = FrozenReference.copy_of(policy)
    sequences, mask = padded(ROWS, 2, 3, 0)
    before, fingerprint = reference.logprobs(sequences, mask, 3, 1.0), reference.fingerprint()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    (-ActorCritic(policy)(sequences, mask, 3, 1.0).logprobs.sum()).backward()
    optimizer.step()
    assert (ActorCritic(policy)(sequences, mask, 3, 1.0).logprobs - before).abs().max() > 0.1
    torch.testing.assert_close(reference.logprobs(sequences, mask, 3, 1.0), before, atol=5e-6, rtol=0)
    assert reference.fingerprint() == fingerprint


def test_the_reference_is_frozen_and_the_policy_is_not(make_policy: MakeModel) -> None:
    policy = make_policy()
    reference = FrozenReference.copy_of(policy)
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_the_fingerprint_notices_a_single_bit(make_policy: MakeModel) -> None:
    reference = FrozenReference(make_policy())
    fingerprint = reference.fingerprint()
    assert FrozenReference(make_policy()).fingerprint() == fingerprint
    weight = next(reference.model.parameters())
    with torch.no_grad():
        weight.view(-1)[3] = torch.nextafter(weight.view(-1)[3], torch.tensor(float("inf")))
    assert reference.fingerprint() != fingerprint


def test_half_precision_weights_have_a_fingerprint_too(make_policy: MakeModel) -> None:
    half = FrozenReference(make_policy().to(torch.bfloat16))  # type: ignore[arg-type]
    assert half.fingerprint() != FrozenReference(make_policy()).fingerprint()
