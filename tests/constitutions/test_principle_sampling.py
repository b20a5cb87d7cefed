"""Which principles a step or a label goes by: the modes, how often, and what a draw depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from made_up_constitutions import constitution, principle

from rlhf_lightning.constitutions.rendering import applicable, sample_principles
from rlhf_lightning.constitutions.settings import Principle, PrincipleSampling

MANY = 6000
"""Draws. Five standard errors of a share p are 5 * sqrt(p (1 - p) / 6000), at most 0.033."""
ERRORS = 0.033

ABC = constitution(principle("a", 1.0), principle("b", 2.0), principle("c", 5.0)).principles


def sampling(mode: Any, per: Any = "step") -> PrincipleSampling:
    return PrincipleSampling(mode=mode, per=per)


def ids(principles: Iterable[Principle]) -> list[str]:
    return [one.id for one in principles]


def one(mode: str, per: str = "step", *, chain: int = 0, step: int = 0, seed: int = 0) -> str:
    """The id of the one principle drawn."""
    (found,) = sample_principles(ABC, sampling(mode, per), chain=chain, step=step, seed=seed)
    return found.id


def shares(drawn_ids: Iterable[str]) -> dict[str, float]:
    counted = Counter(drawn_ids)
    return {name: count / counted.total() for name, count in sorted(counted.items())}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("harm", ["everywhere", "on_harm", "on_both"]),
        ("fact", ["everywhere", "on_both"]),
        ("benign", ["everywhere"]),
        (None, ["everywhere", "on_harm", "on_both"]),
    ],
)
def test_principles_apply_to_their_kinds_and_to_prompts_of_which_nobody_knows(
    kind: str | None, expected: list[str]
) -> None:
    principles = constitution(
        principle("everywhere"),
        principle("on_harm", applies_to=["harm"]),
        principle("on_both", applies_to=["fact", "harm"]),
    ).principles
    assert ids(applicable(principles, kind)) == expected


def test_nothing_applies_where_no_principle_does() -> None:
    assert applicable(constitution(principle("a", applies_to=["harm"])).principles, "fact") == []
    assert applicable([], None) == []


@pytest.mark.parametrize("per", ["step", "chain"])
def test_all_of_them_in_the_order_of_the_constitution(per: str) -> None:
    for chain in range(3):
        for step in range(3):
            assert ids(sample_principles(ABC, sampling("all", per), chain=chain, step=step, seed=chain)) == [
                "a",
                "b",
                "c",
            ]


def test_taking_turns_goes_on_with_every_step_and_begins_one_later_in_every_chain() -> None:
    assert [one("round_robin", step=step) for step in range(5)] == ["a", "b", "c", "a", "b"]
    assert [one("round_robin", chain=1, step=step) for step in range(3)] == ["b", "c", "a"]
    assert one("round_robin", seed=9) == one("round_robin"), "nothing is left to chance"


def test_taking_turns_by_chain_goes_on_with_every_chain() -> None:
    assert [one("round_robin", "chain", chain=chain) for chain in range(5)] == ["a", "b", "c", "a", "b"]
    assert {one("round_robin", "chain", chain=1, step=step) for step in range(5)} == {"b"}


@pytest.mark.parametrize("per", ["step", "chain"])
def test_by_weight_each_is_drawn_as_often_as_it_weighs(per: str) -> None:
    found = shares(one("weighted", per, chain=chain) for chain in range(MANY))
    # 1, 2 and 5 of 8.
    assert found == pytest.approx({"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}, abs=ERRORS)


def test_weights_count_within_what_applies() -> None:
    """`b` and `c` alone: 2 and 5 of 7."""
    found = shares(
        sample_principles(ABC[1:], sampling("weighted"), chain=chain, step=0, seed=0)[0].id for chain in range(MANY)
    )
    assert found == pytest.approx({"b": 2 / 7, "c": 5 / 7}, abs=ERRORS)


@pytest.mark.parametrize("per", ["step", "chain"])
def test_uniformly_each_is_drawn_as_often_as_the_others_whatever_it_weighs(per: str) -> None:
    found = shares(one("uniform", per, chain=chain) for chain in range(MANY))
    assert found == pytest.approx(dict.fromkeys("abc", 1 / 3), abs=ERRORS)


@pytest.mark.parametrize("mode", ["weighted", "uniform"])
def test_steps_of_a_chain_are_drawn_independently(mode: str) -> None:
    pairs = [(one(mode, chain=chain), one(mode, chain=chain, step=1)) for chain in range(MANY)]
    first, second = shares(pair[0] for pair in pairs), shares(pair[1] for pair in pairs)
    together = Counter(pairs)
    for before, after in ((x, y) for x in "abc" for y in "abc"):
        assert together[before, after] / MANY == pytest.approx(first[before] * second[after], abs=ERRORS)


@pytest.mark.parametrize("mode", ["weighted", "uniform"])
def test_by_chain_all_of_its_steps_go_by_the_same_principle(mode: str) -> None:
    for chain in range(50):
        assert len({one(mode, "chain", chain=chain, step=step) for step in range(6)}) == 1
    assert {one(mode, "chain", chain=chain) for chain in range(50)} == {"a", "b", "c"}


@pytest.mark.parametrize("mode", ["weighted", "uniform"])
@pytest.mark.parametrize("per", ["step", "chain"])
def test_a_draw_is_a_function_of_the_seed_the_chain_and_the_step(mode: str, per: str) -> None:
    def plan(seed: int) -> list[str]:
        return [one(mode, per, chain=chain, step=step, seed=seed) for chain in range(30) for step in range(3)]

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
    # In any order, and whatever was drawn before.
    backwards = [
        one(mode, per, chain=chain, step=step, seed=1) for chain in reversed(range(30)) for step in reversed(range(3))
    ]
    assert backwards[::-1] == plan(1)
