"""In which words a model is asked, and with which examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.constitutions.rendering import EnglishPhrasing
from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.records import Message, Prompt
from rlhf_lightning.stages.prompting import open_encoder, phrasing_for
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.worlds.courtesy.phrasing import CourtesyPhrasing

CHAT = Prompt((Message("user", "w3"),))


@pytest.fixture
def context(composed: Callable[..., RunSettings]) -> Any:
    return SimpleNamespace(settings=composed())


def test_the_world_is_asked_in_its_own_words_unless_english_is_wanted(composed: Callable[..., RunSettings]) -> None:
    settings = composed()
    assert isinstance(phrasing_for(settings, "auto", "auto", False), CourtesyPhrasing)
    assert isinstance(phrasing_for(settings, "english", "auto", False), EnglishPhrasing)


def test_other_data_is_asked_in_english_unless_the_world_is_wanted(
    composed: Callable[..., RunSettings], tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w3"}\n')
    settings = composed("data=files", f"data.prompts={tmp_path / 'prompts.jsonl'}", "model=scratch")
    assert isinstance(phrasing_for(settings, "auto", "auto", False), EnglishPhrasing)
    assert isinstance(phrasing_for(settings, "world", "auto", False), CourtesyPhrasing)


@pytest.mark.parametrize(
    ("fewshots", "is_plain", "with_examples"),
    [("auto", True, True), ("auto", False, False), ("always", False, True), ("never", True, False)],
)
def test_plain_models_are_shown_examples(
    composed: Callable[..., RunSettings], fewshots: str, is_plain: bool, with_examples: bool
) -> None:
    phrasing = phrasing_for(composed(), "english", fewshots, is_plain)
    assert isinstance(phrasing, EnglishPhrasing)
    assert phrasing.fewshots == with_examples


def test_a_plain_model_stays_plain_when_a_stage_has_tuned_it(
    context: Any, make_words: Callable[..., PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    make_words().save_pretrained(str(tmp_path / "base"))
    encoder, is_plain = open_encoder(context, ModelSource(str(tmp_path / "base")))
    assert is_plain
    # As fine-tuning on conversations does: the tokenizer that it saves has the template that they were written with.
    encoder.prompt_ids(CHAT)
    encoder.tokenizer.save_pretrained(str(tmp_path / "tuned"))
    tuned, is_plain = open_encoder(context, ModelSource(str(tmp_path / "tuned")))
    assert tuned.tokenizer.chat_template is not None
    assert is_plain


def test_a_model_with_a_chat_template_of_its_own_is_not_plain(
    context: Any, make_words: Callable[..., PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    tokenizer = make_words()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(str(tmp_path))
    encoder, is_plain = open_encoder(context, ModelSource(str(tmp_path)))
    assert not is_plain
    assert isinstance(encoder, Encoder)
