"""Findings of the doctor: a cause, its evidence, and overrides that fix it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """Severity of a finding."""

    SERIOUS = "serious"
    """The run, or what it made, is not worth keeping as it is."""
    WARNING = "warning"
    """Worth a look before more time is spent."""
    NOTE = "note"
    """Good to know; a healthy run may have it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands out in a run.

    Attributes:
        name: of the check, e.g. `learning_rate_too_high`.
        title: the cause, in a few words.
        evidence: figures and iterations that speak for it.
        explanation: what it means and why it happens.
        overrides: what to change, as they are typed.
        explains: the names of findings that commonly follow from this one, and need no treatment of their own.
    """

    name: str
    severity: Severity
    title: str
    evidence: tuple[str, ...]
    explanation: str
    overrides: tuple[str, ...] = ()
    explains: frozenset[str] = frozenset()


def figure(value: float) -> str:
    """A number as it is shown: three digits, `1e-04` as `0.0001`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.3g}" if abs(value) < 1e-4 else f"{float(f'{value:.3g}'):g}"


def override(key: str, value: float) -> str:
    """`key=value`, to two digits: what is proposed is an order of magnitude, not a measurement."""
    return f"{key}={float(f'{value:.2g}'):g}"
