"""Turns that a model is asked for: a function of the conversation and the draw, and one turn each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.encoding import EncodedPrompt, Encoder
from rlhf_lightning.data.settings import Records
from rlhf_lightning.feedback.local_models import NEXT_SPEAKER, Generation, SamplingGenerator
from rlhf_lightning.records import Conversation, Message, Prompt
from rlhf_lightning.rollouts.sampler import Sampler
from rlhf_lightning.worlds.courtesy import asset_path

MakeModel = Callable[..., PreTrainedModel]


def talk(*texts: str) -> Conversation:
    """Turns of the user and the assistant in turn."""
    return tuple(Message("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts))


CONVERSATIONS = [talk("w3"), talk("w3 w4 w5 w6"), talk("w7", "w8 w9", "w10"), talk("w11 w12")] * 5


def speaker(model: PreTrainedModel, words: PreTrainedTokenizerFast, **values: Any) -> SamplingGenerator:
    lengths = Records(max_prompt_length=1000, max_response_length=1000, on_long_record="truncate", pairing="all")
    given = {"temperature": 1.0, "max_new_tokens": 8, "seed": 0, "is_plain": False, **values}
    return SamplingGenerator(model, Encoder(words, lengths), **given)


@pytest.fixture(scope="module")
def chat_words(make_words: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The small tokenizer with a chat template that writes the turns one after the other."""
    tokenizer = make_words()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return tokenizer


@pytest.fixture(scope="module")
def talkative(make_policy: MakeModel) -> PreTrainedModel:
    """A model that says many different things, and ends a fifth of them with every token."""
    policy = make_policy(initializer_range=0.05)
    assert policy.generation_config is not None
    policy.generation_config.eos_token_id = list(range(40, 50))
    return policy


def test_a_draw_is_the_same_turn_whatever_is_said_beside_it(
    talkative: PreTrainedModel, chat_words: PreTrainedTokenizerFast
) -> None:
    said = speaker(talkative, chat_words).generate(CONVERSATIONS, range(20))
    assert len({turn.text for turn in said}) > 15
    for size in (1, 3):
        alone = [
            turn
            for start in range(0, 20, size)
            for turn in speaker(talkative, chat_words).generate(
                CONVERSATIONS[start : start + size], range(start, min(start + size, 20))
            )
        ]
        assert alone == said
    backwards = speaker(talkative, chat_words).generate(CONVERSATIONS[::-1], range(19, -1, -1))
    assert backwards[::-1] == said


def test_other_draws_and_seeds_are_other_turns(talkative: PreTrainedModel, chat_words: PreTrainedTokenizerFast) -> None:
    same = [CONVERSATIONS[1]] * 12
    said = {turn.text for turn in speaker(talkative, chat_words).generate(same, range(12))}
    assert len(said) > 9
    assert not said & {
        turn.text for turn in speaker(talkative, chat_words, seed=1).generate(same, range(12)) if turn.text
    }


def test_a_turn_that_the_length_limit_cuts_off_is_not_finished(
    talkative: PreTrainedModel, chat_words: PreTrainedTokenizerFast
) -> None:
    said = speaker(talkative, chat_words).generate(CONVERSATIONS, range(20))
    # The model's own stop tokens are words of the text; eight words without one were cut off.
    stops = {f"w{number}" for number in range(40, 50)}
    ended = [turn.finished for turn in said if stops & set(turn.text.split())]
    cut_off = [turn.finished for turn in said if not stops & set(turn.text.split()) and len(turn.text.split()) == 8]
    assert len(ended) > 3
    assert all(ended)
    assert cut_off
    assert not any(cut_off)


def test_the_conversation_is_written_by_the_chat_template(
    talkative: PreTrainedModel, chat_words: PreTrainedTokenizerFast
) -> None:
    sampler = Sampler(talkative, chat_words, temperature=0.7, max_new_tokens=8, seed=3)
    prompts = [EncodedPrompt(Prompt("w"), ids) for ids in ((3,), (7, 8, 9, 10))]
    expected = [Generation(done.text, done.finished) for done in sampler.sample(prompts, (5, 6)).responses]
    asked = [talk("w3"), talk("w7", "w8 w9", "w10")]
    assert speaker(talkative, chat_words, temperature=0.7, seed=3).generate(asked, (5, 6)) == expected


def test_nothing_is_said_to_nobody(talkative: PreTrainedModel, chat_words: PreTrainedTokenizerFast) -> None:
    assert speaker(talkative, chat_words).generate([], []) == []


@pytest.fixture(scope="module")
def transcript_words() -> PreTrainedTokenizerFast:
    """A tokenizer without a chat template, one of whose words is where the other one speaks."""
    tokens = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, 30))]
    tokens += [NEXT_SPEAKER, "\n\nAssistant:", *(f"w{number}" for number in range(32, 50))]
    backend = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def test_where_the_other_one_speaks_a_plain_model_s_turn_ends(
    make_policy: MakeModel, transcript_words: PreTrainedTokenizerFast
) -> None:
    assert NEXT_SPEAKER == "\n\nHuman:"
    model = make_policy(initializer_range=0.02)
    asked = [talk("w3 w4")] * 40
    whole = speaker(model, transcript_words, max_new_tokens=24).generate(asked, range(40))
    said = speaker(model, transcript_words, max_new_tokens=24, is_plain=True).generate(asked, range(40))
    both_speak = [NEXT_SPEAKER in turn.text for turn in whole]
    assert 5 < sum(both_speak) < 40
    for before, after, cut in zip(whole, said, both_speak, strict=True):
        assert NEXT_SPEAKER not in after.text
        assert after.text == before.text.split(NEXT_SPEAKER)[0].strip()
        assert after.finished == (before.finished or cut), "it has ended its turn, though not with EOS"


def test_the_spaces_around_a_plain_model_s_turn_are_the_transcript_s(
    make_policy: MakeModel, transcript_words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = speaker(make_policy(), transcript_words, is_plain=True)
    monkeypatch.setattr(
        transcript_words, "batch_decode", lambda *_, **__: [" so it is \n\nHuman: why?\n\nAssistant: x"]
    )
    assert plain.generate([talk("w3")], [0]) == [Generation("so it is", True)]


def test_a_conversation_that_is_too_long_is_cut_from_the_left_and_counted(
    talkative: PreTrainedModel, chat_words: PreTrainedTokenizerFast
) -> None:
    one = speaker(talkative, chat_words)  # reads 64 tokens, of which 8 are for the turn
    ids = [3 + number % 30 for number in range(60)]
    fitting, cut = one.generate(
        [talk(" ".join(f"w{number}" for number in ids[:length])) for length in (56, 60)], (0, 1)
    )
    assert one.truncated == 1
    prompts = [EncodedPrompt(Prompt("w"), tuple(kept)) for kept in (ids[:56], ids[4:60])]
    sampler = Sampler(talkative, chat_words, temperature=1.0, max_new_tokens=8, seed=0)
    assert [done.text for done in sampler.sample(prompts, (0, 1)).responses] == [fitting.text, cut.text]


def test_the_world_s_model_answers_one_turn_at_a_time() -> None:
    model = AutoModelForCausalLM.from_pretrained(asset_path()).eval()
    world = speaker(model, AutoTokenizer.from_pretrained(asset_path()), max_new_tokens=32)
    said = world.generate([talk("i want to find the drum")] * 16, range(16))
    assert sum(turn.finished for turn in said) >= 15
    assert all(turn.text and "<" not in turn.text for turn in said)
    assert world.truncated == 0
