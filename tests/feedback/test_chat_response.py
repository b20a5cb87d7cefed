"""What a server's response says of two options."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rlhf_lightning.feedback.chat_api import (
    ChatResponse,
    Position,
    mass_in_probabilities,
    mass_in_reasoning,
    mass_in_text,
    read_response,
)

LETTERS = ("A", "B")
WORDS = ("yes", "no")


def position(*top: tuple[str, float]) -> Position:
    """The first token is the one that was said."""
    return Position(*top[0], top)


def reasoned(text: str, *, cut_off: bool = False) -> ChatResponse:
    return ChatResponse(text, cut_off, None, 0, 0)


def test_spellings_of_an_option_are_added_up() -> None:
    top = position(("A", 0.4), (" A", 0.1), ("(A", 0.05), ("**A**", 0.05), ("B", 0.2), ("▁B", 0.1), ("ĠB", 0.02))
    assert mass_in_probabilities([top], LETTERS) == pytest.approx((0.6, 0.32))


def test_a_small_letter_is_an_article_and_a_longer_word_is_another() -> None:
    top = position(("a", 0.5), ("An", 0.2), ("Both", 0.2), ("B", 0.1))
    assert mass_in_probabilities([top], LETTERS) == pytest.approx((0.0, 0.1))


def test_a_word_may_be_written_in_capitals() -> None:
    top = position(("Yes", 0.5), ("YES", 0.1), ("yes", 0.1), ('"no', 0.1), (" No.", 0.1), ("not", 0.1))
    assert mass_in_probabilities([top], WORDS) == pytest.approx((0.7, 0.2))


@pytest.mark.parametrize("sign", ["(", " ", "\n", "**", '"', "▁", ""])
def test_after_a_sign_the_next_place_counts_with_the_sign_s_probability(sign: str) -> None:
    """0.2 at once, and 0.6 * 0.5 after the sign; for B 0.1 and 0.6 * 0.25."""
    first = position((sign, 0.6), ("A", 0.2), ("B", 0.1))
    second = position(("A", 0.5), ("B", 0.25))
    assert mass_in_probabilities([first, second], LETTERS) == pytest.approx((0.5, 0.25))


def test_what_follows_on_an_answer_does_not_count() -> None:
    """The second place is a word of the next sentence."""
    places = [position(("A", 0.7), ("B", 0.3)), position(("B", 1.0))]
    assert mass_in_probabilities(places, LETTERS) == pytest.approx((0.7, 0.3))


def test_a_response_may_begin_with_the_opening() -> None:
    """ "The answer is (" has probability 0.5 * 0.9 * 1 * 0.8 = 0.36; then A 0.75 and B 0.25."""
    said = [position(("The", 0.5)), position((" answer", 0.9)), position(("▁is", 1.0)), position((" (", 0.8))]
    end = [position(("A", 0.75), ("B", 0.25)), position((")", 1.0))]
    assert mass_in_probabilities([*said, *end], LETTERS, "The answer is (") == pytest.approx((0.27, 0.09))
    assert mass_in_probabilities([*said, *end], LETTERS) == (0.0, 0.0)
    astray = [*said[:2], position((" depends", 1.0)), *end]
    assert mass_in_probabilities(astray, LETTERS, "The answer is (") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "mass"),
    [
        ("A", (1.0, 0.0)),
        ("(B)", (0.0, 1.0)),
        ("The better response is B.", (0.0, 1.0)),
        ("A, since B is rude", (1.0, 0.0)),
        ("Both are a good answer", (0.0, 0.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_the_first_letter_in_a_text(text: str, mass: tuple[float, float]) -> None:
    assert mass_in_text(text, LETTERS) == mass


@pytest.mark.parametrize(
    ("text", "mass"),
    [
        ("Yes, it is.", (1.0, 0.0)),
        ("NO", (0.0, 1.0)),
        ("not at all, nobody, yesterday", (0.0, 0.0)),
        ("It is kind: yes. Or no?", (1.0, 0.0)),
    ],
)
def test_the_first_word_in_a_text(text: str, mass: tuple[float, float]) -> None:
    assert mass_in_text(text, WORDS) == mass


def test_reasoning_ends_with_its_option() -> None:
    """Without a conclusion the last option holds; with one, the first that follows on it."""
    text = "A is kind. B is rude, so A it is."
    assert mass_in_reasoning(reasoned(text), LETTERS, "") == (1.0, 0.0)
    text = "A is kind.\n\nthe Answer is (B). A would have been longer."
    assert mass_in_reasoning(reasoned(text), LETTERS, "\n\nThe answer is (") == (0.0, 1.0)
    text = "The answer is (A)? No: it is rude. The answer is (B)."
    assert mass_in_reasoning(reasoned(text), LETTERS, "The answer is (") == (0.0, 1.0)


def test_of_reasoning_that_was_cut_off_only_a_conclusion_counts() -> None:
    cut = "A is kind, but B"
    assert mass_in_reasoning(reasoned(cut, cut_off=True), LETTERS, "The answer is (") == (0.0, 0.0)
    assert mass_in_reasoning(reasoned(cut), LETTERS, "The answer is (") == (0.0, 1.0)
    concluded = "The answer is (A), since B"
    assert mass_in_reasoning(reasoned(concluded, cut_off=True), LETTERS, "The answer is (") == (1.0, 0.0)


def test_letters_whose_size_differs_in_capitals_do_not_shift_the_conclusion() -> None:
    assert mass_in_reasoning(reasoned("ßßßß A. The answer is B"), LETTERS, "The answer is") == (0.0, 1.0)


def body(choice: Any, **fields: Any) -> str:
    return json.dumps({"choices": [choice], **fields})


def test_a_response_is_read() -> None:
    top = [{"token": "no", "logprob": math.log(0.25)}, {"token": "yes", "logprob": math.log(0.5)}]
    content = [{"token": "no", "logprob": math.log(0.25), "top_logprobs": top}]
    choice = {"message": {"content": "no"}, "finish_reason": "length", "logprobs": {"content": content}}
    response = read_response(body(choice, usage={"prompt_tokens": 7, "completion_tokens": 1}))
    assert response is not None
    assert (response.text, response.cut_off, response.input_tokens, response.output_tokens) == ("no", True, 7, 1)
    assert response.positions is not None
    assert [token for token, _ in response.positions[0].top] == ["no", "yes"]
    assert mass_in_probabilities(response.positions, WORDS) == pytest.approx((0.5, 0.25))


def test_the_token_that_was_said_counts_where_it_is_not_among_the_likeliest() -> None:
    content = [{"token": "no", "logprob": math.log(0.25), "top_logprobs": []}]
    response = read_response(body({"message": {"content": "no"}, "logprobs": {"content": content}}))
    assert response is not None
    assert response.positions is not None
    assert mass_in_probabilities(response.positions, WORDS) == pytest.approx((0.0, 0.25))


@pytest.mark.parametrize("choice", [{"message": {"content": None, "refusal": "no"}}, {"message": {}}])
def test_a_refusal_is_a_response_without_text(choice: Any) -> None:
    assert read_response(body(choice)) == ChatResponse("", False, None, 0, 0)


NO_RESPONSES = (
    *("", "<html>", "[]", "3", "null", '{"choices": ['),
    *('{"choices": []}', '{"choices": null}', '{"choices": [1]}', '{"choices": {}}'),
    *('{"choices": [{"message": null}]}', '{"choices": [{"text": "A"}]}', '{"error": "busy"}'),
)


@pytest.mark.parametrize("text", NO_RESPONSES)
def test_what_is_no_response(text: str) -> None:
    assert read_response(text) is None


@pytest.mark.parametrize(
    "content",
    [[{}], [None], [{"token": 3, "logprob": "x"}], [{"token": "yes", "logprob": None, "top_logprobs": [[]]}]],
)
def test_probabilities_that_cannot_be_read_are_none(content: Any) -> None:
    response = read_response(body({"message": {"content": "yes"}, "logprobs": {"content": content}}))
    assert response is not None
    assert response.positions is not None
    assert mass_in_probabilities(response.positions, WORDS) == (0.0, 0.0)
