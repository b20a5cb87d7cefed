"""From raw scores to scores: in which order, and by which moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_lightning.rollouts.reward_shaping import RewardShaper, RunningMoments
from rlhf_lightning.rollouts.settings import LearnedReward

MakeReward = Callable[..., LearnedReward]


def batches(*sizes: int, seed: int = 0) -> list[Tensor]:
    """Numbers around 1000, where a sum of squares would lose its digits."""
    generator = torch.Generator().manual_seed(seed)
    return [1000.0 + 0.5 * torch.randn(size, generator=generator) for size in sizes]


@pytest.mark.parametrize("sizes", [(1,), (7,), (1, 1, 1), (3, 50, 1, 8), (64, 0, 64)])
def test_running_moments_are_those_of_all_numbers_at_once(sizes: tuple[int, ...]) -> None:
    moments = RunningMoments()
    parts = batches(*sizes)
    for part in parts:
        moments.add(part)
    everything = torch.cat(parts).double().numpy()
    assert moments.count == len(everything)
    assert moments.mean == pytest.approx(np.mean(everything), rel=1e-12)
    assert moments.std == pytest.approx(np.std(everything), rel=1e-6, abs=1e-12)


def test_before_anything_was_seen_there_is_no_spread() -> None:
    assert (RunningMoments().count, RunningMoments().std) == (0, 0.0)


def test_running_moments_go_on_where_they_were_left() -> None:
    first, second = batches(20, 30)
    whole, early, late = RunningMoments(), RunningMoments(), RunningMoments()
    whole.add(first)
    whole.add(second)
    early.add(first)
    late.load_state_dict(early.state_dict())
    late.add(second)
    assert late.state_dict() == whole.state_dict()


RAW = torch.tensor([2.0, -4.0, 0.5, 6.0])
LENGTHS = torch.tensor([3, 1, 10, 2])
FINISHED = torch.tensor([True, True, True, False])


def test_scores_pass_through_where_nothing_is_asked_for(make_reward: MakeReward) -> None:
    assert torch.equal(RewardShaper(make_reward(), None).shape(RAW, LENGTHS, FINISHED), RAW)


def test_scale_then_clip_then_length_then_penalty(make_reward: MakeReward) -> None:
    shaper = RewardShaper(make_reward(scale=2.0, clip=5.0, length_penalty=0.1), -1.0)
    # 4, -8, 1, 12, within 5: 4, -5, 1, 5; less a tenth of 3, 1, 10 tokens; -1 for the one that did not end itself.
    torch.testing.assert_close(shaper.shape(RAW, LENGTHS, FINISHED), torch.tensor([3.7, -5.1, 0.0, -1.0]))


def test_a_negative_penalty_rewards_length(make_reward: MakeReward) -> None:
    shaped = RewardShaper(make_reward(length_penalty=-0.5), None).shape(RAW, LENGTHS, FINISHED)
    torch.testing.assert_close(shaped, RAW + 0.5 * LENGTHS)


def test_running_normalization_uses_everything_so_far(make_reward: MakeReward) -> None:
    shaper = RewardShaper(make_reward(running_normalization=True, scale=3.0), None)
    first, second = batches(16, 16)
    everything = torch.ones(16, dtype=torch.bool)
    lengths = torch.ones(16, dtype=torch.long)
    one = shaper.shape(first, lengths, everything).numpy()
    assert np.allclose(one, 3 * (first.numpy() - first.double().numpy().mean()) / np.std(first.numpy()), atol=2e-3)
    assert one.std() == pytest.approx(3.0, rel=1e-3)
    seen = torch.cat([first, second]).double().numpy()
    two = shaper.shape(second, lengths, everything).numpy()
    assert np.allclose(two, 3 * (second.numpy() - seen.mean()) / seen.std(), atol=2e-3)


def test_what_unfinished_responses_score_moves_the_moments_only_where_it_counts(make_reward: MakeReward) -> None:
    replaced, counted = (RewardShaper(make_reward(running_normalization=True), penalty) for penalty in (-1.0, None))
    replaced.shape(RAW, LENGTHS, FINISHED)
    counted.shape(RAW, LENGTHS, FINISHED)
    # 2, -4 and 0.5; with 6, the fourth.
    assert replaced.moments.mean == pytest.approx(-0.5)
    assert counted.moments.mean == pytest.approx(1.125)


def test_a_constant_reward_is_not_divided_by_its_spread(make_reward: MakeReward) -> None:
    shaper = RewardShaper(make_reward(running_normalization=True), None)
    shaped = shaper.shape(torch.full((4,), 7.0), LENGTHS, FINISHED)
    assert shaped.tolist() == [0.0] * 4


def test_the_moments_are_carried_over(make_reward: MakeReward) -> None:
    settings = make_reward(running_normalization=True)
    whole, early, late = (RewardShaper(settings, -1.0) for _ in range(3))
    whole.shape(RAW, LENGTHS, FINISHED)
    early.shape(RAW, LENGTHS, FINISHED)
    late.load_state_dict(early.state_dict())
    assert torch.equal(late.shape(2 * RAW, LENGTHS, FINISHED), whole.shape(2 * RAW, LENGTHS, FINISHED))
