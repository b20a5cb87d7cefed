"""Pads on either side, of whatever token, and batch-mates change no score, no value and no log-prob."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.models.actor_critic import ActorCritic, SeparateCritic
from rlhf_lightning.models.classifier import Classifier
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.sampler import SampledResponse, Sampler
from rlhf_lightning.rollouts.scoring import RewardModelScorer

MakeModel = Callable[..., PreTrainedModel]
MakeWords = Callable[..., PreTrainedTokenizerFast]
Padded = Callable[..., tuple[Tensor, Tensor]]

EOS = 1
ROWS = [
    ((5, 9, 7), (12, 30, 8, EOS)),
    ((11,), (20, EOS)),
    ((6, 6, 40, 33, 21), (17, 18, 19)),
    ((4, EOS, 4), (EOS,)),
    ((8, 9), (44, 45, 46, 47, EOS)),
]
"""(prompt, response); a prompt holds the end-of-sequence token, and a response does not."""
PADDINGS = [(5, 5, 0), (5, 5, EOS), (9, 5, EOS), (5, 8, EOS), (11, 9, 0)]
"""Columns of prompts and of responses, and the token that fills them."""


def assert_same(differences: list[Tensor]) -> None:
    """Neither a large difference nor a small one that is always on the same side."""
    everything = torch.cat(differences)
    assert everything.abs().max() < 1e-5
    assert everything.mean().abs() < 1e-6


@pytest.fixture(params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def with_value_head(model: ActorCritic) -> ActorCritic:
    """A head of zeros would hide every mistake in the values."""
    head: Any = model.value_head if model.critic is None else model.critic.head
    torch.manual_seed(7)
    torch.nn.init.normal_(head.linear.weight)
    return model.eval()


@pytest.mark.parametrize(("prompt_width", "response_width", "pad"), PADDINGS)
@pytest.mark.parametrize("separate", [False, True], ids=["trunk", "separate"])
@torch.no_grad()
def test_policy_critic_and_reference(
    separate: bool, prompt_width: int, response_width: int, pad: int, kind: str, make_policy: MakeModel, padded: Padded
) -> None:
    critic = SeparateCritic.from_policy(make_policy(kind, seed=1)) if separate else None
    model = with_value_head(ActorCritic(make_policy(kind), critic))
    reference = FrozenReference(make_policy(kind, seed=2))
    inputs = *padded(ROWS, prompt_width, response_width, pad), response_width
    together = model(*inputs, 0.7, with_entropy=True, reference_logits=reference.logits(*inputs))
    theirs = reference.logprobs(*inputs, 0.7)
    logprobs, values, entropies, kl, references = ([] for _ in range(5))
    for row, (prompt, response) in enumerate(ROWS):
        length = len(response)
        alone_inputs = *padded([(prompt, response)], len(prompt), length, pad), length
        alone = model(*alone_inputs, 0.7, with_entropy=True, reference_logits=reference.logits(*alone_inputs))
        logprobs.append(together.logprobs[row, :length] - alone.logprobs[0])
        values.append(together.values[row, :length] - alone.values[0])
        entropies.append(together.entropies[row, :length] - alone.entropies[0])
        kl.append(together.kl[row, :length] - alone.kl[0])
        references.append(theirs[row, :length] - reference.logprobs(*alone_inputs, 0.7)[0])
    for differences in (logprobs, values, entropies, kl, references):
        assert_same(differences)
    # What depends on nothing would be the same, too.
    assert together.logprobs.std() > 0.1
    assert together.values.std() > 0.1


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
@torch.no_grad()
def test_reward_model(kind: str, pad: str, make_reward_model: MakeModel, make_words: MakeWords) -> None:
    model = make_reward_model(kind)
    scorer = RewardModelScorer(Classifier(model, make_words(pad=pad), 0), None)
    responses = [SampledResponse(Prompt("w"), prompt, response, "", response[-1] == EOS) for prompt, response in ROWS]
    together = scorer.score(responses)
    by_itself = torch.cat([scorer.score([response]) for response in responses])
    assert_same([together - by_itself])
    # And without the package: the head on the last token's hidden state of the bare sequence.
    head: Any = model.score
    for (prompt, response), score in zip(ROWS, together.tolist(), strict=True):
        hidden = model.base_model(torch.tensor([[*prompt, *response]])).last_hidden_state
        assert score == pytest.approx(head(hidden[0, -1]).item(), abs=1e-5)
    assert together.std() > 0.1


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_sampling(kind: str, pad: str, make_policy: MakeModel, make_words: MakeWords) -> None:
    policy = make_policy(kind)
    policy.generation_config.eos_token_id = [EOS, *range(40, 50)]
    sampler = Sampler(policy, make_words(pad=pad), temperature=0.7, max_new_tokens=6, seed=5)
    asked = [EncodedPrompt(Prompt("w"), prompt) for prompt, _ in ROWS * 4]
    together = sampler.sample(asked, range(20))
    differences = []
    for number, prompt in enumerate(asked):
        alone = sampler.sample([prompt], [number])
        assert alone.responses[0] == together.responses[number]
        length = len(alone.responses[0].response_ids)
        differences.append(together.logprobs[number, :length] - alone.logprobs[0, :length])
        # What is real is told by the mask, never by the tokens.
        real = together.sequences[number][together.attention_mask[number].bool()].tolist()
        assert real == [*prompt.prompt_ids, *alone.responses[0].response_ids]
    assert_same(differences)
    assert {done.finished for done in together.responses} == {True, False}
