"""`path`, `extends` and `mixture` become one list of principles, whose weights are computed by hand here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rlhf_lightning.constitutions.composition import ConstitutionSource, PrincipleOrigin, ResolvedConstitution, resolve
from rlhf_lightning.errors import ConfigError, Problem

Build = Callable[..., dict[str, Any]]


def bare(name: str, weight: float | None = None) -> dict[str, Any]:
    """A principle as a file has it, of which only id and weight matter here."""
    return {"id": name} if weight is None else {"id": name, "weight": weight}


@pytest.fixture
def put_together(make_plain_constitution: Build) -> Callable[..., ResolvedConstitution]:
    """Resolves a constitution among others, which are given by name."""

    def run(raw: Mapping[str, Any], place: str | None = None, **others: Mapping[str, Any]) -> ResolvedConstitution:
        files = {"none": make_plain_constitution(name="none"), **others}

        def load(name: str) -> ConstitutionSource:
            if name not in files:
                raise ConfigError([Problem("constitution", f"no {name}", fix="mend it")])
            return ConstitutionSource(f"{name}.yaml", files[name])

        return resolve(raw, load, place)

    return run


def weights(resolved: ResolvedConstitution) -> dict[str, float]:
    return {one["id"]: one["weight"] for one in resolved.plain["principles"]}


def test_what_a_principle_leaves_out_is_filled_in(put_together: Callable[..., ResolvedConstitution]) -> None:
    raw = {"path": None, "principles": [{"id": "a", "fewshots": {"judge": [1]}}]}
    (principle,) = put_together(raw).plain["principles"]
    assert principle == {
        "id": "a",
        "weight": 1.0,
        "tags": [],
        "applies_to": None,
        "world": None,
        "fewshots": {"critique": [], "revision": [], "judge": [1]},
    }


def test_extended_principles_come_first_with_their_own_weights(
    put_together: Callable[..., ResolvedConstitution],
) -> None:
    resolved = put_together(
        {"path": None, "extends": ["one", "two"], "principles": [bare("own", 3.0)]},
        one={"principles": [bare("a"), bare("b", 0.5)], "revisions": 9},
        two={"extends": ["three"], "principles": [bare("d")]},
        three={"principles": [bare("c", 2.0)]},
    )
    assert resolved.problems == ()
    assert list(weights(resolved).items()) == [("a", 1.0), ("b", 0.5), ("c", 2.0), ("d", 1.0), ("own", 3.0)]
    assert resolved.plain["revisions"] == 2  # of the others only the principles are taken
    assert [origin.place for origin in resolved.origins] == ["one.yaml", "one.yaml", "three.yaml", "two.yaml", None]
    assert [origin.number for origin in resolved.origins] == [0, 1, 0, 0, 0]


def test_a_mixture_gives_each_constitution_its_share(put_together: Callable[..., ResolvedConstitution]) -> None:
    resolved = put_together(
        {"path": None, "extends": ["three"], "mixture": {"one": 2, "two": 1}, "principles": [bare("own", 3.0)]},
        one={"principles": [bare("a", 1.0), bare("b", 3.0)]},
        two={"principles": [bare("c", 5.0)]},
        three={"principles": [bare("d", 7.0)]},
    )
    # one: 1 + 3 = 4 becomes 2, so each weight is halved. two: 5 becomes 1. What is extended or its own stays.
    assert list(weights(resolved).items()) == [("d", 7.0), ("a", 0.5), ("b", 1.5), ("c", 1.0), ("own", 3.0)]


def test_a_mixture_of_mixtures_scales_what_was_scaled(put_together: Callable[..., ResolvedConstitution]) -> None:
    resolved = put_together(
        {"path": None, "mixture": {"both": 4}},
        both={"mixture": {"one": 1, "two": 3}},
        one={"principles": [bare("a", 9.0)]},
        two={"principles": [bare("b", 9.0)]},
    )
    assert weights(resolved) == {"a": 1.0, "b": 3.0}


def test_a_file_stands_in_place_of_the_option_and_below_what_stands_beside_it(
    put_together: Callable[..., ResolvedConstitution],
) -> None:
    mine = {
        "name": "file",
        "revisions": 4,
        "sampling": {"mode": "all"},
        "extends": ["one"],
        "principles": [bare("own")],
    }
    resolved = put_together({"path": "mine", "revisions": 1}, mine=mine, one={"principles": [bare("a")]})
    assert resolved.problems == ()
    assert resolved.plain["name"] == "file"
    assert resolved.plain["revisions"] == 1
    assert resolved.plain["sampling"] == {"mode": "all", "per": "step"}  # `per` is none's
    assert resolved.plain["path"] is None
    assert resolved.plain["extends"] == []
    assert list(weights(resolved)) == ["a", "own"]
    assert resolved.origins == (PrincipleOrigin("one.yaml", 0), PrincipleOrigin("mine.yaml", 0))
    assert resolved.places["name"] == "mine.yaml"
    assert "revisions" not in resolved.places


def test_a_file_may_begin_with_other_options_as_hydra_reads_it(
    put_together: Callable[..., ResolvedConstitution],
) -> None:
    resolved = put_together(
        {"path": None, "extends": ["two"]},
        one={"defaults": ["none"], "principles": [bare("a")]},
        two={"defaults": ["none", "one", "_self_"], "name": "two"},
    )
    assert resolved.problems == ()
    assert list(weights(resolved)) == ["a"]


def test_resolving_twice_changes_nothing(put_together: Callable[..., ResolvedConstitution]) -> None:
    others = {"one": {"principles": [bare("a", 1.0), bare("b", 2.0)]}, "two": {"principles": [bare("c")]}}
    once = put_together({"path": None, "extends": ["two"], "mixture": {"one": 1.0}}, **others)
    assert len(once.plain["principles"]) == 3
    assert put_together(once.plain).plain == once.plain


def test_a_circle_is_reported_and_broken(put_together: Callable[..., ResolvedConstitution]) -> None:
    one = {"extends": ["two"], "principles": [bare("a")]}
    two = {"extends": ["one"], "principles": [bare("b")]}
    for raw in ({"path": None, "extends": ["one"]}, {"path": "one"}):
        resolved = put_together(raw, one=one, two=two)
        (problem,) = resolved.problems
        assert problem.what == "goes in a circle: one.yaml -> two.yaml -> one.yaml"
        assert (problem.key, problem.source) == ("constitution.extends.0", "two.yaml")
        assert list(weights(resolved)) == ["b", "a"]
    (problem,) = put_together({"path": None, "extends": ["own"]}, place="own.yaml", own={"principles": []}).problems
    assert problem.what == "goes in a circle: own.yaml -> own.yaml"


def test_all_that_cannot_be_followed_is_reported_at_once(put_together: Callable[..., ResolvedConstitution]) -> None:
    resolved = put_together(
        {"path": None, "extends": ["gone", 3, "one"], "mixture": {"one": 0, "empty": 1, "lost": 1, "two": True}},
        one={"principals": [], "extends": "two", "mixture": ["two"], "defaults": [{"a": "b"}]},
        empty={"principles": []},
    )
    assert [(problem.key.removeprefix("constitution."), problem.source) for problem in resolved.problems] == [
        ("extends.0", None),
        ("extends.1", None),
        ("principals", "one.yaml"),
        ("defaults.0", "one.yaml"),
        ("extends", "one.yaml"),
        ("mixture", "one.yaml"),
        ("mixture.one", None),
        ("mixture.empty", None),
        ("mixture.lost", None),
        ("mixture.two", None),
    ]
    fixes = {problem.key: problem.fix for problem in resolved.problems}
    assert fixes["constitution.principals"] == "did you mean principles?"
    assert fixes["constitution.extends.0"] == "mend it"


def test_a_path_beside_principles_is_one_constitution_too_many(
    put_together: Callable[..., ResolvedConstitution],
) -> None:
    (problem,) = put_together({"path": "one", "principles": []}, one={"principles": [bare("a")]}).problems
    assert (problem.key, problem.what) == (
        "constitution.path",
        "a file is a whole constitution, and another one stands beside it",
    )


@pytest.mark.parametrize("wrong", ["text", 3, None, {"a": 1}, [1, "b", {"weight": "heavy", "fewshots": 3}]])
def test_what_is_of_the_wrong_type_is_left_for_the_schema(
    put_together: Callable[..., ResolvedConstitution], wrong: object
) -> None:
    resolved = put_together({"path": None, "principles": wrong, "mixture": {"one": 1}}, one={"principles": wrong})
    own = resolved.plain["principles"]
    assert own == wrong if not isinstance(wrong, list) else own[-3:-1] == wrong[:2]
    assert [problem.key for problem in resolved.problems if problem.key != "constitution.mixture.one"] == []


def test_a_path_that_was_not_given_is_left_for_the_schema_to_ask_for(
    put_together: Callable[..., ResolvedConstitution],
) -> None:
    assert "path" not in put_together({}).plain
    assert put_together({"principles": []}).plain["path"] is None
