"""Hashes of a constitution's content, independent of its name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rlhf_lightning.constitutions.settings import ConstitutionSettings, Principle

HASH_LENGTH = 12
"""Hexadecimal digits."""

NAMES = frozenset({"name", "version", "path", "extends", "mixture"})
"""Keys that name a constitution or list its parts; `principles` holds the result of composing them."""

LABELS = frozenset({"title", "tags"})
"""Keys of a principle that are in no prompt."""

OF_CRITIQUES = frozenset({"critique_request", "revision_request"})
OF_JUDGMENTS = frozenset({"preference_question", "pointwise_question"})


def content_hash(constitution: ConstitutionSettings) -> str:
    """A hash of everything that decides what models are asked, and how often: the same under another name."""
    content = constitution.model_dump(mode="json", exclude=set(NAMES))
    return _hashed({**content, "principles": [_without(principle, LABELS) for principle in constitution.principles]})


def critique_hash(constitution: ConstitutionSettings) -> str:
    """A hash of what critiques, revisions and the data for fine-tuning are made by."""
    content = constitution.model_dump(mode="json", exclude=set(NAMES))
    return _hashed({**content, "principles": critique_part(constitution)})


def judge_hash(constitution: ConstitutionSettings) -> str:
    """A hash of all that a judge is asked by."""
    sampling = constitution.sampling.model_dump(mode="json")
    return _hashed({"sampling": sampling, "principles": judge_part(constitution)})


def critique_part(constitution: ConstitutionSettings) -> list[dict[str, Any]]:
    """The keys of each principle that critiques and revisions use."""
    return [_part(principle, LABELS | OF_JUDGMENTS, ("critique", "revision")) for principle in constitution.principles]


def judge_part(constitution: ConstitutionSettings) -> list[dict[str, Any]]:
    """The keys of each principle that a judge uses."""
    return [_part(principle, LABELS | OF_CRITIQUES, ("judge",)) for principle in constitution.principles]


def _hashed(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _part(principle: Principle, unread: frozenset[str], examples: tuple[str, ...]) -> dict[str, Any]:
    part = _without(principle, unread)
    part["fewshots"] = {kind: part["fewshots"][kind] for kind in examples}
    return part


def _without(principle: Principle, unread: frozenset[str]) -> dict[str, Any]:
    return principle.model_dump(mode="json", exclude=set(unread))
