"""One metric over the iterations of a stage."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_lightning.diagnosis.finding import figure

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
