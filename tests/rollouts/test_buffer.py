"""The buffer's minibatches: how many, in which order, with which weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rlhf_lightning.rollouts.buffer import Minibatch, Rollout, RolloutBuffer

MakeRollout = Callable[..., Rollout]

RESPONSES = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 1, 2]


def filled(rollout: Rollout, *, iteration: int = 0, seed: int = 0, **sizes: int) -> RolloutBuffer:
    chosen = {"epochs": 2, "minibatches": 3, "micro_batch_size": 2, **sizes}
    buffer = RolloutBuffer(batch_size=12, seed=seed, **chosen)
    buffer.fill(rollout, iteration)
    return buffer


@pytest.fixture
def rollout(make_rollout: MakeRollout) -> Rollout:
    return make_rollout([2] * 12, RESPONSES)


def rows(batches: Any) -> list[int]:
    """Which rows came, in their order: row i has score i."""
    return [int(score) for batch in batches for score in batch.rollout.scores]


def test_the_number_of_micro_batches_is_known_before_it_is_filled() -> None:
    buffer = RolloutBuffer(batch_size=12, epochs=4, minibatches=3, micro_batch_size=2, seed=0)
    # Of 4 epochs 12 / 2 micro-batches each, two of which make the 4 rollouts of an optimizer step.
    assert len(buffer) == 24
    assert buffer.micro_batches_per_step == 2
    # Optimizer steps = epochs x minibatches.
    assert len(buffer) // buffer.micro_batches_per_step == 4 * 3


def test_as_many_micro_batches_come_as_were_announced(rollout: Rollout) -> None:
    for sizes in ({}, {"micro_batch_size": 4}, {"minibatches": 1, "micro_batch_size": 12}, {"epochs": 1}):
        buffer = filled(rollout, **sizes)
        batches = list(buffer)
        assert len(batches) == len(buffer)
        assert {len(batch.rollout) for batch in batches} == {buffer.micro_batch_size}


def test_every_rollout_comes_exactly_once_an_epoch(rollout: Rollout) -> None:
    batches = list(filled(rollout, epochs=3))
    for epoch in range(3):
        assert sorted(rows(batches[6 * epoch : 6 * epoch + 6])) == list(range(12))


def test_the_order_is_redrawn_each_epoch_and_each_iteration(rollout: Rollout) -> None:
    first, second = rows(filled(rollout)), rows(filled(rollout, iteration=1))
    orders = [first[:12], first[12:], second[:12], second[12:], list(range(12))]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_the_order_is_a_function_of_seed_and_iteration(rollout: Rollout) -> None:
    assert rows(filled(rollout, seed=5, iteration=3)) == rows(filled(rollout, seed=5, iteration=3))
    assert rows(filled(rollout, seed=5, iteration=3)) != rows(filled(rollout, seed=6, iteration=3))


def test_the_micro_batch_size_does_not_change_which_rollouts_make_a_step(rollout: Rollout) -> None:
    assert rows(filled(rollout, micro_batch_size=1)) == rows(filled(rollout, micro_batch_size=4))


def test_the_order_does_not_draw_from_torchs_generator(rollout: Rollout) -> None:
    state = torch.get_rng_state()
    list(filled(rollout))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_the_step_weight_is_the_response_tokens_of_the_whole_step(rollout: Rollout, micro_batch_size: int) -> None:
    batches = list(filled(rollout, micro_batch_size=micro_batch_size))
    per_step = 4 // micro_batch_size
    for start in range(0, len(batches), per_step):
        step = batches[start : start + per_step]
        assert {batch.step_weight for batch in step} == {sum(RESPONSES[row] for row in rows(step))}
        assert sum(int(batch.rollout.response_mask.sum()) for batch in step) == step[0].step_weight


def test_a_new_iteration_replaces_the_old_one(make_rollout: MakeRollout, rollout: Rollout) -> None:
    buffer = filled(rollout)
    other = make_rollout([1] * 12, [2] * 12, seed=9)
    buffer.fill(other, 1)
    assert {batch.step_weight for batch in buffer} == {8}


def test_a_dataloader_passes_micro_batches_through(rollout: Rollout) -> None:
    buffer = filled(rollout)
    loader: DataLoader[Minibatch] = DataLoader(buffer, batch_size=None)
    assert len(loader) == len(buffer)
    assert rows(loader) == rows(buffer)


def test_a_minibatch_moves_with_its_rollout(rollout: Rollout) -> None:
    batch = next(iter(filled(rollout)))
    moved = batch.to("meta")
    assert moved.rollout.sequences.device.type == moved.rollout.advantages.device.type == "meta"
    assert moved.step_weight == batch.step_weight


def test_a_buffer_that_was_not_filled_says_so() -> None:
    with pytest.raises(AssertionError, match="before the callback filled it"):
        next(iter(RolloutBuffer(batch_size=4, epochs=1, minibatches=1, micro_batch_size=4, seed=0)))


def test_a_rollout_of_another_size_is_a_defect(make_rollout: MakeRollout) -> None:
    with pytest.raises(AssertionError):
        filled(make_rollout([2] * 5, [1] * 5))
