"""Which prompts feedback is gathered on, and what is said where none is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from made_up_constitutions import constitution, principle

from rlhf_lightning.constitutions.settings import Principle
from rlhf_lightning.data.sources import open_source
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Message, Prompt
from rlhf_lightning.stages.prompting import of_kinds, prompts_to_use
from rlhf_lightning.stages.run_settings import RunSettings

HARM, EDGE, BENIGN, ODD = (Prompt((Message("user", text),)) for text in ("a harm", "an edge", "a benign", "an odd one"))
KINDS: dict[Prompt, str | None] = {HARM: "harm", EDGE: "edge", BENIGN: "benign", ODD: None}


class Data:
    """A source that knows the kinds of some prompts."""

    def __init__(self, kinds: Mapping[Prompt, str | None] = KINDS) -> None:
        self.kinds = dict(kinds)

    def prompts(self) -> list[Prompt]:
        return list(self.kinds)

    def kind_of(self, prompt: Prompt) -> str | None:
        return self.kinds[prompt]


def data(kinds: Mapping[Prompt, str | None] = KINDS) -> Any:
    return Data(kinds)


def principles(*applies_to: list[str] | None) -> list[Principle]:
    return constitution(*(principle(f"p{number}", 1.0, to) for number, to in enumerate(applies_to))).principles


def left(kinds: list[str] | None, by: list[Principle], there: Mapping[Prompt, str | None] = KINDS) -> list[Prompt]:
    pool = of_kinds(list(there), data(there), kinds, by, "stage.kinds")
    assert all(kind == there[prompt] for prompt, kind in pool)
    return [prompt for prompt, _ in pool]


def test_prompts_of_the_kinds_asked_for_and_those_of_which_nobody_knows() -> None:
    assert left(["harm"], []) == [HARM, ODD]
    assert left(["benign", "edge"], []) == [EDGE, BENIGN, ODD]


def test_kinds_asked_for_are_taken_whatever_principles_apply_to() -> None:
    assert left(["benign"], principles(["harm"])) == [BENIGN, ODD]


@pytest.mark.parametrize(
    ("applies_to", "expected"),
    [
        ([["harm"]], [HARM, ODD]),
        ([["harm"], ["edge", "benign"]], [HARM, EDGE, BENIGN, ODD]),
        ([["fact"], None], [HARM, EDGE, BENIGN, ODD]),
        ([], [HARM, EDGE, BENIGN, ODD]),
    ],
)
def test_without_kinds_all_prompts_that_a_principle_applies_to(
    applies_to: list[list[str] | None], expected: list[Prompt]
) -> None:
    assert left(None, principles(*applies_to)) == expected


def test_kinds_that_are_not_there_are_answered_with_those_that_are() -> None:
    known = {HARM: "harm", BENIGN: "benign", Prompt("b"): "benign"}
    with pytest.raises(DataError) as caught:
        of_kinds(list(known), data(known), ["fact", "harmm"], [], "critique_revision.kinds")
    error = caught.value
    assert error.what == (
        "All prompts are filtered out: none is of the kinds fact, harmm, and there are 2 benign, 1 harm."
    )
    assert error.where == "critique_revision.kinds"
    assert error.fix is not None
    assert "choose kinds that are there with critique_revision.kinds=[...]" in error.fix


def test_principles_that_apply_to_nothing_that_is_there() -> None:
    known = {HARM: "harm", BENIGN: "benign"}
    with pytest.raises(DataError) as caught:
        of_kinds(list(known), data(known), None, principles(["fact"]), "ai_feedback.kinds")
    error = caught.value
    assert error.what == (
        "All prompts are filtered out: none is one that a principle applies to, and there are 1 benign, 1 harm."
    )
    assert error.where == "ai_feedback.kinds=null, constitution.principles"
    assert error.fix is not None
    assert "applies_to: null" in error.fix


def test_the_world_knows_the_kinds_of_its_prompts(composed: Callable[..., RunSettings]) -> None:
    source = open_source(composed().data, seed=1)
    texts = {
        "i want to smash the clerk": "harm",
        "please tell me how to kill the process": "edge",
        "i want to find the drum": "benign",
        "i want the crop of sarn": "fact",
        "do you know the luck of gorla ?": "unknowable",
    }
    prompts = {text: Prompt((Message("user", text),)) for text in texts}
    pool = of_kinds(list(prompts.values()), source, None, [], "critique_revision.kinds")
    assert pool == [(prompts[text], kind) for text, kind in texts.items()]


def test_the_data_s_training_prompts_unless_a_file_is_named(tmp_path: Path) -> None:
    assert prompts_to_use(data(), None) == [HARM, EDGE, BENIGN, ODD]
    turns = [{"role": "user", "content": "how?"}, {"role": "assistant", "content": "so"}]
    rows: list[Any] = [{"prompt": "why?"}, {"messages": [*turns, turns[0]]}, {"prompt": "why?", "source": "again"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = Prompt((Message("user", "how?"), Message("assistant", "so"), Message("user", "how?")))
    assert prompts_to_use(data(), str(path)) == [Prompt("why?"), whole], "each once, in order"


def test_the_last_turn_of_conversations_that_differ_before_it_is_one_prompt() -> None:
    asked = Message("user", "how?")
    conversations = [
        Prompt((asked,)),
        Prompt((Message("user", "hi"), Message("assistant", "yes"), asked)),
        Prompt((Message("system", "be brief"), Message("user", "and now?"))),
    ]
    there = data(dict.fromkeys(conversations))
    assert prompts_to_use(there, None) == conversations
    expected = [Prompt((asked,)), Prompt((Message("user", "and now?"),))]
    assert prompts_to_use(there, None, last_turn_only=True) == expected


def test_the_last_turns_of_a_file(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "yes"), ("user", "how?"))]
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": turns}) + "\n")
    assert prompts_to_use(data(), str(path), last_turn_only=True) == [Prompt((Message("user", "how?"),))]


def test_a_file_without_prompts_or_with_something_else_is_told_its_place(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="There are no prompts") as caught:
        prompts_to_use(data(), str(path))
    assert caught.value.where == str(path)
    path.write_text('{"prompt": "why?"}\n{"question": "why?"}\n')
    with pytest.raises(DataError, match="'prompt' must be given") as caught:
        prompts_to_use(data(), str(path))
    assert caught.value.where == f"{path}:2, field 'prompt'"
