"""Principles and constitutions of a few words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_lightning.constitutions.settings import ConstitutionSettings, Principle

TEXTS = {
    "title": "Be brief",
    "critique_request": "What is too long?",
    "revision_request": "Shorten it.",
    "preference_question": "Which is shorter?",
    "pointwise_question": "Is it short?",
}


def plain_principle(name: str = "brief", **values: Any) -> dict[str, Any]:
    """A principle with all that the schema asks for."""
    rest = {"weight": 1.0, "tags": [], "applies_to": None, "world": None}
    return {"id": name, **TEXTS, **rest, "fewshots": {"critique": [], "revision": [], "judge": []}, **values}


def plain_constitution(*principles: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A constitution with all that the schema asks for."""
    return {
        "name": "mine",
        "version": 1,
        "path": None,
        "extends": [],
        "mixture": {},
        "sampling": {"mode": "weighted", "per": "step"},
        "revisions": 2,
        "critique": True,
        "train_on": "all",
        "mix_helpful": 1.0,
        "principles": list(principles),
        **values,
    }


@pytest.fixture(scope="session")
def make_principle() -> Callable[..., Principle]:
    """Builds principles: id, then values that differ."""
    return lambda name="brief", **values: Principle.model_validate(plain_principle(name, **values))


@pytest.fixture(scope="session")
def make_plain_principle() -> Callable[..., dict[str, Any]]:
    return plain_principle


@pytest.fixture(scope="session")
def make_constitution() -> Callable[..., ConstitutionSettings]:
    """Builds constitutions: plain principles, then values that differ."""
    return lambda *principles, **values: ConstitutionSettings.model_validate(plain_constitution(*principles, **values))


@pytest.fixture(scope="session")
def make_plain_constitution() -> Callable[..., dict[str, Any]]:
    return plain_constitution
