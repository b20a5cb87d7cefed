"""A tokenizer and a model from nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.scratch import random_model, train_tokenizer
from rlhf_lightning.models.settings import ScratchModel

SETTINGS = ScratchModel(
    kind="scratch",
    dtype="float32",
    gradient_checkpointing=False,
    share_backbone="auto",
    vocab_size=300,
    hidden_size=16,
    layers=2,
    heads=2,
    max_positions=32,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["the cat sat on the mat, the cat sat"] * 20, vocab_size=280)


@pytest.mark.parametrize("text", ["the cat", "Zoë said: 你好 \U0001f642\n\ttwice  over", " leading and trailing "])
def test_any_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_frequent_words_become_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer(" cat")["input_ids"]) < len(tokenizer(" tac")["input_ids"])
    assert len(tokenizer) <= 280


def test_special_tokens_are_whole_and_distinct(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("<|end|>")["input_ids"] == [tokenizer.eos_token_id]


def test_a_conversation_ends_every_turn_with_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|user|>hi<|end|><|assistant|>yo<|end|>"
    opening = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert opening == "<|user|>hi<|end|><|assistant|>"


def test_the_model_fits_the_tokenizer_and_the_settings(tokenizer: PreTrainedTokenizerBase) -> None:
    model = random_model(SETTINGS, tokenizer)
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert (model.config.num_hidden_layers, model.config.max_position_embeddings) == (2, 32)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert not model.training


def test_the_seed_decides_the_weights(tokenizer: PreTrainedTokenizerBase) -> None:
    fingerprints = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        fingerprints.append(FrozenReference(random_model(SETTINGS, tokenizer)).fingerprint())
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
