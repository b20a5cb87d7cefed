"""Virtual tokens: PEFT's function without padding, and a padding that cannot be felt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models.actor_critic import response_logits
from rlhf_lightning.models.adapters import add_adapter, train_adapter
from rlhf_lightning.models.classifier import classifier_logits
from rlhf_lightning.models.forward_pass import checkpoint_activations
from rlhf_lightning.models.loading import disable_dropout, require_positions
from rlhf_lightning.models.virtual_tokens import (
    attach_virtual_tokens,
    vectors_of_text,
    vectors_of_vocabulary,
    virtual_tokens,
)
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.sampler import Sampler

COUNT = 3
PADDED = Callable[..., tuple[Tensor, Tensor]]
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])


@pytest.fixture
def tuned(make_policy: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """Builds frozen policies with three trainable vectors in front, drawn at random."""

    def build(kind: str = "llama", count: int = COUNT, **config: Any) -> PreTrainedModel:
        model = make_policy(kind, **config).requires_grad_(False)
        tuning = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=count)
        add_adapter(model, tuning, "policy", vectors(count))
        train_adapter(model, "policy")
        return model

    return build


def vectors(count: int = COUNT, seed: int = 1) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def encoded(*ids: int) -> EncodedPrompt:
    return EncodedPrompt(Prompt("w5"), ids)


@KINDS
def test_without_padding_it_is_what_peft_computes(
    kind: str, make_policy: Callable[..., PreTrainedModel], tuned: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """From the two files of a PEFT adapter, opened by PEFT alone on the plain model."""
    PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=COUNT).save_pretrained(str(tmp_path))
    save_file({"prompt_embeddings": vectors()}, tmp_path / "adapter_model.safetensors")
    theirs = PeftModel.from_pretrained(make_policy(kind), tmp_path)
    ids = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]])
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits[:, COUNT:]
        assert torch.allclose(tuned(kind)(input_ids=ids).logits, expected, atol=1e-6)
        assert not torch.allclose(make_policy(kind)(input_ids=ids).logits, expected, atol=1e-2)


@KINDS
def test_neither_padding_nor_what_else_is_in_the_batch_is_felt(
    kind: str, tuned: Callable[..., PreTrainedModel], padded: PADDED
) -> None:
    model = tuned(kind)
    alone, mask = padded([((5, 6), (7, 8))], 2, 2, 0)
    expected = response_logits(model, alone, mask, 2)[0]
    rows = [((5, 6), (7, 8)), ((9, 10, 11, 12, 13), (14, 15, 16)), ((20,), (21, 22, 23))]
    beside, mask = padded(rows, 6, 3, 0)
    logits, hidden = response_logits(model, beside, mask, 3)
    assert torch.allclose(logits[:1, :2], expected, atol=1e-5)
    assert hidden.shape == (3, 3, 16)


@KINDS
def test_a_classifier_reads_them_before_the_text(
    kind: str, make_reward_model: Callable[..., PreTrainedModel], padded: PADDED
) -> None:
    model = make_reward_model(kind)
    ids, mask = padded([((), (5, 6, 7)), ((), (8, 9))], 0, 5, 0)
    without = classifier_logits(model, ids, mask)
    attach_virtual_tokens(model, "reward", vectors())
    scores = classifier_logits(model, ids, mask)
    alone = classifier_logits(model, torch.tensor([[8, 9]]), torch.ones(1, 2, dtype=torch.long))
    assert torch.allclose(scores[1:], alone, atol=1e-5)
    assert not torch.allclose(scores, without, atol=1e-2)


@KINDS
def test_generation_with_a_cache_equals_generation_without(kind: str, tuned: Callable[..., PreTrainedModel]) -> None:
    generate: Any = tuned(kind, eos_token_id=None).generate
    ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached, uncached = (generate(ids, **settings, use_cache=use_cache) for use_cache in (True, False))
    assert cached.shape == (2, 12)
    assert torch.equal(cached, uncached)
    alone = generate(ids[:1, 2:], **settings | {"attention_mask": mask[:1, 2:]})
    assert torch.equal(alone[0, 2:], cached[0, 4:])


@KINDS
def test_sampled_logprobs_are_those_of_a_whole_forward(
    kind: str, tuned: Callable[..., PreTrainedModel], words: PreTrainedTokenizerFast
) -> None:
    model = tuned(kind)
    sampler = Sampler(model, words, temperature=1.0, max_new_tokens=6, seed=0)
    samples = sampler.sample([encoded(5), encoded(6, 7, 8)], draws=[0, 1])
    logits, _ = response_logits(model, samples.sequences, samples.attention_mask, samples.response_ids.shape[1])
    logprobs = logits.log_softmax(-1).gather(-1, samples.response_ids[..., None]).squeeze(-1)
    assert torch.allclose(logprobs[samples.response_mask], samples.logprobs[samples.response_mask], atol=1e-5)


def test_a_prompt_of_one_token_and_one_vector(tuned: Callable[..., PreTrainedModel]) -> None:
    outputs = tuned(count=1)(
        input_ids=torch.tensor([[5]]), attention_mask=torch.tensor([[1]]), output_hidden_states=True
    )
    assert outputs.logits.shape == (1, 1, 50)
    assert [layer.shape for layer in outputs.hidden_states] == [(1, 1, 16)] * 3


def test_the_vectors_get_all_of_the_gradient(tuned: Callable[..., PreTrainedModel]) -> None:
    model = tuned()
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().mean().backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {"model.virtual_tokens.sets.policy"}
    gradient = model.get_parameter("model.virtual_tokens.sets.policy").grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=1) > 0).all()


@KINDS
def test_gradients_are_the_same_with_activation_checkpointing(
    kind: str, tuned: Callable[..., PreTrainedModel], padded: PADDED
) -> None:
    ids, mask = padded([((5, 6), (7, 8)), ((9,), (10, 11, 12))], 3, 3, 0)
    gradients = []
    for checkpointed in (False, True):
        model = disable_dropout(tuned(kind))
        if checkpointed:
            checkpoint_activations(model)
        response_logits(model, ids, mask, 3)[0].logsumexp(-1).sum().backward()
        [gradient] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        gradients.append(gradient)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_sets_are_switched_by_name_and_off(
    make_policy: Callable[..., PreTrainedModel], tuned: Callable[..., PreTrainedModel]
) -> None:
    model, ids = tuned(), torch.tensor([[5, 6, 7]])
    ours = model(input_ids=ids).logits
    attach_virtual_tokens(model, "reference", vectors(2, seed=2))
    sets = virtual_tokens(model)
    assert sets is not None
    assert sets.active_set == "reference"
    assert sets.longest() == COUNT
    other = model(input_ids=ids).logits
    sets.switch("policy")
    assert torch.equal(model(input_ids=ids).logits, ours)
    assert not torch.allclose(ours, other, atol=1e-2)
    for name in (None, "critic"):  # a set of that name is not on this trunk: nothing is in front
        sets.switch(name)
        assert torch.equal(model(input_ids=ids).logits, make_policy()(input_ids=ids).logits)
    with pytest.raises(ValueError, match="already"):
        attach_virtual_tokens(model, "policy", vectors())


def test_a_copy_has_vectors_of_its_own(tuned: Callable[..., PreTrainedModel]) -> None:
    """The hooks of the copy are bound to the copy; frozen weights can be shared."""
    model, ids = tuned(), torch.tensor([[5, 6, 7]])
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    twin = copy.deepcopy(model, memo=dict(frozen))
    before = model(input_ids=ids).logits
    with torch.no_grad():
        twin.get_parameter("model.virtual_tokens.sets.policy").mul_(-1)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not torch.allclose(twin(input_ids=ids).logits, before, atol=1e-2)
    sets = virtual_tokens(twin)
    assert sets is not None
    sets.switch(None)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert twin.get_parameter("lm_head.weight") is model.get_parameter("lm_head.weight")


def test_tied_embeddings_stay_tied_and_untouched(make_policy: Callable[..., PreTrainedModel]) -> None:
    """The vectors start at embeddings, which under tying are the head's rows too: as a copy, never a view."""
    model = make_policy("llama", tie_word_embeddings=True)
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    assert model.get_output_embeddings().weight is table
    before = table.detach().clone()
    attach_virtual_tokens(model.requires_grad_(False), "policy", vectors_of_vocabulary(model, COUNT, seed=0))
    [trained] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD([trained], lr=1.0)
    outputs = model(input_ids=torch.tensor([[5, 6, 7]]))
    assert outputs.logits.shape == (1, 3, 50)  # no virtual token can be said
    outputs.logits.square().mean().backward()
    optimizer.step()
    assert model.get_output_embeddings().weight is table
    assert torch.equal(table, before)


