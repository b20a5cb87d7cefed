"""Models are opened without dropout, heads start as they should, and mistakes are caught at the door."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_lightning.errors import ArtifactError, ModelError, RlhfError
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import (
    disable_dropout,
    load_classifier,
    load_policy,
    load_tokenizer,
    new_classifier,
    require_positions,
    score_head,
)

MakeModel = Callable[..., PreTrainedModel]
MakeWords = Callable[..., PreTrainedTokenizerFast]

IDS = torch.tensor([[5, 9, 7, 12, 30, 8, 4, 22]])


def saved(model: Any, directory: Path) -> ModelSource:
    model.save_pretrained(directory)
    return ModelSource(str(directory))


def opt() -> PreTrainedModel:
    """A model that keeps all of its dropout in plain attributes, and drops whole layers besides."""
    config = OPTConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        ffn_dim=32,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
        dropout=0.5,
        attention_dropout=0.5,
        layerdrop=0.5,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return OPTForCausalLM(config)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_no_dropout_is_left_even_in_train_mode(kind: str, attention: str, make_policy: MakeModel) -> None:
    torch.manual_seed(0)
    models = {
        "llama": lambda: make_policy("llama", attention_dropout=0.5),
        "gpt2": lambda: make_policy("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5),
        "opt": opt,
    }
    model = models[kind]()
    model.set_attn_implementation(attention)
    model.train()
    assert (model(IDS).logits - model(IDS).logits).abs().max() > 0.01, "the model has dropout to begin with"
    disable_dropout(model)
    evaluated = model(IDS).logits
    model.train()
    for _ in range(5):
        torch.testing.assert_close(model(IDS).logits, evaluated, atol=5e-6, rtol=0)


def test_a_policy_is_opened_without_dropout_and_in_eval_mode(make_policy: MakeModel, tmp_path: Path) -> None:
    source = saved(make_policy("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5), tmp_path)
    policy = load_policy(source)
    assert not policy.training
    evaluated = policy(IDS).logits
    torch.testing.assert_close(policy.train()(IDS).logits, evaluated, atol=5e-6, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_policy_says_what_was_saved_in_the_dtype_that_was_asked_for(
    kind: str, make_policy: MakeModel, tmp_path: Path
) -> None:
    policy = make_policy(kind, tie_word_embeddings=True)
    saved(policy, tmp_path)
    loaded = load_policy(ModelSource(str(tmp_path)))
    torch.testing.assert_close(loaded(IDS).logits, policy(IDS).logits, atol=5e-6, rtol=0)
    half = load_policy(ModelSource(str(tmp_path), dtype="bfloat16"))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_reward_model_is_refused_as_a_policy(make_reward_model: MakeModel, tmp_path: Path) -> None:
    source = saved(make_reward_model(), tmp_path)
    with pytest.raises(ArtifactError, match=r"LlamaForSequenceClassification.*not a policy") as raised:
        load_policy(source)
    assert raised.value.where == str(tmp_path)
    assert "stage sft or ppo" in str(raised.value.fix)


def test_a_policy_is_refused_as_a_reward_model(make_policy: MakeModel, tmp_path: Path) -> None:
    source = saved(make_policy(), tmp_path)
    with pytest.raises(ArtifactError, match=r"not a reward model.*LlamaForCausalLM") as raised:
        load_classifier(source)
    assert raised.value.where == str(tmp_path)
    assert "no reward head" in str(raised.value.fix)


def test_a_trunk_without_a_language_head_is_refused_as_a_policy(make_policy: MakeModel, tmp_path: Path) -> None:
    # For example the critic's folder of a stage ppo: its head would be made of random numbers.
    source = saved(make_policy(tie_word_embeddings=False).base_model, tmp_path)
    with pytest.raises(ArtifactError, match=r"lm_head.weight") as raised:
        load_policy(source)
    assert raised.value.fix


def test_a_reward_model_without_its_head_is_refused(make_reward_model: MakeModel, tmp_path: Path) -> None:
    classifier = make_reward_model()
    weights = {name: tensor for name, tensor in classifier.state_dict().items() if name != "score.weight"}
    classifier.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ArtifactError, match=r"score\.weight"):
        load_classifier(ModelSource(str(tmp_path)))


@pytest.mark.parametrize("load", [load_policy, load_classifier, load_tokenizer])
def test_a_missing_directory_is_one_clear_error(load: Callable[[ModelSource], object], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such model directory") as raised:
        load(ModelSource(str(tmp_path / "nothing")))
    assert raised.value.where == str(tmp_path / "nothing")
    assert raised.value.fix


@pytest.mark.parametrize("load", [load_policy, load_classifier, load_tokenizer])
def test_an_empty_directory_is_one_clear_error(load: Callable[[ModelSource], object], tmp_path: Path) -> None:
    with pytest.raises(RlhfError) as raised:
        load(ModelSource(str(tmp_path)))
    assert str(tmp_path) in str(raised.value.where)
    assert raised.value.fix
    assert "\n" not in raised.value.what


@pytest.mark.parametrize("kind", ["policy", "reward model"])
def test_damaged_weights_are_one_clear_error(
    kind: str, make_policy: MakeModel, make_reward_model: MakeModel, tmp_path: Path
) -> None:
    source = saved(make_policy() if kind == "policy" else make_reward_model(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="Cannot open") as raised:
        (load_policy if kind == "policy" else load_classifier)(source)
    assert raised.value.where == str(tmp_path)


@pytest.mark.parametrize("load", [load_policy, load_classifier])
def test_a_config_of_nonsense_is_one_clear_error(
    load: Callable[[ModelSource], object], make_policy: MakeModel, make_reward_model: MakeModel, tmp_path: Path
) -> None:
    source = saved((make_policy if load is load_policy else make_reward_model)(), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 16', '"hidden_size": "wide"'))
    with pytest.raises(ModelError, match=r"Cannot open.*hidden_size"):
        load(source)


def test_a_directory_without_weights_is_one_clear_error(make_policy: MakeModel, tmp_path: Path) -> None:
    source = saved(make_policy(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="Cannot open a causal language model"):
        load_policy(source)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("labels", [("reward",), ("rejected", "chosen")])
def test_a_new_reward_head_has_standard_deviation_1_by_root_d_plus_1(
    kind: str, labels: tuple[str, ...], make_policy: MakeModel, tmp_path: Path
) -> None:
    wide = {"llama": {"hidden_size": 256, "intermediate_size": 16}, "gpt2": {"n_embd": 256}}[kind]
    policy = make_policy(kind, **wide)
    classifier = new_classifier(saved(policy, tmp_path), labels)
    head = score_head(classifier)
    assert head is not None
    assert head.weight.shape == (len(labels), 256)
    # 256 draws: the sample deviation is within 15% of 1/sqrt(257) in all but one case of a thousand.
    assert head.weight[0].std().item() == pytest.approx(257**-0.5, rel=0.15)
    assert head.bias is None or not head.bias.any()
    assert classifier.config.id2label == dict(enumerate(labels))
    # The trunk is the policy's.
    hidden = classifier.base_model(IDS).last_hidden_state
    torch.testing.assert_close(hidden, policy.base_model(IDS).last_hidden_state)


def test_a_reward_model_continues_from_a_reward_model_with_its_head(
    make_reward_model: MakeModel, tmp_path: Path
) -> None:
    trained = make_reward_model()
    heads = score_head(trained), score_head(new_classifier(saved(trained, tmp_path), ("reward",)))
    assert heads[0] is not None
    assert heads[1] is not None
    assert torch.equal(heads[0].weight, heads[1].weight)


def test_a_head_of_another_size_is_renewed(make_reward_model: MakeModel, tmp_path: Path) -> None:
    source = saved(make_reward_model(hidden_size=256, intermediate_size=16), tmp_path)
    head = score_head(new_classifier(source, ("rejected", "chosen")))
    assert head is not None
    assert head.weight.std().item() == pytest.approx(257**-0.5, rel=0.15)


def test_an_encoder_style_classifier_has_no_score_head() -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    assert score_head(BertForSequenceClassification(config)) is None


def test_a_tokenizer_without_eos_is_refused(make_words: MakeWords, tmp_path: Path) -> None:
    make_words(eos=None).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no end-of-sequence token") as raised:
        load_tokenizer(ModelSource(str(tmp_path)))
    assert "eos_token" in str(raised.value.fix)


def test_a_tokenizer_without_pad_pads_with_eos(make_words: MakeWords, tmp_path: Path) -> None:
    make_words(pad=None).save_pretrained(tmp_path)
    assert load_tokenizer(ModelSource(str(tmp_path))).pad_token_id == 1


def test_a_tokenizer_with_pad_keeps_it(make_words: MakeWords, tmp_path: Path) -> None:
    make_words().save_pretrained(tmp_path)
    assert load_tokenizer(ModelSource(str(tmp_path))).pad_token_id == 0


def test_a_chat_template_file_replaces_the_tokenizers_own(make_words: MakeWords, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(make_words())
    tokenizer.chat_template = "old"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    loaded = load_tokenizer(ModelSource(str(tmp_path), chat_template=str(tmp_path / "mine.jinja")))
    assert loaded.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False) == "w5"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_more_tokens_than_the_model_reads_are_one_clear_error(kind: str, make_policy: MakeModel) -> None:
    policy = make_policy(kind)
    require_positions(policy, 64, "the lengths")
    with pytest.raises(ModelError, match=r"up to 65 tokens, and the model reads 64") as raised:
        require_positions(policy, 65, "the lengths")
    assert raised.value.where == "the lengths"
    assert raised.value.fix


def test_a_model_without_a_limit_reads_any_length() -> None:
    require_positions(BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)), 10**6, "")
