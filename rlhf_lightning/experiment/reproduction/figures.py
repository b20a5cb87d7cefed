"""Bitwise comparison of the figures of two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NO_FIGURES = frozenset({"seconds", "memory", "key", "cache"})
"""Entries of metrics.json that are not compared: duration, memory, and the origin of an artifact."""

ABSENT = "(none)"


@dataclass(frozen=True)
class Difference:
    """A figure that two runs differ in."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    """All figures of two runs: how many there are, and those that differ."""

    compared: int
    differences: tuple[Difference, ...]


def compare_figures(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compares the contents of two metrics.json; figures are named by dotted path, `evaluate.ppo.iid.gold_reward`."""
    before, after = dict(_figures(first)), dict(_figures(second))
    names = list({**before, **after})
    pairs = [Difference(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in names]
    # 1, 1.0 and true are different entries, although they are equal in Python.
    different = tuple(pair for pair in pairs if repr(pair.first) != repr(pair.second))
    return Comparison(len(names), different)


def _figures(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts = [(key, part) for key, part in value.items() if key not in NO_FIGURES]
    elif isinstance(value, list):
        parts = [(str(index), part) for index, part in enumerate(value)]
    else:
        yield name, value
        return
    for key, part in parts:
        yield from _figures(part, f"{name}.{key}" if name else key)
