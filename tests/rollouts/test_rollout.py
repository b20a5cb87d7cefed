"""Cutting and joining rollouts changes their padding and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.rollouts.buffer import Rollout, concatenate

MakeRollout = Callable[..., Rollout]

PER_TOKEN = [
    "sampled_logprobs",
    "logprobs",
    "reference_logprobs",
    "kl",
    "values",
    "rewards",
    "advantages",
    "returns",
]


def real(rollout: Rollout, name: str, row: int) -> Tensor:
    """A row's figures at its response's tokens."""
    tensor: Tensor = getattr(rollout, name)[row]
    return tensor[rollout.response_mask[row]]


def assert_same_rows(one: Rollout, rows: list[int], other: Rollout) -> None:
    """Row i of `other` is row rows[i] of `one`, padding aside."""
    assert len(other) == len(rows)
    for there, here in enumerate(rows):
        assert other.scores[there] == one.scores[here]
        assert other.raw_scores[there] == one.raw_scores[here]
        assert other.finished[there] == one.finished[here]
        tokens = [part.sequences[row][part.attention_mask[row].bool()] for part, row in ((one, here), (other, there))]
        assert torch.equal(*tokens)
        for name in PER_TOKEN:
            assert torch.equal(real(one, name, here), real(other, name, there)), name


def test_selected_rows_are_cut_to_their_longest_prompt_and_response(make_rollout: MakeRollout) -> None:
    rollout = make_rollout([2, 5, 3, 1], [4, 1, 2, 6])
    selected = rollout.select(torch.tensor([2, 0]))
    assert selected.sequences.shape == selected.attention_mask.shape == (2, 3 + 4)
    assert selected.response_mask.shape == selected.advantages.shape == (2, 4)
    assert selected.response_length == 4
    assert_same_rows(rollout, [2, 0], selected)
    # Whole columns of padding are gone: each is real in at least one row.
    assert selected.attention_mask.any(dim=0).all()


def test_selecting_leaves_the_rollout_as_it_was(make_rollout: MakeRollout) -> None:
    rollout = make_rollout([2, 5], [4, 1])
    rollout.select(torch.tensor([1])).advantages.zero_()
    assert_same_rows(make_rollout([2, 5], [4, 1]), [0, 1], rollout)


def test_an_empty_response_keeps_one_column(make_rollout: MakeRollout) -> None:
    selected = make_rollout([2, 2], [0, 3]).select(torch.tensor([0]))
    assert selected.response_mask.tolist() == [[False]]
    assert selected.sequences.shape == (1, 3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_cutting_changes_no_logprob(
    kind: str, make_policy: Callable[..., PreTrainedModel], make_rollout: MakeRollout
) -> None:
    rollout = make_rollout([2, 5, 3, 1], [4, 1, 2, 6])
    rollout = replace(rollout, sequences=rollout.sequences % 50)
    model = ActorCritic(make_policy(kind))
    whole = model(rollout.sequences, rollout.attention_mask, rollout.response_length, 0.7).logprobs
    for rows in ([0], [1], [2, 0], [3, 1]):
        part = rollout.select(torch.tensor(rows))
        cut = model(part.sequences, part.attention_mask, part.response_length, 0.7).logprobs
        torch.testing.assert_close(cut[part.response_mask], whole[rows][rollout.response_mask[rows]], atol=1e-5, rtol=0)


def test_joined_rollouts_are_padded_to_common_lengths(make_rollout: MakeRollout) -> None:
    one, other = make_rollout([2, 4], [3, 2]), make_rollout([1, 6, 2], [5, 1, 1], seed=1)
    joined = concatenate([one, other], pad_id=49)
    assert joined.sequences.shape == joined.attention_mask.shape == (5, 6 + 5)
    assert joined.response_mask.shape == (5, 5)
    assert_same_rows(joined, [0, 1], one)
    assert_same_rows(joined, [2, 3, 4], other)
    # What was added is padding, on the left of prompts and on the right of responses.
    assert (joined.sequences[:2, :2] == 49).all()
    assert (joined.sequences[:2, 9:] == 49).all()
    assert not joined.attention_mask[:2, :2].any()
    assert not joined.response_mask[:2, 3:].any()
    assert not joined.rewards[:2, 3:].any()


def test_one_rollout_joined_is_itself(make_rollout: MakeRollout) -> None:
    rollout = make_rollout([2, 4], [3, 2])
    joined = concatenate([rollout], pad_id=0).tensors()
    for name, tensor in rollout.tensors().items():
        assert torch.equal(joined[name], tensor)


def with_states(rollout: Rollout, seed: int = 0) -> Rollout:
    """With trunk states of three dimensions that say which token they belong to."""
    states = torch.randn(*rollout.sequences.shape, 3, generator=torch.Generator().manual_seed(seed))
    states[..., 0] = rollout.sequences
    return replace(rollout, trunk_states=states)


def states_of(rollout: Rollout, row: int) -> Tensor:
    """At a row's real tokens."""
    assert rollout.trunk_states is not None
    return rollout.trunk_states[row][rollout.attention_mask[row].bool()]


def test_trunk_states_are_cut_with_their_tokens(make_rollout: MakeRollout) -> None:
    rollout = with_states(make_rollout([2, 5, 3, 1], [4, 1, 2, 6]))
    selected = rollout.select(torch.tensor([2, 0]))
    assert selected.trunk_states is not None
    assert selected.trunk_states.shape == (2, 3 + 4, 3)
    for there, here in enumerate([2, 0]):
        assert torch.equal(states_of(selected, there), states_of(rollout, here))


def test_trunk_states_are_joined_with_their_tokens(make_rollout: MakeRollout) -> None:
    one = with_states(make_rollout([2, 4], [3, 2]))
    other = with_states(make_rollout([1, 6, 2], [5, 1, 1], seed=1), seed=1)
    joined = concatenate([one, other], pad_id=49)
    assert joined.trunk_states is not None
    assert joined.trunk_states.shape == (5, 6 + 5, 3)
    for row, (part, place) in enumerate([(one, 0), (one, 1), (other, 0), (other, 1), (other, 2)]):
        assert torch.equal(states_of(joined, row), states_of(part, place))
        real = joined.attention_mask[row].bool()
        assert torch.equal(joined.trunk_states[row, real, 0], joined.sequences[row, real].float())


def test_trunk_states_move_with_the_rollout(make_rollout: MakeRollout) -> None:
    moved = with_states(make_rollout([2], [3])).to("meta")
    assert moved.trunk_states is not None
    assert moved.trunk_states.device.type == "meta"
    assert make_rollout([2], [3]).to("cpu").trunk_states is None
