"""The constitutions of conf/: each resolves and is right, says what it is for, and weighs what it should."""

from __future__ import annotations

import functools
from collections import defaultdict

import pytest

from rlhf_lightning.constitutions.identity import content_hash
from rlhf_lightning.constitutions.rendering import EnglishPhrasing
from rlhf_lightning.constitutions.settings import ConstitutionSettings, Principle
from rlhf_lightning.records import Message, Prompt
from rlhf_lightning.runs.compose import conf_directory
from rlhf_lightning.runs.constitution import ConstitutionFiles, load_constitution

FOLDERS = [conf_directory()]
NAMES = [name for name in ConstitutionFiles(FOLDERS).names() if name != "file"]

WORLD_WEIGHTS = {
    "none": {},
    "harmless": {"harmless": 1.0},
    "helpful": {"helpful": 1.0},
    "honest": {"honest": 1.0},
    "hhh": {"harmless": 1.0, "helpful": 1.0, "honest": 1.0, "brief": 1.0},
    "non_evasive": {"forthcoming": 1.0},
    "child_safe": {"harmless": 0.5, "polite": 0.5},
    "concise": {"brief": 1.0},
    "polite": {"polite": 1.0},
    "refuse_all": {"refusing": 1.0},
    "verbose": {"verbose": 1.0},
}
"""What the principles of each come to in the courtesy world, where those of a trait are the same words."""


@functools.cache
def load(name: str) -> ConstitutionSettings:
    return load_constitution(name, FOLDERS)


def all_principles() -> list[Principle]:
    """Every principle once."""
    return list({one.id: one for name in NAMES for one in load(name).principles}.values())


def test_these_are_all_that_there_are() -> None:
    assert set(NAMES) == set(WORLD_WEIGHTS)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_whole_and_weighs_its_traits(name: str) -> None:
    constitution = load(name)
    assert constitution.name == name
    assert (constitution.path, constitution.extends, constitution.mixture) == (None, [], {})
    found: dict[str, float] = defaultdict(float)
    for one in constitution.principles:
        assert one.world is not None, one.id
        found[one.world.tag] += one.weight
    assert found == WORLD_WEIGHTS[name]


def test_no_two_do_the_same() -> None:
    assert len({content_hash(load(name)) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("one", all_principles(), ids=lambda one: one.id)
def test_each_principle_has_examples_of_both_outcomes(one: Principle) -> None:
    examples = one.fewshots
    assert len(examples.critique) == len(examples.revision) == len(examples.judge) == 2
    # A response that was fine stays as it is, and one that was not does not.
    assert [step.revision == step.response for step in examples.revision] == [False, True]
    assert ["response is fine" in step.critique for step in (*examples.critique, *examples.revision)] == [
        False,
        True,
    ] * 2
    assert all(pair.better != pair.worse for pair in examples.judge)


@pytest.mark.parametrize("one", all_principles(), ids=lambda one: one.id)
def test_each_principle_says_what_to_do_with_a_response_that_is_fine(one: Principle) -> None:
    assert "response is fine" in " ".join(one.critique_request.split())
    assert "If the response was fine, repeat it as it stands." in " ".join(one.revision_request.split())
    assert one.preference_question.startswith("Which of the two responses")
    assert one.pointwise_question.endswith("?")


def test_a_text_stands_once() -> None:
    texts = [
        text
        for one in all_principles()
        for text in (one.critique_request, one.revision_request, one.preference_question, one.pointwise_question)
    ]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("one", all_principles(), ids=lambda one: one.id)
def test_each_principle_can_be_asked_with_its_examples(one: Principle) -> None:
    phrasing = EnglishPhrasing(fewshots=True)
    dialogue = (Message("user", "Hi"), Message("assistant", "Hello."))
    assert len(phrasing.critique(one, dialogue)) == 2 * 4 + 3
    assert len(phrasing.revision(one, dialogue, "Fine.")) == 2 * 6 + 5
    assert len(phrasing.pairwise(one, Prompt("Hi"), "a", "b", reasons=False).turns) == 2 * 2 + 1
    assert len(phrasing.pointwise(one, Prompt("Hi"), "a", reasons=False).turns) == 4 * 2 + 1


@pytest.mark.parametrize("name", ["refuse_all", "verbose"])
def test_a_control_says_that_it_is_meant_to_do_damage(name: str) -> None:
    first = (conf_directory() / "constitution" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# A control that is meant to do damage")
    assert all("(a control)" in one.title for one in load(name).principles)
