"""Checks of principles beyond their schema: unusable texts and duplicates."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.constitutions.composition import KEY, Resolved
from rlhf_lightning.constitutions.placeholders import ALLOWED, unknown_placeholders
from rlhf_lightning.errors import Problem


def principle_problems(resolved: Resolved, traits: Collection[str]) -> list[Problem]:
    """Problems with the principles of a config that is not validated yet.

    Args:
        resolved: the constitution; what is of the wrong type is the schema's to complain of.
        traits: the names that the courtesy world has for principles.
    """
    principles: Any = resolved.plain["principles"]
    if not isinstance(principles, list):
        return []
    found = list(_repeated(principles, resolved))
    for number, principle in enumerate(principles):
        if isinstance(principle, dict):
            place = f"{KEY}.principles.{number}"
            found += [*_unanswerable(principle, place), *_unknown_trait(principle, place, traits)]
    return found


def _repeated(principles: Sequence[Any], resolved: Resolved) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for number, principle in enumerate(principles):
        name = principle.get("id") if isinstance(principle, dict) else None
        if not isinstance(name, str):
            continue
        earlier = first.setdefault(name, number)
        if earlier != number:
            place = resolved.origins[earlier].place
            what = f"there is a principle {name!r} already" + (f", in {place}" if place else "")
            yield Problem(f"{KEY}.principles.{number}.id", what, fix="drop one of them, or rename it")


def _unanswerable(principle: Mapping[str, Any], place: str) -> Iterator[Problem]:
    for field, allowed in ALLOWED.items():
        text = principle.get(field)
        if not isinstance(text, str) or not text:
            continue
        if not text.strip():
            yield Problem(f"{place}.{field}", "is blank", fix="write what the model shall be asked")
        if unknown := unknown_placeholders(field, text):
            named = ", ".join(f"{{{name}}}" for name in unknown)
            what = f"{named} {'is no placeholder' if len(unknown) == 1 else 'are no placeholders'}"
            known = ", ".join(f"{{{name}}}" for name in allowed)
            yield Problem(f"{place}.{field}", f"{what} of this text", fix=f"there are: {known}")


def _unknown_trait(principle: Mapping[str, Any], place: str, traits: Collection[str]) -> Iterator[Problem]:
    world = principle.get("world")
    tag = world.get("tag") if isinstance(world, dict) else None
    if isinstance(tag, str) and tag and tag not in traits:
        alike = difflib.get_close_matches(tag, traits, n=1)
        fix = f"did you mean {alike[0]}?" if alike else f"there are: {', '.join(traits)}"
        yield Problem(f"{place}.world.tag", f"the courtesy world has no trait {tag!r}", fix=fix)