def test_they_start_at_embeddings_of_drawn_tokens(make_policy: Callable[..., PreTrainedModel]) -> None:
    model = make_policy()
    rows = vectors_of_vocabulary(model, 40, seed=0)
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    assert (rows[:, None] == table[None]).all(dim=-1).any(dim=-1).all()
    assert torch.equal(rows, vectors_of_vocabulary(model, 40, seed=0))
    assert not torch.equal(rows, vectors_of_vocabulary(model, 40, seed=1))


def test_they_start_at_a_text_that_is_repeated_or_cut(
    make_policy: Callable[..., PreTrainedModel], words: PreTrainedTokenizerFast
) -> None:
    model = make_policy()
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    assert torch.equal(vectors_of_text(model, words, "w3 w9", 5), table[[3, 9, 3, 9, 3]])
    assert torch.equal(vectors_of_text(model, words, "w3 w9 w4", 2), table[[3, 9]])
    with pytest.raises(ModelError, match="no tokens"):
        vectors_of_text(model, words, " ", 2)


def test_positions_are_left_for_fewer_tokens(tuned: Callable[..., PreTrainedModel]) -> None:
    """GPT-2 has learned positions: of 64, three are taken."""
    model = tuned("gpt2")
    require_positions(model, 61, "rollout.max_new_tokens")
    model(input_ids=torch.zeros(1, 61, dtype=torch.long))
    with pytest.raises(ModelError, match="reads 61 beside 3 virtual ones"):
        require_positions(model, 62, "rollout.max_new_tokens")
    with pytest.raises(IndexError):
        model(input_ids=torch.zeros(1, 62, dtype=torch.long))


