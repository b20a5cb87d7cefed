"""Constitutions for tests, whose texts say nothing."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.constitutions.settings import ConstitutionSettings


def principle(name: str, weight: float = 1.0, applies_to: list[str] | None = None) -> dict[str, Any]:
    """A principle of that id."""
    questions = ("critique_request", "revision_request", "preference_question", "pointwise_question")
    return {
        "id": name,
        "title": name,
        **dict.fromkeys(questions, "?"),
        "weight": weight,
        "tags": [],
        "applies_to": applies_to,
        "world": None,
        "fewshots": {"critique": [], "revision": [], "judge": []},
    }


def constitution(*principles: dict[str, Any], mode: str = "weighted") -> ConstitutionSettings:
    """A constitution of these principles, of one round."""
    return ConstitutionSettings.model_validate(
        {
            "name": "test",
            "version": 1,
            "path": None,
            "extends": [],
            "mixture": {},
            "sampling": {"mode": mode, "per": "step"},
            "revisions": 1,
            "critique": True,
            "train_on": "all",
            "mix_helpful": 1.0,
            "principles": list(principles),
        }
    )
