"""The doctor's input and output: the record of a run with the curves of its metrics, and findings with their fix."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from rlhf_lightning.evaluation.curves import HistoryRow, rollout_stage
from rlhf_lightning.sections import instances_of


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


LATE_SHARE = 5
"""The last fifth of a run is its end: long enough that one odd batch does not decide, short enough to be the end."""
SMOOTHING = 5
"""Iterations of a running median: two odd batches in a row do not move it."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The finite values of one metric, in order; never empty.

    Attributes:
        name: of the metric.
        iterations: counted from 0.
        values: as many.
    """

    name: str
    iterations: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def first(self) -> float:
        return self.values[0]

    @property
    def end(self) -> float:
        """The median of the last fifth."""
        return statistics.median(self.values[-max(1, len(self) // LATE_SHARE) :])

    @property
    def late_half(self) -> Curve:
        """The second half of the run."""
        middle = len(self) // 2
        return Curve(self.name, self.iterations[middle:], self.values[middle:])

    @property
    def smooth(self) -> Curve:
        """The running median over the last iterations, as far as there are any."""
        medians = [
            statistics.median(self.values[max(0, index - SMOOTHING + 1) : index + 1]) for index in range(len(self))
        ]
        return Curve(self.name, self.iterations, tuple(medians))

    def peak(self) -> tuple[int, float]:
        """The iteration of the largest value, and that value."""
        value = max(self.values)
        return self.iterations[self.values.index(value)], value

    def where(self, holds: Callable[[float], bool]) -> list[int]:
        """The iterations whose value fits."""
        return [iteration for iteration, value in zip(self.iterations, self.values, strict=True) if holds(value)]

    def at(self, iteration: int) -> float:
        """The value at an iteration, or at the last one before it."""
        earlier = [
            value for known, value in zip(self.iterations, self.values, strict=True) if known <= iteration
        ] or self.values[:1]
        return earlier[-1]

    def change(self) -> str:
        """From the first value to the end, as evidence."""
        return f"{self.name} {figure(self.first)} at the start, {figure(self.end)} at the end"


def spans(iterations: Sequence[int]) -> str:
    """Iterations as ranges: `3`, `0-2, 7-9`; the longest three if there are many."""
    ranges: list[list[int]] = []
    for iteration in iterations:
        if ranges and iteration == ranges[-1][-1] + 1:
            ranges[-1].append(iteration)
        else:
            ranges.append([iteration])
    shown = sorted(sorted(ranges, key=len, reverse=True)[:3])
    text = ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in shown)
    return text + (f" and {len(ranges) - 3} more" if len(ranges) > 3 else "")


@dataclass(frozen=True)
class RunRecord:
    """A run in plain values. Anything but the config may be missing: runs are examined while they go on.

    Attributes:
        state: running, finished, failed or interrupted.
        stage: the one that was running last.
        alive: whether the process that wrote it still runs.
        error: why it failed, as text.
        config: the resolved config.
        metrics: the final figures; empty while there are none.
        history: every figure logged.
    """

    state: str
    stage: str | None
    alive: bool
    error: str | None
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    history: Sequence[HistoryRow]

    def setting(self, key: str) -> Any:
        """Config value at a dotted key; None if a run of another version has no such key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value

    def number(self, key: str) -> float | None:
        """A setting that is a number."""
        value = self.setting(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def last_instance(self, stage: str) -> str:
        """Name of the last instance of a stage in the pipeline; the stage's own where there is none."""
        return next((name for name, each in reversed(list(instances_of(self.config))) if each == stage), stage)

    def ppo(self, name: str) -> Curve | None:
        """A metric of PPO over its iterations; None where it was not logged."""
        points = [
            (iteration, values[name])
            for iteration, values in enumerate(self._iterations)
            if name in values and math.isfinite(values[name])
        ]
        if not points:
            return None
        return Curve(name, tuple(iteration for iteration, _ in points), tuple(value for _, value in points))

    @property
    def iterations(self) -> int:
        """Iterations of PPO that were logged."""
        return len(self._iterations)

    @property
    def not_finite(self) -> list[tuple[HistoryRow, int | None]]:
        """The figures that are not finite, each with its iteration of PPO."""
        order = {episodes: iteration for iteration, episodes in enumerate(self._episodes)}
        return [
            (row, order.get(row.episodes) if row.episodes is not None else None)
            for row in self.history
            if not math.isfinite(row.value)
        ]

    @cached_property
    def _episodes(self) -> list[int]:
        return sorted({row.episodes for row in self._ppo_rows if row.episodes is not None})

    @cached_property
    def _iterations(self) -> list[dict[str, float]]:
        """The figures of each iteration. Where a resumed run logged one twice, the last value counts."""
        figures: dict[int, dict[str, float]] = {episodes: {} for episodes in self._episodes}
        for row in self._ppo_rows:
            if row.episodes is not None:
                figures[row.episodes][row.name] = row.value
        return [figures[episodes] for episodes in self._episodes]

    @cached_property
    def _ppo_rows(self) -> list[HistoryRow]:
        stage = rollout_stage(self.history)
        return [row for row in self.history if row.stage == stage]
