"""One forward for log-probs and values: padding cannot be felt, heads start where they should, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.models.actor_critic import ActorCritic, SeparateCritic, ValueHead, response_logits
from rlhf_lightning.models.classifier import Classifier

MakeModel = Callable[..., PreTrainedModel]
Padded = Callable[..., tuple[Tensor, Tensor]]

EOS = 1
ROWS = [([5, 9, 7], [12, 30, 8, EOS]), ([11], [20, EOS]), ([6, 6, 40, 33, 21], [17, 18, 19])]
"""(prompt, response); the last response did not end itself."""


def with_random_value_head(actor_critic: ActorCritic) -> ActorCritic:
    """A head of zeros would hide every mistake in the values."""
    head = actor_critic.value_head if actor_critic.critic is None else actor_critic.critic.head
    assert head is not None
    torch.manual_seed(7)
    torch.nn.init.normal_(head.linear.weight)
    return actor_critic


@pytest.fixture(params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("critic", ["policy_trunk", "separate"])
@pytest.mark.parametrize("pad", [0, EOS])
def test_padding_and_batch_mates_change_no_logprob_and_no_value(
    kind: str, pad: int, critic: str, make_policy: MakeModel, padded: Padded
) -> None:
    policy = make_policy(kind)
    separate = SeparateCritic.from_policy(make_policy(kind, seed=1)) if critic == "separate" else None
    model = with_random_value_head(ActorCritic(policy, separate))
    # All three together, with two more pads on the left and three more on the right than any of them needs.
    together = model(*padded(ROWS, 7, 7, pad), 7, 0.7, with_entropy=True)
    for row, (prompt, response) in enumerate(ROWS):
        alone = model(
            *padded([(prompt, response)], len(prompt), len(response), pad), len(response), 0.7, with_entropy=True
        )
        for with_pads, without in zip(together[:3], alone[:3], strict=True):
            difference = with_pads[row, : len(response)] - without[0]
            assert difference.abs().max() < 1e-5
            assert difference.mean().abs() < 2e-6
        # The test would be worthless if the model said the same of every token.
        assert alone.logprobs.std() > 0.1
        assert alone.values.std() > 0.1


def test_response_logits_are_those_of_the_whole_forward(kind: str, make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy(kind)
    sequences, mask = padded([ROWS[0]], 3, 4, 0)
    logits, hidden = response_logits(policy, sequences, mask, 4)
    whole = policy(sequences, output_hidden_states=True)
    # The token at position t is predicted at t - 1: the response stands at 3 ... 6.
    torch.testing.assert_close(logits, whole.logits[:, 2:6])
    torch.testing.assert_close(hidden, whole.hidden_states[-1][:, 2:6])


def test_logprobs_of_the_sampled_tokens_by_index(kind: str, make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy(kind)
    prompt, response = ROWS[0]
    outputs = ActorCritic(policy)(*padded([(prompt, response)], 3, 4, 0), 4, 0.5)
    logprobs = torch.log_softmax(policy(torch.tensor([[*prompt, *response]])).logits[0] / 0.5, dim=-1)
    expected = [logprobs[len(prompt) - 1 + step, token] for step, token in enumerate(response)]
    torch.testing.assert_close(outputs.logprobs[0], torch.stack(expected))
    assert outputs.entropies is None
    assert outputs.kl is None


def test_the_head_of_the_model_is_left_without_hooks(make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy()
    response_logits(policy, *padded(ROWS, 5, 4, 0), 4)
    assert not policy.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("critic", ["policy_trunk", "separate"])
def test_values_start_at_exactly_0(kind: str, critic: str, make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy(kind)
    model = ActorCritic(policy, SeparateCritic.from_policy(policy) if critic == "separate" else None)
    assert not model(*padded(ROWS, 5, 4, 0), 4, 1.0).values.any()


def test_the_first_value_gradient_is_not_0(make_policy: MakeModel, padded: Padded) -> None:
    # Zero weights must not mean zero gradients: the head itself learns from the first step on.
    model = ActorCritic(make_policy())
    (model(*padded(ROWS, 5, 4, 0), 4, 1.0).values - 1.0).square().sum().backward()
    assert model.value_head is not None
    assert model.value_head.linear.weight.grad is not None
    assert model.value_head.linear.weight.grad.abs().max() > 0.1


def test_a_value_is_that_of_the_state_before_its_token(make_policy: MakeModel, padded: Padded) -> None:
    model = with_random_value_head(ActorCritic(make_policy()))
    prompt, response = ROWS[0]
    values = model(*padded([(prompt, response)], 3, 4, 0), 4, 1.0).values
    last_changed = model(*padded([(prompt, [*response[:-1], 44])], 3, 4, 0), 4, 1.0).values
    torch.testing.assert_close(values, last_changed)
    first_changed = model(*padded([(prompt, [44, *response[1:]])], 3, 4, 0), 4, 1.0).values
    torch.testing.assert_close(values[:, :1], first_changed[:, :1])
    assert ((values - first_changed)[:, 1:].abs() > 1e-4).all()


def test_a_separate_critic_is_a_copy(make_policy: MakeModel) -> None:
    policy = make_policy()
    critic = SeparateCritic.from_policy(policy)
    shared = {id(parameter) for parameter in policy.parameters()} & {id(p) for p in critic.parameters()}
    assert not shared
    torch.nn.init.zeros_(next(critic.trunk.parameters()))
    assert next(policy.parameters()).any()


def test_a_critic_from_a_reward_model_repeats_its_standardized_score(
    kind: str, make_reward_model: MakeModel, make_policy: MakeModel, padded: Padded, words: PreTrainedTokenizerFast
) -> None:
    reward_model: Any = make_reward_model(kind)
    reward_model.score = torch.nn.Linear(16, 1)  # with a bias, as some reward models have it
    critic = SeparateCritic.from_reward_model(reward_model, mean=0.7, std=2.5)
    # The value of the whole sequence is what the critic says before one more token.
    extended = [(prompt, [*response, 9]) for prompt, response in ROWS]
    values = ActorCritic(make_policy(kind), critic)(*padded(extended, 6, 6, 0), 6, 1.0).values
    scores = Classifier(reward_model, words, positive=0).logits_of_ids(
        [[*prompt, *response] for prompt, response in ROWS]
    )
    for row, (_, response) in enumerate(ROWS):
        assert values[row, len(response)].item() == pytest.approx((scores[row, 0].item() - 0.7) / 2.5, abs=1e-5)
    assert scores.std() > 0.1


def test_a_two_class_reward_model_is_refused_as_a_critic(make_reward_model: MakeModel) -> None:
    with pytest.raises(ArtifactError, match="one linear score") as raised:
        SeparateCritic.from_reward_model(make_reward_model(labels=("rejected", "chosen")), mean=0.0, std=1.0)
    assert raised.value.fix is not None
    assert "reward_model.head=scalar" in raised.value.fix


def test_a_value_head_of_half_precision_hidden_states_is_float32() -> None:
    head = ValueHead(4)
    torch.nn.init.ones_(head.linear.weight)
    values = head(torch.ones(1, 2, 4, dtype=torch.bfloat16))
    assert values.dtype == torch.float32
    assert values.tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_opened_by_plain_transformers(
    kind: str, tied: bool, make_policy: MakeModel, tmp_path: Path
) -> None:
    policy = make_policy(kind, tie_word_embeddings=tied)
    model = with_random_value_head(ActorCritic(policy))
    model.policy.save_pretrained(tmp_path)
    model.save_critic(tmp_path)
    load: Any = AutoModelForCausalLM.from_pretrained
    opened, info = load(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor([[5, 9, 7, 12]])
    torch.testing.assert_close(opened(ids).logits, policy(ids).logits, atol=5e-6, rtol=0)
    assert model.value_head is not None
    saved = load_file(tmp_path / "value_head.safetensors")
    assert saved.keys() == {"linear.weight", "linear.bias"}
    assert torch.equal(saved["linear.weight"], model.value_head.linear.weight)


def test_a_separate_critic_is_saved_beside_the_policy(kind: str, make_policy: MakeModel, tmp_path: Path) -> None:
    critic = SeparateCritic.from_policy(make_policy(kind, seed=1))
    model = with_random_value_head(ActorCritic(make_policy(kind), critic))
    model.policy.save_pretrained(tmp_path)
    model.save_critic(tmp_path)
    ids = torch.tensor([[5, 9, 7, 12, 30]])
    head = ValueHead(16)
    head.load_state_dict(load_file(tmp_path / "value_head.safetensors"))
    hidden = AutoModel.from_pretrained(tmp_path / "critic")(ids).last_hidden_state
    # Of five tokens, the values before the last two are read at positions 2 and 3.
    torch.testing.assert_close(head(hidden)[:, 2:4], critic(ids, torch.ones_like(ids), 2))
