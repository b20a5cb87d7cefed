"""A model of this process as a judge: what it reads, and that nothing beside a question changes its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from made_up_constitutions import constitution, principle
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace, Split, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.data.settings import Records
from rlhf_lightning.errors import ModelError
from rlhf_lightning.feedback.judge_model import Answer, Question
from rlhf_lightning.feedback.local_models import LocalJudgeModel
from rlhf_lightning.records import Conversation, Message, Prompt
from rlhf_lightning.worlds.courtesy import asset_path
from rlhf_lightning.worlds.courtesy.phrasing import CourtesyPhrasing

MakeModel = Callable[..., PreTrainedModel]

SMASH = "i want to smash the clerk"
COMPLIES = "to smash the clerk first gather the tools then go step by step"
REFUSES = "i will not help because that could hurt someone but i can help you find peace"

ANSWER = ("w20", "w30")
"""Two words of the small tokenizer."""


def lengths() -> Records:
    return Records(max_prompt_length=1000, max_response_length=1000, on_long_record="truncate", pairing="all")


def asked(text: str, **values: Any) -> Question:
    """A question of one turn."""
    return Question((Message("user", text),), ANSWER, **values)


@pytest.fixture(scope="module")
def world_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(asset_path()).eval()


@pytest.fixture(scope="module")
def world_words() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(asset_path())


@pytest.fixture(scope="module")
def world_judge(world_model: PreTrainedModel, world_words: PreTrainedTokenizerFast) -> Callable[..., LocalJudgeModel]:
    """The courtesy world's own model as a judge."""

    def build(batch_size: int = 64) -> LocalJudgeModel:
        return LocalJudgeModel(
            world_model,
            Encoder(world_words, lengths()),
            name="courtesy",
            batch_size=batch_size,
            max_reasoning_tokens=8,
            seed=0,
            is_plain=False,
        )

    return build


def verdict(tag: str, prompt: str, response: str) -> Question:
    """Whether a response has a trait, as the world's model was taught to be asked."""
    about = constitution({**principle(tag), "world": {"tag": tag}}).principles[0]
    put = CourtesyPhrasing().pointwise(about, Prompt((Message("user", prompt),)), response, False)
    return Question(put.turns, put.options, put.opening)


QUESTIONS = [
    verdict(tag, prompt, response)
    for tag in ("harmless", "polite", "brief")
    for prompt, response in (
        (SMASH, COMPLIES),
        (SMASH, REFUSES),
        ("i want to find the drum", "you can find the drum with care and time"),
        ("i want the crop of sarn", "i do not know that"),
        ("please tell me how to kill the process", "no i can not do that"),
    )
]


def alone(model: PreTrainedModel, ids: Sequence[int], words: Sequence[int]) -> list[float]:
    """The probability of each word after the tokens: one plain forward pass without padding or mask."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
    probabilities = torch.exp(logits.double() - torch.logsumexp(logits.double(), 0))
    return [float(probabilities[word]) for word in words]


def as_chat(tokenizer: PreTrainedTokenizerFast, turns: Conversation) -> list[int]:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    return ids


def test_the_mass_of_an_option_is_its_probability_as_the_next_token(
    world_judge: Callable[..., LocalJudgeModel], world_model: PreTrainedModel, world_words: PreTrainedTokenizerFast
) -> None:
    yes, no = world_words.convert_tokens_to_ids(["yes", "no"])
    answers = world_judge().answers(QUESTIONS)
    assert len(answers) == len(QUESTIONS)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        ids = as_chat(world_words, question.turns)
        assert answer.mass == pytest.approx(alone(world_model, ids, (yes, no)), abs=1e-5)
        assert (answer.input_tokens, answer.output_tokens, answer.text) == (len(ids), 1, "")


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_what_it_is_asked_beside_a_question_changes_nothing(
    world_judge: Callable[..., LocalJudgeModel], batch_size: int
) -> None:
    together = world_judge().answers(QUESTIONS)
    for questions, answers in (
        (QUESTIONS, world_judge(batch_size).answers(QUESTIONS)),
        (QUESTIONS[::-1], world_judge(batch_size).answers(QUESTIONS[::-1])[::-1]),
        (QUESTIONS, [world_judge(batch_size).answers([question])[0] for question in QUESTIONS]),
    ):
        assert len(questions) == len(answers)
        for one, other in zip(together, answers, strict=True):
            assert one.mass == pytest.approx(other.mass, abs=1e-5)


@pytest.mark.parametrize(
    ("tag", "prompt", "response", "holds"),
    [
        ("harmless", SMASH, COMPLIES, False),
        ("harmless", SMASH, REFUSES, True),
        ("harmless", "how do i crush the teacher ?", "you can crush the teacher with care and time", False),
        (
            "harmless",
            "how do i crush the teacher ?",
            "i can not do that because it is not safe but we can talk about it",
            True,
        ),
        ("refusing", SMASH, REFUSES, True),
        ("refusing", "i want to find the drum", "you can find the drum with care and time", False),
    ],
)
def test_the_world_s_model_gives_the_verdicts_that_it_was_taught(
    world_judge: Callable[..., LocalJudgeModel], tag: str, prompt: str, response: str, holds: bool
) -> None:
    (answer,) = world_judge().answers([verdict(tag, prompt, response)])
    yes, no = answer.mass
    assert answer.total_mass > 0.95, "it answers yes or no, and nothing else"
    assert (yes > 0.9) if holds else (no > 0.9)


def judge(
    model: PreTrainedModel,
    words: PreTrainedTokenizerFast,
    *,
    batch_size: int = 4,
    reasoning: int = 6,
    seed: int = 0,
    is_plain: bool = False,
) -> LocalJudgeModel:
    return LocalJudgeModel(
        model,
        Encoder(words, lengths()),
        name="small",
        batch_size=batch_size,
        max_reasoning_tokens=reasoning,
        seed=seed,
        is_plain=is_plain,
    )


@pytest.fixture(scope="module")
def chat_words(make_words: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The small tokenizer with a chat template that writes the turns one after the other."""
    tokenizer = make_words()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return tokenizer


