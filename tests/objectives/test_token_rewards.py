"""Where the score lands and what the KL costs, token by token."""

from __future__ import annotations

import torch

from rlhf_lightning.objectives.advantages import replace_unfinished, token_rewards

NAN = float("nan")


def test_the_score_lands_on_the_last_response_token_and_nowhere_else() -> None:
    # Three responses of 2, 3 and 1 tokens; the first ends with EOS at position 1, and position 2 is padding.
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    rewards = token_rewards(torch.tensor([5.0, 7.0, 9.0]), torch.zeros(3, 3), mask, kl_coef=0.5)
    assert rewards.tolist() == [[0.0, 5.0, 0.0], [0.0, 0.0, 7.0], [9.0, 0.0, 0.0]]


def test_each_response_token_pays_for_its_kl() -> None:
    # -0.5 * kl on the response's tokens, and the score 5 on the second: -0.5, 5 - 1. Padding pays nothing, even for
    # NaN.
    kl = torch.tensor([[1.0, 2.0, NAN]])
    rewards = token_rewards(torch.tensor([5.0]), kl, torch.tensor([[True, True, False]]), kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, 4.0, 0.0]]


def test_an_unfinished_response_is_scored_on_its_last_token() -> None:
    # It fills the whole width: there is no EOS, and no padding after it.
    rewards = token_rewards(torch.tensor([-1.0]), torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), kl_coef=0.1)
    assert rewards.tolist() == [[0.0, 0.0, 0.0, -1.0]]


def test_an_empty_response_gets_nothing_and_disturbs_nobody() -> None:
    mask = torch.tensor([[False, False], [True, True]])
    rewards = token_rewards(torch.tensor([3.0, 4.0]), torch.ones(2, 2), mask, kl_coef=1.0)
    assert rewards.tolist() == [[0.0, 0.0], [-1.0, 3.0]]


def test_a_replys_rewards_sum_to_its_score_less_its_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, kl = torch.randn(6, generator=generator), torch.randn(6, 5, generator=generator)
    mask = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
    total = token_rewards(scores, kl, mask, kl_coef=0.3).sum(dim=1)
    torch.testing.assert_close(total, scores - 0.3 * (kl * mask).sum(dim=1))


def test_the_inputs_are_left_as_they_were() -> None:
    kl, scores = torch.ones(1, 2), torch.tensor([2.0])
    token_rewards(scores, kl, torch.ones(1, 2, dtype=torch.bool), kl_coef=1.0)
    assert kl.tolist() == [[1.0, 1.0]]
    assert scores.tolist() == [2.0]


def test_an_unfinished_response_gets_the_penalty_instead_of_its_score() -> None:
    # Instead of, not on top of: 9 becomes -1, not 8.
    scores, finished = torch.tensor([3.0, 9.0]), torch.tensor([True, False])
    assert replace_unfinished(scores, finished, -1.0).tolist() == [3.0, -1.0]


def test_a_penalty_of_zero_is_a_penalty_and_none_is_not() -> None:
    scores, finished = torch.tensor([3.0, 9.0]), torch.tensor([True, False])
    assert replace_unfinished(scores, finished, 0.0).tolist() == [3.0, 0.0]
    assert replace_unfinished(scores, finished, None).tolist() == [3.0, 9.0]
