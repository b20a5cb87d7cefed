"""The exact turns that a principle and a dialogue become."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rlhf_lightning.constitutions.rendering import EnglishPhrasing, as_turns, transcript
from rlhf_lightning.constitutions.settings import Principle
from rlhf_lightning.records import Conversation, Message, Prompt

Build = Callable[..., Principle]

EXAMPLES = {
    "critique": [
        {"prompt": "p1", "response": "r1", "critique": "c1"},
        {"prompt": "p2", "response": "r2", "critique": "c2"},
    ],
    "revision": [{"prompt": "p1", "response": "r1", "critique": "c1", "revision": "v1"}],
    "judge": [{"prompt": "p1", "better": "b1", "worse": "w1"}, {"prompt": "p2", "better": "b2", "worse": "w2"}],
}


def turns(text: str) -> Conversation:
    """Turns written one a line: `user: hello`."""
    pairs = (line.strip().partition(": ") for line in text.strip().splitlines())
    return tuple(Message(role, content.replace("|", "\n\n").replace("/", "\n")) for role, _, content in pairs)  # type: ignore[arg-type]


DIALOGUE = turns("user: Hi\nassistant: Hello to you, my dear.")

TWO_RESPONSES = "Read this exchange and compare the two responses that could come next."
ONE_RESPONSE = "Read this exchange and judge the assistant's last response."


def test_a_critique_is_a_further_turn_of_the_dialogue(make_principle: Build) -> None:
    assert EnglishPhrasing(fewshots=False).critique(make_principle(), DIALOGUE) == turns(
        """
        user: Hi
        assistant: Hello to you, my dear.
        user: What is too long?
        """
    )


def test_examples_are_earlier_turns_of_the_same_form(make_principle: Build) -> None:
    asked = EnglishPhrasing(fewshots=True).critique(make_principle(fewshots=EXAMPLES), DIALOGUE)
    assert asked == turns(
        """
        user: p1
        assistant: r1
        user: What is too long?
        assistant: c1
        user: p2
        assistant: r2
        user: What is too long?
        assistant: c2
        user: Hi
        assistant: Hello to you, my dear.
        user: What is too long?
        """
    )
    assert len(EnglishPhrasing(fewshots=False).critique(make_principle(fewshots=EXAMPLES), DIALOGUE)) == 3


def test_a_revision_follows_the_critique(make_principle: Build) -> None:
    asked = EnglishPhrasing(fewshots=True).revision(make_principle(fewshots=EXAMPLES), DIALOGUE, "Four words.")
    assert asked == turns(
        """
        user: p1
        assistant: r1
        user: What is too long?
        assistant: c1
        user: Shorten it.
        assistant: v1
        user: Hi
        assistant: Hello to you, my dear.
        user: What is too long?
        assistant: Four words.
        user: Shorten it.
        """
    )


def test_without_a_critique_the_revision_follows_the_response_in_examples_too(make_principle: Build) -> None:
    asked = EnglishPhrasing(fewshots=True).revision(make_principle(fewshots=EXAMPLES), DIALOGUE, None)
    assert asked == turns(
        """
        user: p1
        assistant: r1
        user: Shorten it.
        assistant: v1
        user: Hi
        assistant: Hello to you, my dear.
        user: Shorten it.
        """
    )


def test_a_system_turn_stays_in_front_of_the_examples(make_principle: Build) -> None:
    asked = EnglishPhrasing(fewshots=True).critique(
        make_principle(fewshots=EXAMPLES), (Message("system", "Be good."), *DIALOGUE)
    )
    assert [turn.role for turn in asked[:3]] == ["system", "user", "assistant"]
    assert [turn.role for turn in asked].count("system") == 1
    assert asked[1].content == "p1"


def test_placeholders_are_filled_with_the_dialogue_or_the_example(make_principle: Build) -> None:
    principle = make_principle(
        critique_request="Asked {prompt}, said {response}.", revision_request="Again: {response}", fewshots=EXAMPLES
    )
    asked = EnglishPhrasing(fewshots=True).revision(principle, DIALOGUE, "c")
    assert [turn.content for turn in asked if turn.role == "user"] == [
        "p1",
        "Asked p1, said r1.",
        "Again: r1",
        "Hi",
        "Asked Hi, said Hello to you, my dear..",
        "Again: Hello to you, my dear.",
    ]


def test_a_pairwise_question(make_principle: Build) -> None:
    asked = EnglishPhrasing(fewshots=False).pairwise(make_principle(), Prompt("Hi"), "Hello.", "Yo.", reasons=False)
    assert asked.turns == turns(
        f"user: {TWO_RESPONSES}|User: Hi|Which is shorter?|(A) Hello.|(B) Yo.|Answer with one letter, A or B."
    )
    assert asked.options == ("A", "B")
    assert asked.opening == "The answer is ("


def test_the_better_response_of_the_examples_changes_places(make_principle: Build) -> None:
    phrasing, principle = EnglishPhrasing(fewshots=True), make_principle(fewshots=EXAMPLES)
    asked = phrasing.pairwise(principle, Prompt("Hi"), "Hello.", "Yo.", reasons=False)
    closing = "Answer with one letter, A or B."
    assert asked.turns == turns(
        f"""
        user: {TWO_RESPONSES}|User: p1|Which is shorter?|(A) b1|(B) w1|{closing}
        assistant: The answer is (A)
        user: {TWO_RESPONSES}|User: p2|Which is shorter?|(A) w2|(B) b2|{closing}
        assistant: The answer is (B)
        user: {TWO_RESPONSES}|User: Hi|Which is shorter?|(A) Hello.|(B) Yo.|{closing}
        """
    )


def test_a_pointwise_question_and_its_examples(make_principle: Build) -> None:
    phrasing, principle = EnglishPhrasing(fewshots=True), make_principle(fewshots=EXAMPLES)
    asked = phrasing.pointwise(principle, Prompt("Hi"), "Hello.", reasons=False)
    closing = "Is it short?|Answer with one word, yes or no."
    assert asked.turns == turns(
        f"""
        user: {ONE_RESPONSE}|User: p1/Assistant: b1|{closing}
        assistant: The answer is yes
        user: {ONE_RESPONSE}|User: p1/Assistant: w1|{closing}
        assistant: The answer is no
        user: {ONE_RESPONSE}|User: p2/Assistant: w2|{closing}
        assistant: The answer is no
        user: {ONE_RESPONSE}|User: p2/Assistant: b2|{closing}
        assistant: The answer is yes
        user: {ONE_RESPONSE}|User: Hi/Assistant: Hello.|{closing}
        """
    )
    assert asked.options == ("yes", "no")
    assert asked.opening == "The answer is"


def test_a_judge_that_reasons_is_asked_to_and_sees_no_examples(make_principle: Build) -> None:
    phrasing, principle = EnglishPhrasing(fewshots=True), make_principle(fewshots=EXAMPLES)
    pair = phrasing.pairwise(principle, Prompt("Hi"), "Hello.", "Yo.", reasons=True)
    (turn,) = pair.turns
    assert turn.content.endswith(
        "First weigh the responses in a few sentences. Then end with: The answer is (A), or: The answer is (B)."
    )
    assert pair.conclusion == "\n\nThe answer is ("
    point = phrasing.pointwise(principle, Prompt("Hi"), "Hello.", reasons=True)
    (turn,) = point.turns
    assert turn.content.endswith("Then end with: The answer is yes, or: The answer is no.")
    assert point.conclusion == "\n\nThe answer is"


def test_placeholders_of_questions(make_principle: Build) -> None:
    principle = make_principle(
        preference_question="{prompt}: {response_a} or {response_b}?", pointwise_question="{prompt}: {response}?"
    )
    phrasing = EnglishPhrasing(fewshots=False)
    assert (
        "\n\nHi: Hello. or Yo.?\n\n"
        in phrasing.pairwise(principle, Prompt("Hi"), "Hello.", "Yo.", False).turns[0].content
    )
    assert "\n\nHi: Hello.?\n\n" in phrasing.pointwise(principle, Prompt("Hi"), "Hello.", False).turns[0].content


def test_a_conversation_is_shown_whole(make_principle: Build) -> None:
    prompt = Prompt(turns("system: Be good.\nuser: Hi\nassistant: Hello.\nuser: And now?"))
    asked = EnglishPhrasing(fewshots=False).pointwise(make_principle(), prompt, "Bye.", reasons=False)
    assert "\n\nBe good.\nUser: Hi\nAssistant: Hello.\nUser: And now?\nAssistant: Bye.\n\n" in asked.turns[0].content


def test_plain_text_is_one_turn_of_the_user() -> None:
    assert as_turns(Prompt("Hi")) == turns("user: Hi")
    assert as_turns(Prompt(DIALOGUE[:1])) == turns("user: Hi")
    assert transcript(DIALOGUE) == "User: Hi\nAssistant: Hello to you, my dear."


@pytest.mark.parametrize("fewshots", [True, False])
def test_the_last_turn_is_always_the_users(make_principle: Build, fewshots: bool) -> None:
    phrasing, principle = EnglishPhrasing(fewshots=fewshots), make_principle(fewshots=EXAMPLES)
    asked = [
        phrasing.critique(principle, DIALOGUE),
        phrasing.revision(principle, DIALOGUE, "c"),
        phrasing.pairwise(principle, Prompt("Hi"), "a", "b", reasons=False).turns,
        phrasing.pointwise(principle, Prompt("Hi"), "a", reasons=False).turns,
    ]
    for one in asked:
        # Chat templates want the speakers to take turns.
        assert [turn.role for turn in one] == (["user", "assistant"] * len(one))[: len(one)]
        assert one[-1].role == "user"
