"""Several adapters on one trunk: each does what it did alone, and the trunk stays what it was, bit for bit."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from tuned import UPDATES_OF_WEIGHTS, disturb, peft

from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models.adapters import (
    active,
    active_adapter,
    adapter_names,
    adapter_parameters,
    adapter_state,
    add_adapter,
    copy_adapter,
    linear_layers,
    load_adapter_state,
    merge_adapter,
    switch,
    train_adapter,
)
from rlhf_lightning.models.forward_pass import checkpoint_activations
from rlhf_lightning.models.loading import disable_dropout
from rlhf_lightning.models.top_layers import shared_copy
from rlhf_lightning.models.tuning import new_config
from rlhf_lightning.models.virtual_tokens import vectors_of_vocabulary

MakeModel = Callable[..., PreTrainedModel]

TOKENS = torch.tensor([[5, 9, 7, 12, 30], [11, 20, 4, 8, 1]])
ADAPTERS = (*UPDATES_OF_WEIGHTS, "prompt_tuning")


def put(model: PreTrainedModel, kind: str, name: str, seed: int | None = None) -> PreTrainedModel:
    """An adapter on a frozen model, not at work; with a seed, one that was trained."""
    model.requires_grad_(False)
    torch.manual_seed(seed or 0)
    vectors = vectors_of_vocabulary(model, 3, seed or 0) if kind == "prompt_tuning" else None
    add_adapter(model, new_config(model, peft(kind)), name, vectors)  # type: ignore[arg-type]  # none of whole models
    return model if seed is None else disturb(model, name, seed)


@torch.no_grad()
def logits(model: PreTrainedModel, adapter: str | None) -> Tensor:
    with active(model, adapter):
        result: Tensor = model(TOKENS).logits
    return result


def fingerprint(model: PreTrainedModel, without: str) -> str:
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if without not in name.split("."):
            digest.update(name.encode() + weight.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", UPDATES_OF_WEIGHTS)
def test_a_new_adapter_changes_nothing(kind: str, adapter: str, make_policy: MakeModel) -> None:
    plain = make_policy(kind)(TOKENS).logits
    model = put(make_policy(kind), adapter, "policy")
    if adapter == "dora":  # it divides by a norm and multiplies by the same one
        torch.testing.assert_close(logits(model, "policy"), plain, atol=1e-5, rtol=0)
    else:
        assert torch.equal(logits(model, "policy"), plain)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_switched_off_the_model_is_its_base_bit_for_bit(kind: str, adapter: str, make_policy: MakeModel) -> None:
    plain = make_policy(kind)(TOKENS).logits
    model = put(make_policy(kind), adapter, "policy", seed=3)
    assert active_adapter(model) is None, "a new adapter is not at work"
    assert torch.equal(model(TOKENS).logits, plain)
    switch(model, "policy")
    assert (model(TOKENS).logits - plain).abs().max() > 0.1
    assert torch.equal(logits(model, None), plain)
    assert active_adapter(model) == "policy"


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_of_several_does_what_it_does_alone(adapter: str, make_policy: MakeModel) -> None:
    names = {"policy": 3, "policy_2": 4, "reward": 5}
    together = make_policy()
    for name, seed in names.items():
        put(together, adapter, name, seed)
    assert adapter_names(together) == list(names)
    alone = {name: logits(put(make_policy(), adapter, name, seed), name) for name, seed in names.items()}
    for name in (*names, "policy"):
        assert torch.equal(logits(together, name), alone[name])
    assert (alone["policy"] - alone["policy_2"]).abs().max() > 0.1
    own = {name: {id(weight) for weight in adapter_parameters(together, name)} for name in names}
    assert not own["policy"] & own["policy_2"]
    assert len(own["policy"]) == len(own["policy_2"]) > 0


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_copy_is_the_same_and_stays_the_same(adapter: str, make_policy: MakeModel) -> None:
    model = put(make_policy(), adapter, "policy", seed=3)
    train_adapter(model, "policy")
    copy_adapter(model, "policy", "reference")
    assert active_adapter(model) == "policy"
    assert torch.equal(logits(model, "reference"), logits(model, "policy"))
    before = logits(model, "reference")
    assert not any(weight.requires_grad for weight in adapter_parameters(model, "reference"))
    assert all(weight.requires_grad for weight in adapter_parameters(model, "policy"))
    disturb(model, "policy", seed=4)
    assert torch.equal(logits(model, "reference"), before)
    assert (logits(model, "policy") - before).abs().max() > 0.01


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_training_one_moves_nothing_else(adapter: str, make_policy: MakeModel) -> None:
    model = put(make_policy(), adapter, "policy", seed=3)
    copy_adapter(model, "policy", "reference")
    train_adapter(model, "policy")
    frozen, plain, reference = fingerprint(model, "policy"), logits(model, None), logits(model, "reference")
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert {id(weight) for weight in trained} == {id(weight) for weight in adapter_parameters(model, "policy")}
    before = logits(model, "policy")
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(TOKENS).logits.square().mean().backward()
        optimizer.step()
    assert fingerprint(model, "policy") == frozen
    assert torch.equal(logits(model, None), plain)
    assert torch.equal(logits(model, "reference"), reference)
    assert (logits(model, "policy") - before).abs().max() > 1e-3


def test_a_switch_for_a_while_leaves_what_is_trained_and_ends_with_an_error(make_policy: MakeModel) -> None:
    model = put(make_policy(), "lora", "policy", seed=3)
    copy_adapter(model, "policy", "critic")
    train_adapter(model, "policy")
    for weight in adapter_parameters(model, "critic"):
        weight.requires_grad_(True)
    flags = [weight.requires_grad for weight in model.parameters()]

    def fails() -> None:
        with active(model, None):
            with active(model, "critic"):
                assert active_adapter(model) == "critic"
            assert active_adapter(model) is None
            assert [weight.requires_grad for weight in model.parameters()] == flags
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert active_adapter(model) == "policy"
    assert [weight.requires_grad for weight in model.parameters()] == flags


def test_a_model_without_adapters_has_none_to_switch(make_policy: MakeModel) -> None:
    model = make_policy()
    assert adapter_names(model) == []
    assert active_adapter(model) is None
    assert torch.equal(logits(model, None), model(TOKENS).logits)
    with pytest.raises(AssertionError, match="no adapter 'policy'"):
        switch(model, "policy")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_copies_of_a_model_switch_alone(adapter: str, make_policy: MakeModel) -> None:
    model = put(make_policy(), adapter, "policy", seed=3)
    train_adapter(model, "policy")
    for twin in (copy.deepcopy(model), shared_copy(model)):
        expected = logits(model, "policy")
        switch(twin, None)
        assert torch.equal(model(TOKENS).logits, expected)
        assert torch.equal(twin(TOKENS).logits, logits(model, None))
        switch(twin, "policy")
        disturb(twin, "policy", seed=7)
        assert torch.equal(model(TOKENS).logits, expected)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_recomputed_activations_are_those_of_the_adapter_that_computed_them(
    adapter: str, make_policy: MakeModel
) -> None:
    """Two forward passes under two adapters, and one backward pass when a third state is on."""
    gradients = []
    for recomputed in (False, True):
        model = disable_dropout(make_policy(num_hidden_layers=3))
        for name, seed in (("policy", 3), ("critic", 4)):
            put(model, adapter, name, seed)
        for name in ("policy", "critic"):
            for weight in adapter_parameters(model, name):
                weight.requires_grad_(True)
        if recomputed:
            checkpoint_activations(model)
        switch(model, "policy")
        loss = model(TOKENS).logits.square().mean()
        with active(model, "critic"):
            loss = loss + model(TOKENS).logits.pow(3).mean()
        with active(model, None):
            loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        again = gradients[1][name]
        assert again is not None
        assert gradient.abs().max() > 0
        torch.testing.assert_close(again, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("gpt2", True)])
@pytest.mark.parametrize("adapter", UPDATES_OF_WEIGHTS)
def test_merged_is_unmerged(kind: str, adapter: str, tied: bool, make_policy: MakeModel) -> None:
    model = put(make_policy(kind, tie_word_embeddings=tied), adapter, "policy", seed=3)
    copy_adapter(model, "policy", "reference")
    switch(model, "policy")
    before = model(TOKENS).logits
    merge_adapter(model)
    torch.testing.assert_close(model(TOKENS).logits, before, atol=1e-4, rtol=0)
    plain = make_policy(kind, tie_word_embeddings=tied)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert adapter_names(model) == []
    assert all(weight.requires_grad for weight in model.parameters())
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_virtual_tokens_cannot_be_merged(make_policy: MakeModel) -> None:
    with pytest.raises(ModelError, match="no change of the model's weights"):
        merge_adapter(put(make_policy(), "prompt_tuning", "policy"))


def test_linear_layers_are_named_once_and_the_head_is_none(
    make_policy: MakeModel, make_reward_model: MakeModel
) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert linear_layers(make_policy()) == names
    assert linear_layers(make_reward_model()) == names
    assert linear_layers(make_policy("gpt2")) == ["c_attn", "c_proj", "c_fc"]
    assert linear_layers(put(make_policy(), "lora", "policy")) == names


@pytest.mark.parametrize("targets", [["q_porj"], ["attn.q_proj"], ["lm_head"], ["lora_A"], ["q_proj", "self_attn"]])
def test_layers_that_are_not_there_are_refused(targets: list[str], make_policy: MakeModel) -> None:
    model = put(make_policy(), "lora", "policy")
    config = new_config(model, peft("lora", targets=targets))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"(?s)no linear layer .*choose among q_proj, k_proj, v_proj, o_proj"):
        add_adapter(model, config, "other")
    assert adapter_names(model) == ["policy"]


def test_layers_can_be_named_by_a_part_of_their_path(make_policy: MakeModel) -> None:
    model = make_policy("gpt2")
    config = new_config(model, peft("lora", targets=["attn.c_proj"]))  # type: ignore[arg-type]
    add_adapter(model, config, "policy")
    assert {name.split(".")[3] for name, _ in model.named_parameters() if "policy" in name.split(".")} == {"attn"}


def test_weights_of_another_shape_are_refused(make_policy: MakeModel) -> None:
    model = put(make_policy(), "lora", "policy", seed=3)
    before = logits(model, "policy")
    state = adapter_state(put(make_policy(hidden_size=32), "lora", "policy"), "policy")
    with pytest.raises(ArtifactError, match=r"does not fit this base: \d+ weights"):
        load_adapter_state(model, "policy", state)
    short = dict(list(adapter_state(model, "policy").items())[1:])
    with pytest.raises(ArtifactError, match="1 weights are missing on one side"):
        load_adapter_state(model, "policy", short)
    assert torch.equal(logits(model, "policy"), before)


def test_two_adapters_of_one_name_are_refused(make_policy: MakeModel) -> None:
    model = put(make_policy(), "prompt_tuning", "policy")
    with pytest.raises(ValueError, match="already"):
        put(model, "prompt_tuning", "policy")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_on_a_trunk_in_half_precision_adapters_keep_theirs(adapter: str, make_policy: MakeModel) -> None:
    """The trunk is read in bfloat16; what is trained is held in float32, or small steps would be lost."""
    model = put(make_policy().bfloat16(), adapter, "policy", seed=3)
    train_adapter(model, "policy")
    assert {weight.dtype for weight in adapter_parameters(model, "policy")} == {torch.float32}
    outputs = model(TOKENS).logits
    assert outputs.dtype == torch.bfloat16
    outputs.float().square().mean().backward()
    assert all(weight.grad is not None for weight in adapter_parameters(model, "policy"))


def test_generation_uses_the_adapter_at_work(make_policy: MakeModel, words: PreTrainedTokenizerFast) -> None:
    model = put(make_policy(eos_token_id=None), "lora", "policy", seed=3)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": words.pad_token_id}
    generate: Any = model.generate
    with active(model, "policy"):
        changed = generate(TOKENS, **settings)
        step = model(changed[:, :-1]).logits[:, -1].argmax(-1)
    assert torch.equal(changed[:, -1], step)
    assert not torch.equal(changed, generate(TOKENS, **settings))
