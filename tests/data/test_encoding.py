"""Token ids with an exact boundary; one token is one character, so every id can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data.encoding import EncodedPreference, Encoder
from rlhf_lightning.data.formats import DEFAULT_CHAT_TEMPLATE
from rlhf_lightning.errors import DataError, ModelError
from rlhf_lightning.records import Demonstration, Message, Preference, Prompt

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
MakeLengths = Callable[..., object]

CHAT = Prompt((Message("user", "hi"), Message("assistant", "yo"), Message("user", "why")))


def read(encoder: Encoder, ids: Sequence[int]) -> str:
    return "".join(encoder.tokenizer.convert_ids_to_tokens(list(ids)))


@pytest.fixture
def make_encoder(make_tokenizer: MakeTokenizer, make_lengths: Callable[..., object]) -> Callable[..., Encoder]:
    def build(*, prompt: int = 1000, response: int = 1000, mode: str = "truncate", **tokenizer: object) -> Encoder:
        return Encoder(make_tokenizer(**tokenizer), make_lengths(prompt, response, mode))

    return build


def test_plain_text_is_encoded_as_it_stands(make_encoder: Callable[..., Encoder], chatml: str) -> None:
    encoder = make_encoder(chat_template=chatml)
    assert read(encoder, encoder.prompt_ids(Prompt("Q: why\n"))) == "Q: why\n"
    assert read(encoder, encoder.whole_ids(Prompt("Q: why\n"), "so")[1]) == "so<eos>"
    assert read(encoder, encoder.whole_ids(Prompt("Q: why\n"), "")[1]) == "<eos>"


def test_the_beginning_token_is_added_once(make_encoder: Callable[..., Encoder], chatml: str) -> None:
    encoder = make_encoder(bos=True)
    assert read(encoder, encoder.prompt_ids(Prompt("why"))) == "<bos>why"
    assert read(encoder, encoder.prompt_ids(Prompt("<bos>why"))) == "<bos>why"
    # The default template has it too, and is saved with the tokenizer; a response has none.
    assert read(encoder, encoder.prompt_ids(CHAT)) == "<bos>\n\nHuman: hi\n\nAssistant: yo\n\nHuman: why\n\nAssistant:"
    assert read(encoder, encoder.whole_ids(CHAT, "so")[1]) == " so<eos>"
    # A template that has its own is followed to the letter, and so is one that has none.
    encoder = make_encoder(bos=True, chat_template="{{ bos_token }}" + chatml)
    assert read(encoder, encoder.prompt_ids(Prompt((Message("user", "hi"),)))).startswith("<bos><|user|>hi")
    encoder = make_encoder(bos=True, chat_template=chatml)
    assert read(encoder, encoder.prompt_ids(Prompt((Message("user", "hi"),)))).startswith("<|user|>hi")


def test_a_conversation_goes_through_the_chat_template(make_encoder: Callable[..., Encoder], chatml: str) -> None:
    encoder = make_encoder(chat_template=chatml)
    expected = "<|user|>hi<eos>\n<|assistant|>yo<eos>\n<|user|>why<eos>\n<|assistant|>"
    assert read(encoder, encoder.prompt_ids(CHAT)) == expected
    # The template's own end token counts as the response's, and the new line after it is not learned.
    assert read(encoder, encoder.whole_ids(CHAT, "so")[1]) == "so<eos>"
    assert read(encoder, encoder.whole_ids(CHAT, "so\n")[1]) == "so\n<eos>"
    assert read(encoder, encoder.whole_ids(CHAT, "")[1]) == "<eos>"


def test_an_end_token_inside_a_response_does_not_end_it(make_encoder: Callable[..., Encoder], chatml: str) -> None:
    for encoder in (make_encoder(), make_encoder(chat_template=chatml)):
        for prompt in (Prompt("why"), CHAT):
            assert read(encoder, encoder.whole_ids(prompt, "a<eos>b<eos>")[1]).strip() == "ab<eos>"


def test_a_template_that_rewrites_the_prompt_once_it_is_answered(make_encoder: Callable[..., Encoder]) -> None:
    template = (
        "{% if messages[-1]['role'] == 'assistant' %}answered: {% endif %}"
        "{% for message in messages %}{{ message['content'] }}|{% endfor %}"
    )
    encoder = make_encoder(chat_template=template)
    assert read(encoder, encoder.prompt_ids(CHAT)) == "hi|yo|why|"
    assert read(encoder, encoder.whole_ids(CHAT, "so")[1]) == "so<eos>"


def test_a_tokenizer_without_a_template_is_given_the_default_one(
    make_encoder: Callable[..., Encoder], tmp_path: object
) -> None:
    encoder = make_encoder()
    encoder.prompt_ids(Prompt("plain text needs none"))
    assert encoder.tokenizer.chat_template is None
    prompt = Prompt((Message("system", "be brief"), Message("user", "why")))
    assert read(encoder, encoder.prompt_ids(prompt)) == "be brief\n\nHuman: why\n\nAssistant:"
    assert read(encoder, encoder.whole_ids(prompt, "so")[1]) == " so<eos>"
    assert read(encoder, encoder.whole_ids(prompt, "")[1]) == "<eos>"
    encoder.tokenizer.save_pretrained(str(tmp_path))
    assert PreTrainedTokenizerFast.from_pretrained(str(tmp_path)).chat_template == DEFAULT_CHAT_TEMPLATE


def test_long_records_are_truncated_and_counted(make_encoder: Callable[..., Encoder]) -> None:
    encoder = make_encoder(prompt=4, response=3)
    records = [
        Demonstration(Prompt("abcd"), "xy"),  # fits: 4 and 2 + the end
        Demonstration(Prompt("abcde"), "xy"),  # the prompt is one too long
        Demonstration(Prompt("abcde"), "xyz"),  # both are one too long: the end is cut off
    ]
    encoded, report = encoder.demonstrations(records)
    assert [(read(encoder, each.prompt_ids), read(encoder, each.response_ids)) for each in encoded] == [
        ("abcd", "xy<eos>"),
        ("bcde", "xy<eos>"),
        ("bcde", "xyz"),
    ]
    counts = (report.records, report.truncated_prompts, report.truncated_responses, report.dropped, report.kept)
    assert counts == (3, 2, 1, 0, 3)


def test_long_records_are_dropped_and_counted(make_encoder: Callable[..., Encoder]) -> None:
    encoder = make_encoder(prompt=4, response=3, mode="drop")
    preferences = [
        Preference(Prompt("abcd"), "xy", "z", margin=0.5),
        Preference(Prompt("abcde"), "xy", "z"),
        Preference(Prompt("abcd"), "xy", "xyz"),
    ]
    encoded, report = encoder.preferences(preferences)
    assert [read(encoder, each.rejected_ids) for each in encoded] == ["z<eos>"]
    assert encoded[0].margin == 0.5
    assert (report.records, report.dropped, report.truncated_prompts, report.truncated_responses) == (3, 2, 0, 0)
    prompts, report = encoder.prompts([Prompt("abcde"), Prompt("ab")])
    assert [(each.prompt, read(encoder, each.prompt_ids)) for each in prompts] == [(Prompt("ab"), "ab")]
    assert (report.records, report.dropped, report.kept) == (2, 1, 1)


def test_a_truncated_prompt_keeps_its_beginning_token(make_encoder: Callable[..., Encoder]) -> None:
    encoder = make_encoder(prompt=4, bos=True)
    encoded, _ = encoder.prompts([Prompt("abc"), Prompt("abcd")])
    assert [read(encoder, each.prompt_ids) for each in encoded] == ["<bos>abc", "<bos>bcd"]


def test_pairs_that_truncation_makes_equal_are_left_out(make_encoder: Callable[..., Encoder]) -> None:
    encoder = make_encoder(response=3)
    encoded, report = encoder.preferences([Preference(Prompt("a"), "xyz1", "xyz2"), Preference(Prompt("a"), "x", "y")])
    end = encoder.eos_id
    x, y, a = encoder.tokenizer.convert_tokens_to_ids(["x", "y", "a"])
    assert encoded == [EncodedPreference((a,), (x, end), (y, end), 0.0)]
    assert (report.records, report.truncated_responses, report.indistinct, report.kept) == (2, 1, 1, 1)
    assert "1 of 2 records kept" in report.summary()


def test_a_soft_label_is_kept_and_none_is_a_certain_one(make_encoder: Callable[..., Encoder]) -> None:
    encoded, _ = make_encoder().preferences(
        [Preference(Prompt("a"), "x", "y", probability=0.75), Preference(Prompt("a"), "x", "y")]
    )
    assert [pair.probability for pair in encoded] == [0.75, 1.0]


def test_errors(make_encoder: Callable[..., Encoder], make_tokenizer: MakeTokenizer, make_lengths: MakeLengths) -> None:
    refuses = make_encoder(chat_template="{{ raise_exception('the system turn is unknown') }}")
    with pytest.raises(DataError, match="refuses a conversation: the system turn is unknown") as caught:
        refuses.prompt_ids(CHAT)
    assert "user, assistant, user" in (caught.value.where or "")
    with pytest.raises(DataError, match="makes no token of a prompt"):
        make_encoder(chat_template="").prompts([CHAT])
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Encoder(endless, make_lengths())
