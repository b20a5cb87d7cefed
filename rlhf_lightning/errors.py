"""Typed errors (what is wrong, where, and the fix), and similar names to suggest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class RlhfError(Exception):
    """An error that the user can fix.

    Args:
        what: what is wrong, as one sentence.
        where: the file and line, config key or artifact it concerns.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(self.render())

    def render(self) -> str:
        """The error as plain text, one aspect a line."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config."""

    key: str
    what: str
    source: str | None = None
    """The file or override that set the key."""
    fix: str | None = None

    def render(self) -> str:
        source = f"  [{self.source}]" if self.source else ""
        fix = f"\n      {self.fix}" if self.fix else ""
        return f"{self.key}: {self.what}{source}{fix}"


class ConfigError(RlhfError):
    """All problems of a config, reported at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(f"The config has {count} problem{'s' if count != 1 else ''}; nothing was loaded or started.")

    def render(self) -> str:
        return "\n".join([self.what, *(f"  - {problem.render()}" for problem in self.problems)])


class DataError(RlhfError):
    """Data that cannot be read, is malformed, or is empty."""


class ModelError(RlhfError):
    """A model or tokenizer that cannot be loaded, or is of the wrong kind."""


class JudgeError(RlhfError):
    """A judge that cannot be reached, or gives invalid answers."""


class ArtifactError(RlhfError):
    """A stage's input is missing, incomplete, or of the wrong kind."""


class RunDirectoryError(RlhfError):
    """A run directory that exists already or cannot be written."""


class ReproductionError(RlhfError):
    """A run that cannot be reproduced."""

    exit_code = 2


class CacheError(RlhfError):
    """A stage cache, or an entry of it, that does not exist."""

    exit_code = 2


class CheckpointError(RlhfError):
    """A checkpoint that must not be loaded."""


class MemoryExhaustedError(RlhfError):
    """A stage needed more memory than there is."""


class DivergedError(RlhfError):
    """Training produced figures that are not finite."""


class InvariantError(RlhfError):
    """A violated invariant of training."""


class ComparisonError(RlhfError):
    """A comparison that is not possible as requested."""

    exit_code = 2


ALIKE = 0.72
"""Least similarity (0 to 1, `difflib`) at which a name is suggested."""


def similar(name: str, candidates: Iterable[str], limit: int = 3) -> list[str]:
    """The candidates most similar to a name, best first."""
    return difflib.get_close_matches(name, list(candidates), n=limit, cutoff=ALIKE)


def did_you_mean(suggestions: Iterable[str]) -> str | None:
    """`did you mean a or b?`; None without suggestions."""
    unique = list(dict.fromkeys(suggestions))
    return f"did you mean {' or '.join(unique)}?" if unique else None
