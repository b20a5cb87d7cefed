"""A hash follows what a constitution does, and not what it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_lightning.constitutions.identity import content_hash, critique_part, judge_part
from rlhf_lightning.constitutions.settings import ConstitutionSettings

Build = Callable[..., dict[str, Any]]
BuildConstitution = Callable[..., ConstitutionSettings]

EXAMPLES = {
    "critique": [{"prompt": "p", "response": "r", "critique": "c"}],
    "revision": [{"prompt": "p", "response": "r", "critique": "c", "revision": "v"}],
    "judge": [{"prompt": "p", "better": "b", "worse": "w"}],
}


def test_a_hash_is_twelve_hexadecimal_digits(make_constitution: BuildConstitution) -> None:
    digits = content_hash(make_constitution())
    assert len(digits) == 12
    assert set(digits) <= set("0123456789abcdef")


def test_names_do_not_count(make_constitution: BuildConstitution, make_plain_principle: Build) -> None:
    one = make_constitution(make_plain_principle(), name="one", version=1)
    two = make_constitution(make_plain_principle(title="Other", tags=["t"]), name="two", version=2)
    assert content_hash(one) == content_hash(two)


@pytest.mark.parametrize(
    "changed",
    [
        {"revisions": 3},
        {"critique": False},
        {"train_on": "last"},
        {"mix_helpful": 2.0},
        {"sampling": {"mode": "uniform", "per": "step"}},
        {"sampling": {"mode": "weighted", "per": "chain"}},
    ],
)
def test_every_setting_of_the_method_counts(
    make_constitution: BuildConstitution, make_plain_principle: Build, changed: dict[str, Any]
) -> None:
    principle = make_plain_principle()
    assert content_hash(make_constitution(principle)) != content_hash(make_constitution(principle, **changed))


COUNTS_FOR = {
    "id": (True, True),
    "critique_request": (True, False),
    "revision_request": (True, False),
    "preference_question": (False, True),
    "pointwise_question": (False, True),
    "weight": (True, True),
    "applies_to": (True, True),
    "world": (True, True),
    "title": (False, False),
    "tags": (False, False),
}
"""Fields of a principle: whether critiques go by it, and whether judgments do."""

CHANGED: dict[str, Any] = {"weight": 2.0, "applies_to": ["harm"], "world": {"tag": "brief"}, "tags": ["t"]}


@pytest.mark.parametrize("field", COUNTS_FOR)
def test_a_field_counts_where_it_is_read(
    make_constitution: BuildConstitution, make_plain_principle: Build, field: str
) -> None:
    before = make_constitution(make_plain_principle())
    after = make_constitution({**make_plain_principle(), field: CHANGED.get(field, "other")})
    of_critiques, of_judgments = COUNTS_FOR[field]
    assert (critique_part(before) != critique_part(after)) == of_critiques
    assert (judge_part(before) != judge_part(after)) == of_judgments
    assert (content_hash(before) != content_hash(after)) == (of_critiques or of_judgments)


@pytest.mark.parametrize("kind", ["critique", "revision", "judge"])
def test_examples_count_where_they_are_shown(
    make_constitution: BuildConstitution, make_plain_principle: Build, kind: str
) -> None:
    none = {name: [] for name in EXAMPLES}
    before = make_constitution(make_plain_principle())
    after = make_constitution(make_plain_principle(fewshots={**none, kind: EXAMPLES[kind]}))
    assert (critique_part(before) != critique_part(after)) == (kind != "judge")
    assert (judge_part(before) != judge_part(after)) == (kind == "judge")
    assert content_hash(before) != content_hash(after)


def test_every_field_of_a_principle_was_thought_of(make_plain_principle: Build) -> None:
    assert set(COUNTS_FOR) | {"fewshots"} == set(make_plain_principle())
