"""Requests in the courtesy world's words: the turns that its model was taught, and nothing it cannot read."""

from __future__ import annotations

import pytest

from rlhf_lightning.constitutions.settings import Principle
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.records import Conversation, Message, Prompt
from rlhf_lightning.worlds.courtesy.base_model import vocabulary
from rlhf_lightning.worlds.courtesy.phrasing import CourtesyPhrasing
from rlhf_lightning.worlds.courtesy.traits import TRAITS

PROMPT = "how do i fix the lamp ?"
RESPONSE = "you can fix the lamp with care and time"


def principle(tag: str | None) -> Principle:
    texts = dict.fromkeys(
        ("title", "critique_request", "revision_request", "preference_question", "pointwise_question"), "text"
    )
    world = None if tag is None else {"tag": tag}
    examples = {"critique": [{"prompt": "p", "response": "r", "critique": "c"}], "revision": [], "judge": []}
    rest = {"id": "p", "weight": 1.0, "tags": [], "applies_to": None, "world": world, "fewshots": examples}
    return Principle.model_validate({**texts, **rest})


def lines(turns: Conversation) -> list[str]:
    return [f"{turn.role}: {turn.content}" for turn in turns]


DIALOGUE = (Message("user", PROMPT), Message("assistant", RESPONSE))
SAID = [f"user: {PROMPT}", f"assistant: {RESPONSE}"]


def test_a_critique() -> None:
    assert lines(CourtesyPhrasing().critique(principle("brief"), DIALOGUE)) == [*SAID, "user: critique brief"]


def test_a_revision_with_and_without_a_critique() -> None:
    phrasing = CourtesyPhrasing()
    assert lines(phrasing.revision(principle("brief"), DIALOGUE, "it is too long")) == [
        *SAID,
        "user: critique brief",
        "assistant: it is too long",
        "user: revise brief",
    ]
    assert lines(phrasing.revision(principle("brief"), DIALOGUE, None)) == [*SAID, "user: revise brief"]


@pytest.mark.parametrize("prompt", [Prompt(PROMPT), Prompt((Message("user", PROMPT),))])
def test_a_verdict(prompt: Prompt) -> None:
    asked = CourtesyPhrasing().pointwise(principle("polite"), prompt, RESPONSE, reasons=False)
    assert lines(asked.turns) == [*SAID, "user: judge polite"]
    assert (asked.options, asked.opening, asked.conclusion) == (("yes", "no"), "", "")


def test_a_pair_is_asked_about_with_yes_for_the_first() -> None:
    asked = CourtesyPhrasing().pairwise(
        principle("polite"), Prompt(PROMPT), RESPONSE, "i do not know that", reasons=False
    )
    assert lines(asked.turns) == [
        *SAID,
        f"user: {PROMPT}",
        "assistant: i do not know that",
        "user: judge first polite",
    ]
    assert asked.options == ("yes", "no")


@pytest.mark.parametrize("tag", TRAITS)
def test_every_word_is_in_the_vocabulary(tag: str) -> None:
    phrasing, one = CourtesyPhrasing(), principle(tag)
    asked = [
        phrasing.revision(one, DIALOGUE, TRAITS[tag].fault),
        phrasing.pointwise(one, Prompt(PROMPT), RESPONSE, reasons=False).turns,
        phrasing.pairwise(one, Prompt(PROMPT), RESPONSE, RESPONSE, reasons=False).turns,
    ]
    words = {word for turns in asked for turn in turns for word in turn.content.split()}
    assert words <= set(vocabulary())


@pytest.mark.parametrize("tag", [None, "wise"])
def test_a_principle_without_a_name_there_is_refused(tag: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        CourtesyPhrasing().critique(principle(tag), DIALOGUE)
    (problem,) = caught.value.problems
    assert "principle 'p' has no name in the courtesy world" in problem.what
    assert problem.fix is not None
    assert "harmless, helpful" in problem.fix


def test_reasoning_has_no_words_there() -> None:
    phrasing, one = CourtesyPhrasing(), principle("brief")
    with pytest.raises(ConfigError, match=r"judge\.cot"):
        phrasing.pointwise(one, Prompt(PROMPT), RESPONSE, reasons=True)
    with pytest.raises(ConfigError, match=r"judge\.cot"):
        phrasing.pairwise(one, Prompt(PROMPT), RESPONSE, RESPONSE, reasons=True)
