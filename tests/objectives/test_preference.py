"""Losses on pairs of responses, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from rlhf_lightning.objectives.preference import bradley_terry_loss, centering_loss, classification_loss

NO_MARGIN = torch.zeros(1)
LN_3 = math.log(3.0)
SOFT = torch.tensor([0.75])
ENTROPY = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
"""Of a label of 3 to 1: what the best prediction still costs."""


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


def test_centering_pulls_the_sum_of_a_pair_to_0() -> None:
    losses = centering_loss(torch.tensor([1.0, 1.0, 3.0]), torch.tensor([-1.0, 1.0, 0.0]))
    assert losses.tolist() == [0.0, 4.0, 9.0]


@pytest.mark.parametrize("positive", [0, 1])
def test_classification_of_both_responses_by_hand(positive: int) -> None:
    # The preferred response has odds 3 to 1 for the positive class, the other 4 to 1 for it.
    chosen, rejected = torch.zeros(1, 2), torch.zeros(1, 2)
    chosen[0, positive], rejected[0, positive] = math.log(3.0), math.log(4.0)
    loss = classification_loss(chosen, rejected, positive)
    assert loss.tolist() == pytest.approx([-math.log(0.75) - math.log(0.2)])


def test_classification_without_knowledge_costs_ln_2_twice() -> None:
    loss = classification_loss(torch.zeros(3, 2), torch.zeros(3, 2), positive=1)
    assert loss.tolist() == pytest.approx([2.0 * math.log(2.0)] * 3)


def test_a_soft_label_costs_its_entropy_where_the_lead_says_the_same() -> None:
    # sigmoid(ln 3) = 3/4: -3/4 ln 3/4 - 1/4 ln 1/4.
    loss = bradley_terry_loss(torch.tensor([LN_3]), torch.zeros(1), NO_MARGIN, SOFT)
    assert loss.item() == pytest.approx(ENTROPY, rel=1e-6)
    # The opposite lead: the two logarithms change places.
    loss = bradley_terry_loss(torch.zeros(1), torch.tensor([LN_3]), NO_MARGIN, SOFT)
    assert loss.item() == pytest.approx(-0.75 * math.log(0.25) - 0.25 * math.log(0.75), rel=1e-6)


@pytest.mark.parametrize(
    ("lead", "slope"),
    # d/dd of the cross-entropy is sigmoid(d) - p.
    [(LN_3, 0.0), (0.0, 0.5 - 0.75), (-LN_3, 0.25 - 0.75), (math.log(9.0), 0.9 - 0.75)],
)
def test_a_soft_label_pulls_the_lead_to_what_it_says(lead: float, slope: float) -> None:
    chosen, rejected = torch.tensor([lead], requires_grad=True), torch.zeros(1, requires_grad=True)
    bradley_terry_loss(chosen, rejected, NO_MARGIN, SOFT).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(slope, abs=1e-7)
    assert rejected.grad.item() == pytest.approx(-slope, abs=1e-7)


def test_even_odds_ask_for_equal_rewards_whichever_response_comes_first() -> None:
    leads = torch.tensor([LN_3, 0.0, -LN_3])
    losses = bradley_terry_loss(leads, torch.zeros(3), torch.zeros(3), torch.full((3,), 0.5))
    # Half of ln 4/3 + ln 4 on both sides, and ln 2 between.
    beside = 0.5 * (math.log(4.0 / 3.0) + math.log(4.0))
    assert losses.tolist() == pytest.approx([beside, math.log(2.0), beside])


def test_a_soft_label_with_a_margin() -> None:
    margin = torch.full((2,), LN_3)
    losses = bradley_terry_loss(torch.tensor([0.0, LN_3]), torch.zeros(2), margin, SOFT.expand(2))
    # Equal rewards miss a margin of ln 3 either way: -ln sigmoid(-ln 3) = ln 4, whatever the label.
    # A lead of ln 3 just reaches it: ln 2; the other way it misses it by ln 9: -ln sigmoid(-ln 9) = ln 10.
    assert losses.tolist() == pytest.approx([math.log(4.0), 0.75 * math.log(2.0) + 0.25 * math.log(10.0)])


def rewards_of_all_sizes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chosen, rejected and margins: leads from hopeless to out of doubt."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-3, 1.0, 30.0, 1000.0]).repeat_interleave(64)
    chosen, rejected = (sizes * torch.randn(len(sizes), generator=generator) for _ in range(2))
    return chosen, rejected, torch.rand(len(sizes), generator=generator)


def test_a_certain_label_is_the_hard_loss_bit_for_bit() -> None:
    chosen, rejected, margin = rewards_of_all_sizes()
    hard = -functional.logsigmoid(chosen - rejected - margin)
    assert torch.equal(bradley_terry_loss(chosen, rejected, margin, torch.ones(len(chosen))), hard)
    assert torch.equal(bradley_terry_loss(chosen, rejected, margin), hard)


@pytest.mark.parametrize("positive", [0, 1])
def test_two_labels_learn_a_soft_label_of_either_response(positive: int) -> None:
    # 3 to 1 that the preferred response is of the positive class, so 1 to 3 that the other one is. They have odds 3 to
    # 1 and 4 to 1 for the positive class: the first is as it should be.
    chosen, rejected = torch.zeros(1, 2), torch.zeros(1, 2)
    chosen[0, positive], rejected[0, positive] = LN_3, math.log(4.0)
    loss = classification_loss(chosen, rejected, positive, SOFT)
    assert loss.item() == pytest.approx(ENTROPY - 0.25 * math.log(0.8) - 0.75 * math.log(0.2))


@pytest.mark.parametrize("positive", [0, 1])
def test_two_labels_have_no_slope_where_both_responses_are_as_the_label_says(positive: int) -> None:
    chosen, rejected = torch.zeros(1, 2), torch.zeros(1, 2)
    chosen[0, positive], rejected[0, 1 - positive] = LN_3, LN_3
    chosen.requires_grad_(), rejected.requires_grad_()
    loss = classification_loss(chosen, rejected, positive, SOFT)
    loss.sum().backward()
    assert loss.item() == pytest.approx(2.0 * ENTROPY)
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.abs().max().item() == pytest.approx(0.0, abs=1e-7)
    assert rejected.grad.abs().max().item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("positive", [0, 1])
def test_two_labels_with_a_certain_label_are_the_hard_loss_bit_for_bit(positive: int) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (30.0 * torch.randn(256, 2, generator=generator) for _ in range(2))
    right, wrong = torch.full((256,), positive), torch.full((256,), 1 - positive)
    hard = functional.cross_entropy(chosen, right, reduction="none") + functional.cross_entropy(
        rejected, wrong, reduction="none"
    )
    assert torch.equal(classification_loss(chosen, rejected, positive, torch.ones(256)), hard)
    assert torch.equal(classification_loss(chosen, rejected, positive), hard)
