"""Which modules the top layers are, and that plain PEFT opens what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models.top_layers import (
    count_blocks,
    load_trained_state,
    shared_copy,
    top_layers,
    top_layers_config,
    train_top_layers,
    trained_layers,
    trained_state,
)

MakeModel = Callable[..., PreTrainedModel]

TOKENS = torch.tensor([[5, 9, 7, 12, 30], [11, 20, 4, 8, 1]])


@pytest.fixture(params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def deep(make: MakeModel, kind: str, **values: Any) -> PreTrainedModel:
    """A model of twelve blocks: the names of block 1 and of block 11 end alike."""
    return make(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 12}, **values)


def test_the_last_blocks_and_the_final_norm_of_a_policy(make_policy: MakeModel) -> None:
    assert top_layers(make_policy("llama"), 1) == ["model.layers.1", "model.norm"]
    assert top_layers(make_policy("gpt2"), 2) == ["transformer.h.0", "transformer.h.1", "transformer.ln_f"]


def test_and_the_head_of_a_classifier(make_reward_model: MakeModel) -> None:
    assert top_layers(make_reward_model("llama"), 1) == ["model.layers.1", "model.norm", "score"]


def test_and_of_a_bare_trunk(make_policy: MakeModel) -> None:
    trunk = make_policy("llama").base_model
    assert isinstance(trunk, PreTrainedModel)
    assert top_layers(trunk, 1) == ["layers.1", "norm"]


@pytest.mark.parametrize("tied", [False, True])
def test_everything_else_is_frozen(tied: bool, make_policy: MakeModel) -> None:
    policy = make_policy(num_hidden_layers=3, tie_word_embeddings=tied)
    train_top_layers(policy, 2)
    frozen = {name for name, weight in policy.named_parameters() if not weight.requires_grad}
    parts = {".".join(name.split(".")[:3]) for name in frozen}
    assert parts == {"model.embed_tokens.weight", "model.layers.0", *([] if tied else ["lm_head.weight"])}


def test_training_more_layers_thaws_and_fewer_freeze(make_policy: MakeModel) -> None:
    policy = make_policy(num_hidden_layers=3)
    for layers in (1, 3, 2):
        train_top_layers(policy, layers)
        thawed = {name.split(".")[2] for name, weight in policy.named_parameters() if weight.requires_grad}
        assert thawed == {"weight", *(str(index) for index in range(3 - layers, 3))}  # model.norm.weight


def test_more_layers_than_there_are(make_policy: MakeModel) -> None:
    assert count_blocks(make_policy()) == 2
    with pytest.raises(ModelError, match=r"(?s)2 blocks, and 3 are to be trained.*peft.layers from 1 to 2"):
        train_top_layers(make_policy(), 3)


def test_a_model_without_a_list_of_blocks(make_policy: MakeModel) -> None:
    policy = make_policy()
    policy._no_split_modules = None
    with pytest.raises(ModelError, match=r"(?s)LlamaForCausalLM has no list of blocks.*peft=lora"):
        train_top_layers(policy, 1)


def test_a_shared_copy_has_its_own_trained_weights_only(make_policy: MakeModel) -> None:
    policy = make_policy(num_hidden_layers=3)
    train_top_layers(policy, 1)
    shared = dict(shared_copy(policy).named_parameters())
    for name, weight in policy.named_parameters():
        assert (shared[name] is weight) == (not weight.requires_grad)
        assert torch.equal(shared[name], weight)


def changed(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """As training would leave it."""
    train_top_layers(model, layers)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def write(model: PreTrainedModel, layers: int, base: Path, directory: Path) -> None:
    config = top_layers_config(model, layers)
    config.base_model_name_or_path = str(base)
    config.save_pretrained(str(directory))
    save_file(trained_state(model, layers), directory / "adapter_model.safetensors")


@torch.no_grad()
def test_plain_peft_opens_a_policy(kind: str, make_policy: MakeModel, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    policy = deep(make_policy, kind)
    policy.save_pretrained(base)
    before = policy(TOKENS).logits
    changed(policy, 2)
    write(policy, 2, base, adapter)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    logits = policy(TOKENS).logits
    assert (logits - before).abs().max() > 0.1
    assert torch.equal(opened(TOKENS).logits, logits)
    merged = opened.merge_and_unload()
    assert torch.equal(merged(TOKENS).logits, logits)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in policy.named_parameters()}


@torch.no_grad()
def test_plain_peft_opens_a_classifier(kind: str, make_reward_model: MakeModel, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    classifier = deep(make_reward_model, kind)
    classifier.save_pretrained(base)
    before = classifier(TOKENS).logits
    changed(classifier, 1)
    write(classifier, 1, base, adapter)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    opened = PeftModel.from_pretrained(plain, adapter).eval()
    assert (classifier(TOKENS).logits - before).abs().max() > 0.01
    assert torch.equal(opened(TOKENS).logits, classifier(TOKENS).logits)


@torch.no_grad()
def test_what_was_written_is_read(kind: str, make_policy: MakeModel, tmp_path: Path) -> None:
    policy = changed(deep(make_policy, kind), 2)
    write(policy, 2, tmp_path, tmp_path)
    other = deep(make_policy, kind)
    load_trained_state(other, 2, load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(other(TOKENS).logits, policy(TOKENS).logits)


def test_it_is_small(make_policy: MakeModel) -> None:
    policy = deep(make_policy, "llama")
    weights = trained_state(policy, 1)
    # Attention 16 * (16 + 8 + 8 + 16), three matrices 16 * 32, and three norms of 16.
    assert sum(weight.numel() for weight in weights.values()) == 16 * 48 + 3 * 16 * 32 + 3 * 16
    assert "base_model.model.model.layers.11.self_attn.q_proj.weight" in weights


def without(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


def test_weights_of_another_model_are_refused(make_policy: MakeModel) -> None:
    policy = make_policy()
    narrower = trained_state(make_policy(hidden_size=8), 1)
    with pytest.raises(ArtifactError, match=r"(?s)model.layers.1 are missing or of other shapes.*name the base"):
        load_trained_state(policy, 1, narrower)
    with pytest.raises(ArtifactError, match=r"model\.norm"):
        load_trained_state(policy, 1, without(trained_state(policy, 1), "model.norm"))


def test_the_number_of_layers_is_read_from_the_configuration(make_policy: MakeModel) -> None:
    config = top_layers_config(make_policy(num_hidden_layers=3), 2)
    assert trained_layers(config) == 2
    config.target_modules = ["q_proj"]
    assert trained_layers(config) is None
