"""Directories that plain Transformers opens, with the tokenizer that belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_lightning.models.loading import save_classifier, save_policy

MakeModel = Callable[..., PreTrainedModel]


def test_a_policy_generates_with_nothing_but_transformers(
    make_policy: MakeModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    policy = make_policy()
    policy.generation_config = GenerationConfig()
    save_policy(policy, words, tmp_path)
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 7]])
    torch.testing.assert_close(opened(ids).logits, policy(ids).logits, atol=5e-6, rtol=0)
    assert tokenizer("w5 w9")["input_ids"] == [5, 9]
    assert (opened.generation_config.eos_token_id, opened.generation_config.pad_token_id) == (1, 0)
    assert opened.generate(ids, max_new_tokens=3).shape[1] <= 6


def test_a_model_that_has_stop_tokens_of_its_own_keeps_them(
    make_policy: MakeModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    policy = make_policy()
    policy.generation_config = GenerationConfig(eos_token_id=[1, 33], pad_token_id=4)
    save_policy(policy, words, tmp_path)
    config = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (config.eos_token_id, config.pad_token_id) == ([1, 33], 4)


def test_a_classifier_keeps_its_labels_and_pads_like_its_tokenizer(
    make_reward_model: MakeModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    classifier = make_reward_model(labels=("rejected", "chosen"), pad_token_id=None)
    save_classifier(classifier, words, tmp_path)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert opened.config.id2label == {0: "rejected", 1: "chosen"}
    assert opened.config.pad_token_id == 0
    # Padded on the right with a pad that is not EOS, Transformers' own forward reads the last real token as well.
    logits = opened(torch.tensor([[5, 9, 0], [5, 9, 7]])).logits
    torch.testing.assert_close(logits[0], opened(torch.tensor([[5, 9]])).logits[0])


def test_weights_are_readable_by_whoever_may_read_the_config(
    make_policy: MakeModel, make_reward_model: MakeModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_policy(make_policy(), words, tmp_path / "policy")
    save_classifier(make_reward_model(), words, tmp_path / "classifier")
    for directory in (tmp_path / "policy", tmp_path / "classifier"):
        modes = {(directory / name).stat().st_mode for name in ("model.safetensors", "config.json")}
        assert len(modes) == 1
