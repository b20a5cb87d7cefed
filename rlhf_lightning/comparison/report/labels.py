"""Short names of groups, for legends and sentences: what tells a group from the others, and no more than that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_lightning.comparison.records import Group

LONGEST_LABEL = 60
"""Characters of all settings together that still fit a legend."""
LONGEST_VALUE = 30


def labels(groups: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """Each group's own label; where one is too long, of all groups only the settings that tell them apart."""
    if all(len(group.label) <= LONGEST_LABEL for group in groups):
        return [group.label for group in groups]
    telling = _telling([group.settings for group in groups], keys)
    return [" ".join(f"{key}={_shortened(group.settings[key])}" for key in telling) for group in groups]


def _telling(settings: Sequence[Mapping[str, str]], keys: Sequence[str]) -> list[str]:
    """Few keys that distinguish all groups. Greedy: repeatedly pick the key that splits the remaining groups best."""
    chosen: list[str] = []

    def parted(candidate: str) -> int:
        return len({tuple(told[key] for key in (*chosen, candidate)) for told in settings})

    # The first key at the least, so that the label of a single group is not empty.
    while not chosen or len({tuple(told[key] for key in chosen) for told in settings}) < len(settings):
        chosen.append(max((key for key in keys if key not in chosen), key=parted))
    return [key for key in keys if key in chosen]


def _shortened(value: str) -> str:
    """The end of a long value: of paths that is what differs."""
    return value if len(value) <= LONGEST_VALUE else f"…{value[-LONGEST_VALUE:]}"
