"""Fields in, records out; and what a malformed record is told."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.data.formats import (
    parse_comparison,
    parse_demonstration,
    parse_preference,
    parse_prompt,
    parse_ranking,
    to_fields,
)
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Demonstration, Message, Preference, Prompt, Ranking

HELLO = [{"role": "user", "content": "hello"}]
CHAT = Prompt((Message("user", "hello"),))


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("parse", "fields", "record"),
    [
        (parse_prompt, {"prompt": "hello"}, Prompt("hello")),
        (parse_prompt, {"prompt": HELLO, "source": "ignored"}, CHAT),
        (parse_prompt, {"messages": HELLO, "prompt": None}, CHAT),
        (parse_demonstration, {"prompt": "hello", "response": "hi"}, Demonstration(Prompt("hello"), "hi")),
        (parse_demonstration, {"prompt": "hello", "completion": "hi"}, Demonstration(Prompt("hello"), "hi")),
        (parse_demonstration, {"prompt": HELLO, "completion": said("hi")}, Demonstration(CHAT, "hi")),
        (parse_demonstration, {"prompt": "hello", "reply": "hi"}, Demonstration(Prompt("hello"), "hi")),
        (parse_demonstration, {"messages": HELLO + said("hi")}, Demonstration(CHAT, "hi")),
        (parse_demonstration, {"prompt": "hello", "response": ""}, Demonstration(Prompt("hello"), "")),
        # A prompt and its response go before the conversation that a dataset keeps beside them.
        (
            parse_demonstration,
            {"prompt": "hello", "response": "hi", "messages": HELLO + said("no")},
            Demonstration(Prompt("hello"), "hi"),
        ),
        # One turn with text is enough: a system turn may be empty.
        (
            parse_prompt,
            {"messages": [{"role": "system", "content": ""}, *HELLO]},
            Prompt((Message("system", ""), Message("user", "hello"))),
        ),
        (
            parse_preference,
            {"prompt": "hello", "chosen": "hi", "rejected": "", "margin": 2},
            Preference(Prompt("hello"), "hi", "", 2.0),
        ),
        # As a judge labels it; both bounds belong to the range.
        *(
            (
                parse_preference,
                {"prompt": "hello", "chosen": "hi", "rejected": "no", "margin": None, "probability": probability},
                Preference(Prompt("hello"), "hi", "no", None, float(probability)),
            )
            for probability in (0.5, 0.75, 1)
        ),
        (
            parse_preference,
            {"chosen": HELLO + said("hi"), "rejected": HELLO + said("no"), "probability": 0.8, "margin": 1.5},
            Preference(CHAT, "hi", "no", 1.5, 0.8),
        ),
        (parse_preference, {"prompt": HELLO, "chosen": "hi", "rejected": "no"}, Preference(CHAT, "hi", "no")),
        (
            parse_preference,
            {"prompt": HELLO, "chosen": said("hi"), "rejected": said("no")},
            Preference(CHAT, "hi", "no"),
        ),
        # A plain prompt beside whole conversations, as UltraFeedback has it.
        (
            parse_preference,
            {"prompt": "hello", "chosen": HELLO + said("hi"), "rejected": HELLO + said("no")},
            Preference(CHAT, "hi", "no"),
        ),
        # The prompt is implicit: what both conversations share.
        (
            parse_preference,
            {"chosen": HELLO + said("hi"), "rejected": HELLO + said("no"), "margin": None},
            Preference(CHAT, "hi", "no"),
        ),
        (
            parse_ranking,
            {"prompt": "hello", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
            Ranking(Prompt("hello"), ("a", "b", "c"), (2, 1, 2)),
        ),
        # Higher scores are better: 0.9 is rank 1, both 0.5 are rank 2, -1 is rank 3.
        (
            parse_ranking,
            {"prompt": HELLO, "responses": ["a", said("b"), "c", "d"], "scores": [0.5, 0.9, 0.5, -1]},
            Ranking(CHAT, ("a", "b", "c", "d"), (2, 1, 2, 3)),
        ),
    ],
)
def test_well_formed_records(parse: Any, fields: dict[str, Any], record: Any) -> None:
    parsed = parse(fields, "here:1")
    assert parsed == record
    assert parse(to_fields(parsed), "here:1") == record


@pytest.mark.parametrize(
    ("parse", "fields", "field", "what"),
    [
        (parse_prompt, {"text": "hello"}, "prompt", "must be given"),
        (parse_prompt, {"prompt": 3}, "prompt", "got int 3"),
        (parse_prompt, {"prompt": "  \n"}, "prompt", "must not be empty"),
        (parse_prompt, {"prompt": []}, "prompt", "must end with a user turn"),
        (parse_prompt, {"prompt": HELLO + said("hi")}, "prompt", "got the turns user, assistant"),
        (parse_prompt, {"prompt": [{"role": "human", "content": "a"}]}, "prompt[0].role", "system, user, assistant"),
        (parse_prompt, {"prompt": [{"role": "user"}]}, "prompt[0].content", "got nothing"),
        (parse_prompt, {"prompt": ["hello"]}, "prompt[0]", "must be an object {role, content}"),
        (parse_prompt, {"prompt": "\ud800"}, "prompt", "surrogate"),
        (parse_demonstration, {"prompt": "hello"}, "response", "got the fields prompt"),
        (parse_demonstration, {"messages": HELLO}, "messages", "must end with an assistant turn"),
        (parse_demonstration, {"messages": said("hi")}, "messages", "must end with a user turn"),
        (parse_preference, {"prompt": "hello", "chosen": "a"}, "rejected", "must be given"),
        (parse_preference, {"prompt": "hello", "chosen": ["a"], "rejected": "b"}, "chosen[0]", "must be an object"),
        (parse_preference, {"prompt": "hello", "chosen": 1.5, "rejected": "b"}, "chosen", "got float 1.5"),
        (parse_preference, {"prompt": "hello", "chosen": "a", "rejected": "a"}, "rejected", "must differ"),
        (parse_preference, {"chosen": "a", "rejected": "b"}, "prompt", "because the responses are text"),
        (
            parse_preference,
            {"prompt": "hello", "chosen": "a", "rejected": "b", "margin": float("nan")},
            "margin",
            "must be finite",
        ),
        (parse_preference, {"prompt": "hello", "chosen": "a", "rejected": "b", "margin": -1}, "margin", "not negative"),
        (parse_preference, {"prompt": "hello", "chosen": "a", "rejected": "b", "margin": True}, "margin", "got bool"),
        *(
            (
                parse_preference,
                {"prompt": "hello", "chosen": "a", "rejected": "b", "probability": probability},
                "probability",
                what,
            )
            for probability, what in (
                (0.49, "must be at least 0.5 and at most 1; got float 0.49"),
                (1.01, "must be at least 0.5 and at most 1; got float 1.01"),
                (0, "must be at least 0.5 and at most 1"),
                (float("nan"), "must be at least 0.5 and at most 1"),
                ("0.75", "must be a number"),
                (True, "must be a number; got bool"),
            )
        ),
        (
            parse_preference,
            {"prompt": "bye", "chosen": HELLO + said("a"), "rejected": HELLO + said("b")},
            "chosen",
            "the prompt's turns followed by one assistant turn",
        ),
        (parse_preference, {"chosen": HELLO + said("a"), "rejected": HELLO}, "rejected", "got no turns after them"),
        (
            parse_preference,
            {"chosen": HELLO + said("a") + HELLO + said("b"), "rejected": HELLO + said("c")},
            "chosen",
            "got the turns assistant, user, assistant after them",
        ),
        (parse_ranking, {"prompt": "hello", "responses": ["a"], "ranks": [1]}, "responses", "at least two"),
        (parse_ranking, {"prompt": "hello", "responses": ["a", "b"], "ranks": [1]}, "ranks", "got 1 entries"),
        (parse_ranking, {"prompt": "hello", "responses": ["a", "b"], "ranks": [1, 1.5]}, "ranks[1]", "got float 1.5"),
        (
            parse_ranking,
            {"prompt": "hello", "responses": ["a", None], "ranks": [1, 2]},
            "responses[1]",
            "must be given",
        ),
        (parse_ranking, {"prompt": "hello", "responses": ["a", "b"]}, "ranks", "got the fields prompt, responses"),
        (
            parse_ranking,
            {"prompt": "hello", "responses": ["a", "b"], "scores": [1, float("inf")]},
            "scores[1]",
            "finite",
        ),
        (
            parse_ranking,
            {"prompt": "a", "responses": ["a", "b"], "ranks": [1, 2], "scores": [1, 2]},
            "scores",
            "absent",
        ),
    ],
)
def test_malformed_records_name_the_place_and_the_field(
    parse: Any, fields: dict[str, Any], field: str, what: str
) -> None:
    with pytest.raises(DataError) as caught:
        parse(fields, "pairs.jsonl:7")
    assert caught.value.where == f"pairs.jsonl:7, field '{field}'"
    assert what in caught.value.what
    assert caught.value.fix is not None
    assert "data.on_bad_record=skip" in caught.value.fix


def test_a_label_for_the_other_response_is_told_what_to_do() -> None:
    fields = {"prompt": "hello", "chosen": "a", "rejected": "b", "probability": 0.25}
    with pytest.raises(DataError) as caught:
        parse_preference(fields, "pairs.jsonl:7")
    assert caught.value.fix is not None
    assert caught.value.fix.startswith("name the likelier response 'chosen'")


def test_a_comparison_is_told_by_its_fields() -> None:
    pair = {"prompt": "hello", "chosen": "a", "rejected": "b"}
    ranking = {"prompt": "hello", "responses": ["a", "b"], "ranks": [1, 2]}
    assert isinstance(parse_comparison(pair, "here", "ranking"), Preference)
    assert isinstance(parse_comparison(ranking, "here", "preference"), Ranking)
    with pytest.raises(DataError, match="'responses' must be given"):
        parse_comparison({"prompt": "hello"}, "here", "ranking")
    with pytest.raises(DataError, match="'chosen' must be given"):
        parse_comparison({"prompt": "hello"}, "here", "preference")
