"""Artifacts of what was trained: small, opened by plain PEFT, and refused on a base that is not theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from tuned import (
    KINDS,
    UPDATES_OF_WEIGHTS,
    disturb,
    peft,
    tuned_classifier,
    tuned_policy,
    write_base,
    write_policy,
    write_reward,
)

from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models.adapter_files import read_adapter
from rlhf_lightning.models.adapters import POLICY, REWARD, active, adapter_names
from rlhf_lightning.models.hub import ModelSource, is_adapter
from rlhf_lightning.models.loading import load_classifier, load_policy, load_tokenizer, new_classifier, save_policy
from rlhf_lightning.models.tuning import tune

MakeModel = Callable[..., PreTrainedModel]
Words = PreTrainedTokenizerFast

TOKENS = torch.tensor([[5, 9, 7, 12, 30], [11, 20, 4, 8, 1]])
FILES = {"adapter_config.json", "adapter_model.safetensors", "base_model.json"}


@pytest.fixture(params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, make_policy: MakeModel, words: Words, tmp_path: Path) -> Path:
    return write_base(make_policy(request.param), words, tmp_path / "base")


@pytest.mark.parametrize("kind", ["lora", "top_layers"])
def test_the_base_is_named_by_its_whole_path(
    kind: str, make_policy: MakeModel, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact is opened from another working directory than that of its training."""
    write_base(make_policy(), words, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    config = write_policy(Path("base"), peft(kind), words, tmp_path / "sft") / "adapter_config.json"
    assert json.loads(config.read_text())["base_model_name_or_path"] == str(tmp_path / "base")


@pytest.fixture
def llama(make_policy: MakeModel, words: Words, tmp_path: Path) -> Path:
    return write_base(make_policy("llama"), words, tmp_path / "base")


def source(directory: Path, **values: Any) -> ModelSource:
    return ModelSource(str(directory), **values)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Of the tokens; PEFT also gives those of virtual ones."""
    model.config.pad_token_id = 0  # a classifier looks for the last token that is none
    result: Tensor = model.eval()(input_ids=TOKENS).logits
    return result[:, -TOKENS.shape[1] :] if result.dim() == 3 else result


def plain_policy(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


def plain_classifier(base: Path) -> Any:
    torch.manual_seed(9)  # for a head that is replaced
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_alone_opens_a_policy(kind: str, base: Path, words: Words, tmp_path: Path) -> None:
    policy = tuned_policy(base, peft(kind), words)
    directory = write_policy(base, peft(kind), words, tmp_path / "sft")
    theirs = PeftModel.from_pretrained(plain_policy(base), str(directory))
    torch.testing.assert_close(logits(theirs), logits(policy), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(load_policy(source(directory))), logits(policy), atol=1e-6, rtol=0)
    assert (logits(theirs) - logits(plain_policy(base))).abs().max() > 0.1
    if kind != "prompt_tuning":
        merged: Any = theirs.merge_and_unload()
        torch.testing.assert_close(logits(merged), logits(policy), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_alone_opens_a_reward_model(kind: str, base: Path, words: Words, tmp_path: Path) -> None:
    classifier = tuned_classifier(base, peft(kind), words)
    directory = write_reward(base, peft(kind), words, tmp_path / "reward_model")
    theirs = PeftModel.from_pretrained(plain_classifier(base), str(directory))
    torch.testing.assert_close(logits(theirs), logits(classifier), atol=1e-5, rtol=0)
    opened = load_classifier(source(directory))
    torch.testing.assert_close(logits(opened), logits(classifier), atol=1e-6, rtol=0)
    assert opened.config.id2label == {0: "reward"}
    assert (logits(theirs) - logits(plain_classifier(base))).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_transformers_alone_opens_a_policy(kind: str, base: Path, words: Words, tmp_path: Path) -> None:
    directory = write_policy(base, peft(kind), words, tmp_path / "sft")
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    torch.testing.assert_close(logits(theirs), logits(load_policy(source(directory))), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "tied"),
    [*product(("prompt_tuning", "top_layers"), (False, True)), ("lora", True), ("dora", False), ("ia3", True)],
)
def test_nothing_of_the_base_is_in_the_directory(
    kind: str, tied: bool, make_policy: MakeModel, words: Words, tmp_path: Path
) -> None:
    base = write_base(make_policy(tie_word_embeddings=tied), words, tmp_path / "base")
    directory = write_policy(base, peft(kind), words, tmp_path / "sft")
    assert {path.name for path in directory.iterdir()} == {*FILES, "tokenizer.json", "tokenizer_config.json"}
    held = load_file(directory / "adapter_model.safetensors")
    trained = sum(p.numel() for p in tuned_policy(base, peft(kind), words).parameters() if p.requires_grad)
    assert sum(tensor.numel() for tensor in held.values()) == trained
    assert is_adapter(directory)
    assert not is_adapter(base)
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert config["inference_mode"] is True
    assert load_tokenizer(source(directory)).get_vocab() == words.get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_opened_is_frozen_and_has_no_dropout(kind: str, llama: Path, words: Words, tmp_path: Path) -> None:
    policy = load_policy(source(write_policy(llama, peft(kind), words, tmp_path / "sft")))
    reward = load_classifier(source(write_reward(llama, peft(kind), words, tmp_path / "reward_model")))
    assert adapter_names(policy) == ([] if kind == "top_layers" else [POLICY])
    assert adapter_names(reward) == ([] if kind == "top_layers" else [REWARD])
    for model in (policy, reward):
        assert not any(weight.requires_grad for weight in model.parameters())
        assert not model.training
        for module in model.modules():
            assert not isinstance(module, torch.nn.Dropout) or module.p == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_model_begins_where_a_policy_ended(kind: str, llama: Path, words: Words, tmp_path: Path) -> None:
    directory = write_policy(llama, peft(kind), words, tmp_path / "sft")
    policy = load_policy(source(directory))
    classifier = new_classifier(source(directory), ("bad", "good"))
    assert classifier.config.num_labels == 2
    theirs, ours = (model.base_model(TOKENS).last_hidden_state for model in (policy, classifier))
    assert torch.equal(theirs, ours)
    assert adapter_names(classifier) == ([] if kind == "top_layers" else [REWARD])


@pytest.mark.parametrize("kind", UPDATES_OF_WEIGHTS)
def test_on_a_base_in_half_precision(kind: str, llama: Path, words: Words, tmp_path: Path) -> None:
    """Shapes can be compared, values cannot; the adapter itself stays in float32."""
    directory = write_policy(llama, peft(kind), words, tmp_path / "sft")
    policy = load_policy(source(directory, dtype="bfloat16"))
    whole = logits(load_policy(source(directory)))
    assert {str(weight.dtype) for weight in policy.parameters()} == {"torch.bfloat16", "torch.float32"}
    assert (logits(policy).float() - whole).abs().max() < 0.3
    assert (whole - logits(plain_policy(llama))).abs().max() > 0.3
    # And what was trained there is opened in float32.
    (tmp_path / "again").mkdir()
    save_policy(policy, words, tmp_path / "again")
    assert torch.equal(logits(load_policy(source(tmp_path / "again"))), whole)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_that_peft_itself_wrote(kind: str, llama: Path, words: Words, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=kind == "dora")
    theirs: Any = disturb(get_peft_model(plain_policy(llama), config))  # type: ignore[arg-type]
    theirs.save_pretrained(tmp_path / "theirs")
    words.save_pretrained(tmp_path / "theirs")
    ours = load_policy(source(tmp_path / "theirs"))
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-6, rtol=0)
    assert read_adapter(tmp_path / "theirs").identity is None
    tune(ours, peft(kind, rank=2, targets=["q_proj"]), POLICY, words, seed=0)
    (tmp_path / "ours").mkdir()
    save_policy(ours, words, tmp_path / "ours")
    assert read_adapter(tmp_path / "ours").identity is not None


def test_labels_of_a_reward_model_that_peft_itself_wrote(llama: Path, words: Words, tmp_path: Path) -> None:
    directory = write_reward(llama, peft("lora"), words, tmp_path / "reward_model")
    expected = logits(load_classifier(source(directory)))
    (directory / "base_model.json").unlink()
    opened = load_classifier(source(directory))
    assert opened.config.id2label == {0: "LABEL_0"}
    assert torch.equal(logits(opened), expected)


OTHER_BASES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"seed": 1}, "the same shapes and other weights"),
    "width": ({"hidden_size": 32}, "other shapes"),
    "depth": ({"num_hidden_layers": 3}, "other shapes"),
    "vocabulary": ({"vocab_size": 60}, "other shapes"),
}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *product(KINDS, ["weights"]),
        *product(["top_layers"], ["width", "depth"]),
        *(("lora", "width"), ("ia3", "depth"), ("dora", "vocabulary"), ("prompt_tuning", "vocabulary")),
    ],
)
def test_another_base_is_refused(
    kind: str, what: str, llama: Path, make_policy: MakeModel, words: Words, tmp_path: Path
) -> None:
    policy = write_policy(llama, peft(kind), words, tmp_path / "sft")
    reward = write_reward(llama, peft(kind), words, tmp_path / "reward_model")
    shutil.rmtree(llama)
    values, reason = OTHER_BASES[what]
    write_base(make_policy(**values), words, llama)
    for directory, opened in ((policy, load_policy), (reward, load_classifier)):
        with pytest.raises(ArtifactError, match=f"(?s)trained on another base model: .* has {reason}") as refused:
            opened(source(directory))
        assert str(directory) in str(refused.value)


@pytest.mark.parametrize("kind", [*UPDATES_OF_WEIGHTS, "prompt_tuning"])
def test_another_base_is_refused_by_shape_where_nothing_says_which_it_was(
    kind: str, llama: Path, make_policy: MakeModel, words: Words, tmp_path: Path
) -> None:
    directory = write_policy(llama, peft(kind), words, tmp_path / "sft")
    (directory / "base_model.json").unlink()
    shutil.rmtree(llama)
    write_base(make_policy(hidden_size=32), words, llama)
    with pytest.raises(ArtifactError, match=r"(does not fit this base|do not fit a model)"):
        load_policy(source(directory))


def test_one_changed_value_in_each_weight_of_the_base_is_seen(llama: Path, words: Words, tmp_path: Path) -> None:
    """As a base is when it was trained a little further."""
    directory = write_policy(llama, peft("lora"), words, tmp_path / "sft")
    weights = load_file(llama / "model.safetensors")
    save_file({n: w * (1 + 1e-6) for n, w in weights.items()}, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="other weights"):
        load_policy(source(directory))


def test_top_layers_do_not_ask_for_the_layers_they_replace(llama: Path, words: Words, tmp_path: Path) -> None:
    directory = write_policy(llama, peft("top_layers"), words, tmp_path / "sft")
    expected = logits(load_policy(source(directory)))
    weights = load_file(llama / "model.safetensors")
    for name in weights:
        if ".layers.1." in name:
            weights[name] = weights[name] + 1
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load_policy(source(directory))), expected)


def spoil_weights(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_config(directory: Path) -> None:
    path = directory / "adapter_config.json"
    path.write_text(path.read_text()[:-20])


def spoil_identity(directory: Path) -> None:
    (directory / "base_model.json").write_text('{"base": {}}')


def spoil_kind(directory: Path) -> None:
    path = directory / "adapter_config.json"
    path.write_text(path.read_text().replace('"LORA"', '"LARO"'))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half the weights": spoil_weights,
    "no weights": lambda directory: (directory / "adapter_model.safetensors").unlink(),
    "weights that are none": lambda directory: (directory / "adapter_model.safetensors").write_bytes(b""),
    "half a config": spoil_config,
    "a kind that nobody knows": spoil_kind,
    "an identity that says nothing": spoil_identity,
    "an identity that is none": lambda directory: (directory / "base_model.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, llama: Path, words: Words, tmp_path: Path) -> None:
    directory = write_policy(llama, peft("lora"), words, tmp_path / "sft")
    DAMAGES[damage](directory)
    with pytest.raises(
        ArtifactError, match=r"(?s)The adapter cannot be read: \S.*adapter_model.safetensors"
    ) as refused:
        load_policy(source(directory))
    assert str(directory) in str(refused.value)


def test_missing_weights_of_an_adapter_are_refused(llama: Path, words: Words, tmp_path: Path) -> None:
    for kind in KINDS:
        directory = write_policy(llama, peft(kind), words, tmp_path / kind)
        path = directory / "adapter_model.safetensors"
        held = load_file(path)
        save_file({name: held[name] for name in sorted(held)[1:]} or {"other": torch.zeros(1)}, path)
        with pytest.raises(ArtifactError):
            load_policy(source(directory))


def test_a_base_that_is_gone(llama: Path, words: Words, tmp_path: Path) -> None:
    directory = write_policy(llama, peft("lora"), words, tmp_path / "sft")
    expected = logits(load_policy(source(directory)))
    elsewhere = tmp_path / "elsewhere"
    llama.rename(elsewhere)
    with pytest.raises(ModelError, match="No such model directory") as refused:
        load_policy(source(directory))
    assert str(llama) in str(refused.value)
    assert torch.equal(logits(load_policy(source(directory, base=source(elsewhere)))), expected)


def test_a_base_that_is_gone_is_not_replaced_by_any_other(
    llama: Path, make_policy: MakeModel, words: Words, tmp_path: Path
) -> None:
    directory = write_policy(llama, peft("lora"), words, tmp_path / "sft")
    shutil.rmtree(llama)
    other = write_base(make_policy(seed=1), words, tmp_path / "other")
    with pytest.raises(ArtifactError, match="another base model"):
        load_policy(source(directory, base=source(other)))


def test_a_base_that_nobody_names(llama: Path, words: Words, tmp_path: Path) -> None:
    directory = write_policy(llama, peft("lora"), words, tmp_path / "sft")
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ArtifactError, match=r"(?s)does not say which model.*set base_model_name_or_path"):
        load_policy(source(directory))


def test_a_policy_is_no_reward_model_and_the_other_way_round(llama: Path, words: Words, tmp_path: Path) -> None:
    policy = write_policy(llama, peft("lora"), words, tmp_path / "sft")
    reward = write_reward(llama, peft("lora"), words, tmp_path / "reward_model")
    with pytest.raises(ArtifactError, match="adapter of a policy, not of a reward model"):
        load_classifier(source(policy))
    with pytest.raises(ArtifactError, match="adapter of a reward model or classifier, not of a policy"):
        load_policy(source(reward))


def test_a_trained_adapter_can_be_switched_off(llama: Path, words: Words, tmp_path: Path) -> None:
    policy = load_policy(source(write_policy(llama, peft("lora"), words, tmp_path / "sft")))
    with active(policy, None):
        assert torch.equal(logits(policy), logits(plain_policy(llama)))
