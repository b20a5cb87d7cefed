"""Tiny tokenizers and settings, built in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data.settings import FileData, HHRlhfData, HubData, Records

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n.,:;?!<>|_/'\""

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds tokenizers with one token a character, so that ids can be counted by hand."""

    def build(
        *, pad: str | None = "<pad>", bos: bool = False, chat_template: str | None = None
    ) -> PreTrainedTokenizerFast:
        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"]
        vocabulary = {token: index for index, token in enumerate([*special, *CHARACTERS])}
        backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = Split(pattern="", behavior="isolated")
        if bos:
            backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token=pad,
            eos_token="<eos>",
            unk_token="<unk>",
            additional_special_tokens=special[4:],
            **({"bos_token": "<bos>"} if bos else {}),
        )
        tokenizer.chat_template = chat_template
        return tokenizer

    return build


@pytest.fixture
def chatml() -> str:
    """A chat template in the manner of ChatML: every turn ends in the end-of-sequence token and a new line."""
    return CHATML


@pytest.fixture
def make_lengths() -> Callable[..., Records]:
    def build(prompt: int = 1000, response: int = 1000, mode: str = "truncate") -> Records:
        return Records.model_validate(
            {"max_prompt_length": prompt, "max_response_length": response, "on_long_record": mode, "pairing": "all"}
        )

    return build


SHARED: dict[str, Any] = {
    "max_prompt_length": 100,
    "pairing": "all",
    "max_response_length": 100,
    "on_long_record": "truncate",
    "on_bad_record": "error",
    "held_out_fraction": 0.5,
    "max_records": None,
}


@pytest.fixture
def make_file_data() -> Callable[..., FileData]:
    def build(**values: Any) -> FileData:
        nothing = {"demonstrations": None, "preferences": None, "rankings": None, "prompts": None}
        paths = {key: str(value) if key in nothing and value is not None else value for key, value in values.items()}
        return FileData.model_validate({"kind": "files", **SHARED, **nothing, **paths})

    return build


@pytest.fixture
def make_hh_data() -> Callable[..., HHRlhfData]:
    def build(path: object, **values: Any) -> HHRlhfData:
        return HHRlhfData.model_validate({"kind": "hh_rlhf", **SHARED, "path": str(path), **values})

    return build


@pytest.fixture
def make_hub_data() -> Callable[..., HubData]:
    def build(name: object, **values: Any) -> HubData:
        base = {"kind": "hub", **SHARED, "name": str(name), "config": None, "split": "train", "record": "preference"}
        return HubData.model_validate({**base, **values})

    return build
