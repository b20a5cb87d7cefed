"""Losses on pairs of replies, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.objectives.preference import bradley_terry_loss, centring_loss, classification_loss

NO_MARGIN = torch.zeros(1)


def test_equal_rewards_cost_ln_2() -> None:
    loss = bradley_terry_loss(torch.tensor([3.0]), torch.tensor([3.0]), NO_MARGIN)
    assert loss.item() == pytest.approx(math.log(2.0))


def test_a_lead_of_ln_3_is_right_three_times_of_four() -> None:
    loss = bradley_terry_loss(torch.tensor([1.0 + math.log(3.0)]), torch.tensor([1.0]), NO_MARGIN)
    assert loss.item() == pytest.approx(-math.log(0.75))
    loss = bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0 + math.log(3.0)]), NO_MARGIN)
    assert loss.item() == pytest.approx(-math.log(0.25))


def test_the_margin_is_what_the_lead_has_to_reach() -> None:
    loss = bradley_terry_loss(torch.tensor([2.0, 2.0]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]))
    assert loss.tolist() == pytest.approx([math.log(2.0), math.log(1.0 + math.exp(-2.0))])


def test_a_hopeless_pair_costs_a_finite_amount() -> None:
    loss = bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]), NO_MARGIN)
    assert loss.item() == pytest.approx(1000.0)


def test_centring_pulls_the_sum_of_a_pair_to_0() -> None:
    losses = centring_loss(torch.tensor([1.0, 1.0, 3.0]), torch.tensor([-1.0, 1.0, 0.0]))
    assert losses.tolist() == [0.0, 4.0, 9.0]


@pytest.mark.parametrize("positive", [0, 1])
def test_classification_of_both_replies_by_hand(positive: int) -> None:
    # The preferred reply has odds 3 to 1 for the positive class, the other 4 to 1 for it.
    chosen, rejected = torch.zeros(1, 2), torch.zeros(1, 2)
    chosen[0, positive], rejected[0, positive] = math.log(3.0), math.log(4.0)
    loss = classification_loss(chosen, rejected, positive)
    assert loss.tolist() == pytest.approx([-math.log(0.75) - math.log(0.2)])


def test_classification_without_knowledge_costs_ln_2_twice() -> None:
    loss = classification_loss(torch.zeros(3, 2), torch.zeros(3, 2), positive=1)
    assert loss.tolist() == pytest.approx([2.0 * math.log(2.0)] * 3)