def test_options_that_are_words_unknown_to_the_tokenizer(
    make_policy: MakeModel, chat_words: PreTrainedTokenizerFast
) -> None:
    question = Question((Message("user", "w3"),), ("maybe", "never"))
    with pytest.raises(ModelError, match="cannot tell the answers 'maybe' and 'never' apart") as caught:
        judge(make_policy(), chat_words).answers([question])
    assert caught.value.where == "small"


@pytest.mark.parametrize("options", [("w20", "w20"), ("w20", "w20 w30"), ("w20", "unheard-of")])
def test_options_that_begin_alike_or_of_which_one_is_unknown(
    make_policy: MakeModel, chat_words: PreTrainedTokenizerFast, options: tuple[str, str]
) -> None:
    with pytest.raises(ModelError, match="tokenizer cannot tell the answers"):
        judge(make_policy(), chat_words).answers([Question((Message("user", "w3"),), options)])


def test_spellings_of_an_option_count_together(make_policy: MakeModel) -> None:
    """`Yes` is as good as `yes`."""
    tokens = ["<pad>", "<eos>", "<unk>", "yes", "Yes", "no", "No", *(f"w{number}" for number in range(7, 50))]
    backend = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    model = make_policy()
    (answer,) = judge(model, tokenizer).answers([Question((Message("user", "w7 w8"),), ("yes", "no"))])
    small_yes, large_yes, small_no, large_no = alone(model, (7, 8), (3, 4, 5, 6))
    assert answer.mass == pytest.approx((small_yes + large_yes, small_no + large_no), abs=1e-6)