def test_a_trunk_in_half_precision_keeps_its_type(tuned: Callable[..., PreTrainedModel]) -> None:
    model = tuned()
    sets = virtual_tokens(model)
    assert sets is not None
    model.bfloat16()
    sets.float()
    logits = model(input_ids=torch.tensor([[5, 6]])).logits
    assert logits.dtype == torch.bfloat16
    logits.sum().backward()
    gradient = sets.sets["policy"].grad
    assert gradient is not None
    assert gradient.dtype == torch.float32


def test_vectors_of_another_model_are_refused(make_policy: Callable[..., PreTrainedModel]) -> None:
    for wrong in (torch.zeros(3, 24), torch.zeros(0, 16), torch.zeros(16)):
        with pytest.raises(ArtifactError, match="16 wide"):
            attach_virtual_tokens(make_policy(), "policy", wrong)


def test_an_encoder_is_refused() -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(ModelError, match="BertForMaskedLM is none"):
        attach_virtual_tokens(BertForMaskedLM(config), "policy", vectors())


def test_a_static_cache_is_refused(tuned: Callable[..., PreTrainedModel]) -> None:
    generate: Any = tuned().generate
    with pytest.raises(ModelError, match="fixed length"):
        generate(torch.tensor([[5, 6]]), max_new_tokens=2, cache_implementation="static", do_sample=False)
