"""What is wrong with principles beyond their types: texts, ids, traits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_lightning.constitutions.composition import PrincipleOrigin, ResolvedConstitution, principle_problems
from rlhf_lightning.constitutions.rendering import fill

Build = Callable[..., dict[str, Any]]


def problems(*principles: Any, places: tuple[str | None, ...] | None = None) -> dict[str, tuple[str, str | None]]:
    """What is found, by key below `constitution.principles`, as text and fix."""
    places = places or (None,) * len(principles)
    origins = tuple(PrincipleOrigin(place, number) for number, place in enumerate(places))
    found = principle_problems(
        ResolvedConstitution({"principles": list(principles)}, origins, {}, ()), ("harmless", "brief")
    )
    return {one.key.removeprefix("constitution.principles."): (one.what, one.fix) for one in found}


def test_nothing_is_wrong_with_a_right_one(make_plain_principle: Build) -> None:
    texts = {
        "critique_request": "{prompt} {response}",
        "revision_request": "{response}",
        "preference_question": "{prompt} {response_a} {response_b}",
        "pointwise_question": "{response}{prompt}",
    }
    assert problems(make_plain_principle(**texts, world={"tag": "brief"}), make_plain_principle("other")) == {}


def test_an_unknown_placeholder_is_named(make_plain_principle: Build) -> None:
    wrong = make_plain_principle(
        critique_request="{promt} and {response_a} and {promt}",
        preference_question="{response}",
        revision_request="{x}",
    )
    assert problems(wrong) == {
        "0.critique_request": (
            "{promt}, {response_a} are no placeholders of this text",
            "there are: {prompt}, {response}",
        ),
        "0.preference_question": (
            "{response} is no placeholder of this text",
            "there are: {prompt}, {response_a}, {response_b}",
        ),
        "0.revision_request": ("{x} is no placeholder of this text", "there are: {prompt}, {response}"),
    }


@pytest.mark.parametrize("text", ["{", "}", "{}", "{ prompt }", "{0}", "{{", "f(x) = {x: 1}", "{response", "a } b { c"])
def test_a_brace_that_is_no_placeholder_is_an_ordinary_character(make_plain_principle: Build, text: str) -> None:
    assert problems(make_plain_principle(critique_request=text)) == {}
    assert fill(text, {"prompt": "P", "response": "R"}) == text


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    assert (
        fill("{prompt} {{response}} {prompt}", {"prompt": "{response}", "response": "R"}) == "{response} {R} {response}"
    )


def test_a_blank_text_is_no_text(make_plain_principle: Build) -> None:
    assert problems(make_plain_principle(pointwise_question=" \n ")) == {
        "0.pointwise_question": ("is blank", "write what the model shall be asked")
    }


def test_an_id_stands_once(make_plain_principle: Build) -> None:
    same = [make_plain_principle(name) for name in ("a", "b", "a", "a")]
    found = problems(*same, places=("one.yaml", None, None, "two.yaml"))
    assert found == {
        f"{number}.id": ("there is a principle 'a' already, in one.yaml", "drop one of them, or rename it")
        for number in (2, 3)
    }
    assert problems(same[1], same[1])["1.id"][0] == "there is a principle 'b' already"


def test_a_trait_that_the_world_does_not_have_is_named(make_plain_principle: Build) -> None:
    assert problems(make_plain_principle(world={"tag": "harmles"}), make_plain_principle("b", world={"tag": "zz"})) == {
        "0.world.tag": ("the courtesy world has no trait 'harmles'", "did you mean harmless?"),
        "1.world.tag": ("the courtesy world has no trait 'zz'", "there are: harmless, brief"),
    }


@pytest.mark.parametrize(
    "wrong", [3, None, [], {}, {"id": 3, "world": 3, "critique_request": 3}, {"world": {"tag": 3}}]
)
def test_what_is_of_the_wrong_type_is_passed_over(wrong: object) -> None:
    assert problems(wrong) == {}
    assert principle_problems(ResolvedConstitution({"principles": wrong}, (), {}, ()), ()) == []