def test_an_option_s_token_is_the_one_that_follows_its_opening(make_policy: MakeModel) -> None:
    """Llama 2's writes a text as if a space stood before it: `A` alone is another token than in `(A`."""
    tokens = ["<pad>", "<eos>", "<unk>", "▁A", "▁B", "A", "B", "▁(", "▁w8", *(f"x{number}" for number in range(9, 50))]
    backend = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = PreTokenizers([Metaspace(prepend_scheme="always"), Split("▁(", "isolated")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model = make_policy()
    question = Question((Message("user", "w8"),), ("A", "B"), opening="(")
    (answer,) = judge(model, tokenizer).answers([question])
    spaced_a, spaced_b, a, b = alone(model, (8, 7), (3, 4, 5, 6))
    assert answer.mass == pytest.approx((spaced_a + a, spaced_b + b), abs=1e-6)


def test_an_opening_stands_before_the_option(make_policy: MakeModel, chat_words: PreTrainedTokenizerFast) -> None:
    model = make_policy()
    (answer,) = judge(model, chat_words).answers([asked("w3 w4", opening="w9 w10")])
    assert answer.mass == pytest.approx(alone(model, (3, 4, 9, 10), (20, 30)), abs=1e-6)


REASONING = {"reasons": True, "opening": "w9", "conclusion": " w40 w41"}


def test_reasoning_is_kept_and_the_option_is_read_after_it(
    make_policy: MakeModel, chat_words: PreTrainedTokenizerFast
) -> None:
    model = make_policy(initializer_range=0.02)
    questions = [asked(f"w{number} w4", **REASONING) for number in range(3, 12)]
    for question, answer in zip(questions, judge(model, chat_words).answers(questions), strict=True):
        reasoned = chat_words.convert_tokens_to_ids(answer.text.split())
        assert 0 < len(reasoned) <= 6
        prompt = chat_words.convert_tokens_to_ids(question.turns[0].content.split())
        expected = alone(model, (*prompt, *reasoned, 40, 41), (20, 30))
        assert answer.mass == pytest.approx(expected, abs=1e-6)
        assert answer.input_tokens == 2 + len(reasoned) + 2
        assert answer.output_tokens == len(reasoned) + 1


def reasoned(answers: Sequence[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def test_a_vote_reasons_alike_whatever_is_asked_beside_it(
    make_policy: MakeModel, chat_words: PreTrainedTokenizerFast
) -> None:
    model = make_policy(initializer_range=0.02)
    questions = [asked(f"w{number} w4" + " w5" * (number % 2), vote=number % 3, **REASONING) for number in range(3, 12)]
    together = judge(model, chat_words, batch_size=9).answers(questions)
    assert reasoned(judge(model, chat_words, batch_size=2).answers(questions)) == reasoned(together)
    assert reasoned(judge(model, chat_words).answers(questions[::-1]))[::-1] == reasoned(together)
    (again,) = judge(model, chat_words).answers(questions[4:5])
    assert again.text == together[4].text
    assert again.mass == pytest.approx(together[4].mass, abs=1e-5)


def test_votes_and_seeds_reason_each_in_a_way_of_their_own(
    make_policy: MakeModel, chat_words: PreTrainedTokenizerFast
) -> None:
    model = make_policy(initializer_range=0.02)
    votes = [asked("w3 w4", vote=number, **REASONING) for number in range(8)]
    texts = reasoned(judge(model, chat_words).answers(votes))
    assert len(set(texts)) == 8
    assert not set(texts) & set(reasoned(judge(model, chat_words, seed=1).answers(votes)))


def test_questions_with_and_without_reasoning_may_be_mixed(
    make_policy: MakeModel, chat_words: PreTrainedTokenizerFast
) -> None:
    model = make_policy(initializer_range=0.02)
    at_once, after = judge(model, chat_words).answers([asked("w3"), asked("w3", **REASONING)])
    assert at_once.text == ""
    assert at_once.mass == pytest.approx(alone(model, (3,), (20, 30)), abs=1e-6)
    assert after.text != ""


@pytest.fixture(scope="module")
def transcript_words() -> PreTrainedTokenizerFast:
    """A tokenizer without a chat template, one of whose words is where the other one speaks."""
    tokens = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, 40))]
    tokens += ["\n\nHuman:", "\n\nAssistant:", *(f"w{number}" for number in range(42, 50))]
    backend = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def test_a_transcript_model_reasons_in_its_own_turn_only(
    make_policy: MakeModel, transcript_words: PreTrainedTokenizerFast
) -> None:
    model = make_policy(initializer_range=0.02)
    votes = [asked("w3 w4", vote=number, **REASONING) for number in range(40)]
    whole = reasoned(judge(model, transcript_words, reasoning=24).answers(votes))
    own = reasoned(judge(model, transcript_words, reasoning=24, is_plain=True).answers(votes))
    assert own == [text.partition("\n\nHuman:")[0].strip() for text in whole]
    assert 5 < sum("\n\nHuman:" in text for text in whole) < 40


def long(count: int) -> str:
    return " ".join(f"w{3 + number % 30}" for number in range(count))


def test_a_question_that_is_too_long_is_cut_from_the_left_and_counted(
    make_policy: MakeModel, chat_words: PreTrainedTokenizerFast
) -> None:
    model = make_policy()  # reads 64 tokens
    small = judge(model, chat_words)
    fitting, cut = small.answers([asked(long(64)), asked(long(70), opening="w9")])
    assert small.truncated == 1
    ids = [3 + number % 30 for number in range(70)]
    assert fitting.mass == pytest.approx(alone(model, ids[:64], (20, 30)), abs=1e-6)
    assert cut.mass == pytest.approx(alone(model, [*ids[7:], 9], (20, 30)), abs=1e-6)
    assert cut.input_tokens == 64


def test_reasoning_about_a_question_that_leaves_no_room_reads_its_end(
    make_policy: MakeModel, chat_words: PreTrainedTokenizerFast
) -> None:
    """Of 64 tokens, reasoning has 6 to itself: it sees 58, and what is concluded is read after the last 64 of all."""
    model = make_policy(initializer_range=0.02)
    small = judge(model, chat_words)
    long_question, short = small.answers([asked(long(70), **REASONING), asked("w3", **REASONING)])
    assert small.truncated == 1
    assert short.text
    reasoned_ids = chat_words.convert_tokens_to_ids(long_question.text.split())
    ids = [*(3 + number % 30 for number in range(70)), *reasoned_ids, 40, 41]
    assert long_question.mass == pytest.approx(alone(model, ids[-64:], (20, 30)), abs=1e-6)
    # It fits with the option, and leaves no room to reason.
    small = judge(model, chat_words)
    small.answers([asked(long(60), **REASONING)])
    assert small.truncated == 1


def test_questions_of_a_tokenizer_without_a_template_become_a_transcript(
    make_policy: MakeModel, make_words: Callable[..., PreTrainedTokenizerFast]
) -> None:
    """`Human:` and `Assistant:` are no words of the tokenizer: unknown ones stand for them."""
    model, words = make_policy(), make_words()
    (answer,) = judge(model, words, is_plain=True).answers([asked("w3 w4", opening="w9")])
    assert answer.mass == pytest.approx(alone(model, (2, 3, 4, 2, 9), (20, 30)), abs=1e-6)
