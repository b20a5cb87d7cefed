"""Chains of critiques and revisions, written with speakers that say what they were asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from made_up_constitutions import constitution, principle

from rlhf_lightning.feedback.critique_revision import (
    DRAWS_PER_CHAIN,
    Chain,
    ChainWriter,
    Step,
    revision_over_response,
    to_imitate,
)
from rlhf_lightning.feedback.local_models import Generation
from rlhf_lightning.records import Conversation, Demonstration, Message, Preference, Prompt, PromptText

PROMPTS = [Prompt("one ?"), Prompt((Message("user", "two ?"),))]


@dataclass
class Echo:
    """Says its name, how many turns it read, and the draw."""

    name: str
    heard: list[PromptText] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)

    def generate(self, asked: Sequence[PromptText], draws: Sequence[int]) -> list[Generation]:
        self.heard += asked
        self.draws += draws
        turns = [1 if isinstance(text, str) else len(text) for text in asked]
        return [
            Generation(f"{self.name}{count}@{draw % DRAWS_PER_CHAIN}", True)
            for count, draw in zip(turns, draws, strict=True)
        ]


class Words:
    """Requests that name what is asked and by which principle."""

    def critique(self, principle: Any, dialogue: Conversation) -> Conversation:
        return (*dialogue, Message("user", f"critique {principle.id}"))

    def revision(self, principle: Any, dialogue: Conversation, critique: str | None) -> Conversation:
        said = () if critique is None else (Message("user", "critique"), Message("assistant", critique))
        return (*dialogue, *said, Message("user", f"revise {principle.id}"))


def write(numbers: Sequence[int] = (0, 1), **changes: Any) -> tuple[list[Chain], Echo, Echo]:
    principles = changes.pop("principles", [principle("kind")])
    policy, reviser = Echo("response"), Echo("words")
    own = constitution(*principles).model_copy(update=changes)
    writer = ChainWriter(policy, reviser, own, Words(), seed=5)  # type: ignore[arg-type]
    prompts = [PROMPTS[number % 2] for number in numbers]
    return writer.write(numbers, prompts, ["harm", "fact"] * (len(numbers) // 2)), policy, reviser


def test_a_prompt_is_replied_to_as_it_is() -> None:
    _, policy, _ = write()
    assert policy.heard == ["one ?", (Message("user", "two ?"),)]


def test_each_revision_takes_the_replys_place() -> None:
    (chain, _), _, reviser = write(revisions=2)
    assert chain.response == "response1@0"
    assert chain.steps == [
        Step("kind", "words3@1", "words5@2", True),
        Step("kind", "words3@3", "words5@4", True),
    ]
    last_critique = reviser.heard[4]
    assert [turn.content for turn in last_critique] == ["one ?", "words5@2", "critique kind"]
    last_revision = reviser.heard[6]
    assert [turn.content for turn in last_revision] == ["one ?", "words5@2", "critique", "words3@3", "revise kind"]
    assert [turn.role for turn in last_revision] == ["user", "assistant"] * 2 + ["user"]


def test_without_critiques_it_revises_at_once() -> None:
    (chain, _), _, reviser = write(critique=False)
    assert chain.steps == [Step("kind", None, "words3@2", True)]
    assert all(turns[-1].content == "revise kind" for turns in reviser.heard)


def test_chains_do_not_depend_on_what_is_written_beside_them() -> None:
    many = [principle(name, weight) for name, weight in (("kind", 1.0), ("brief", 2.0), ("true", 1.0))]
    together, policy, _ = write(range(8), principles=many, revisions=3)
    apart = [
        chain for start in range(0, 8, 2) for chain in write(range(start, start + 2), principles=many, revisions=3)[0]
    ]
    assert together == apart
    assert len(set(policy.draws)) == 8
    assert len({step.principle for chain in together for step in chain.steps}) == 3


def test_all_principles_take_turns_in_every_round() -> None:
    both = [principle("kind"), principle("brief")]
    chains, _, _ = write(principles=both, revisions=2, sampling=constitution(*both, mode="all").sampling)
    assert [step.principle for step in chains[0].steps] == ["kind", "brief", "kind", "brief"]


def test_only_principles_that_apply_are_drawn() -> None:
    chains, _, _ = write(principles=[principle("kind", applies_to=["harm"])])
    assert [len(chain.steps) for chain in chains] == [1, 0]
    assert chains[1].last == chains[1].response


def test_no_principles_leave_the_response_as_it_is() -> None:
    chains, _, reviser = write(principles=[])
    assert [chain.steps for chain in chains] == [[], []]
    assert reviser.heard == []


def test_a_row_is_read_back() -> None:
    for chain in write(revisions=2)[0]:
        assert Chain.from_row(chain.to_row()) == chain


@pytest.mark.parametrize(
    ("train_on", "expected"), [("all", ["first", "second"]), ("last", ["second"])], ids=["all", "last"]
)
def test_revisions_are_imitated(train_on: str, expected: list[str]) -> None:
    steps = [Step("kind", "c", "first", True), Step("kind", "c", "second", True)]
    chain = Chain(0, PROMPTS[0], None, "response", True, steps)
    assert to_imitate(chain, train_on) == [Demonstration(PROMPTS[0], text) for text in expected]


def test_what_was_cut_off_or_empty_is_not_imitated() -> None:
    steps = [Step("kind", "c", "cut off", False), Step("kind", "c", " ", True), Step("kind", "c", "whole", True)]
    assert [one.response for one in to_imitate(Chain(0, PROMPTS[0], None, "response", True, steps), "all")] == ["whole"]
    assert to_imitate(Chain(0, PROMPTS[0], None, "response", False), "all") == []
    assert [one.response for one in to_imitate(Chain(0, PROMPTS[0], None, "response", True), "all")] == ["response"]


def test_the_last_revision_is_preferred_to_the_response_it_changed() -> None:
    def chain(*revisions: tuple[str, bool]) -> Chain:
        steps = [Step("kind", None, text, finished) for text, finished in revisions]
        return Chain(0, PROMPTS[0], None, "response", True, steps)

    assert revision_over_response(chain(("mended", True))) == Preference(PROMPTS[0], "mended", "response")
    assert revision_over_response(chain(("mended", True), ("response", True))) is None
    assert revision_over_response(chain(("mended", False))) is None
    assert revision_over_response(chain()) is None
