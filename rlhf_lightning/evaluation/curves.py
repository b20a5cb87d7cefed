"""Logged metrics as points of curves: what `history.csv` holds, a row a figure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class HistoryRow(NamedTuple):
    """One logged figure.

    Attributes:
        stage: the stage that logged it.
        step: optimizer steps taken when it was logged.
        episodes: responses sampled in training so far; None outside reinforcement learning.
        value: the figure; not a number or infinite where the run diverged.
    """

    stage: str
    step: int
    episodes: int | None
    name: str
    value: float


class Point(NamedTuple):
    """One point of a curve."""

    step: int
    episodes: int | None
    value: float


def points(history: Iterable[HistoryRow], stage: str, name: str) -> list[Point]:
    """The curve of one metric, in order of steps; where several rows are of one step, the last one counts."""
    latest = {row.step: Point(row.step, row.episodes, row.value) for row in history if _is(row, stage, name)}
    return [latest[step] for step in sorted(latest)]


def _is(row: HistoryRow, stage: str, name: str) -> bool:
    return row.stage == stage and row.name == name


def rollout_stage(history: Iterable[HistoryRow]) -> str | None:
    """The last stage that logged figures of rollouts; None without one."""
    return next((row.stage for row in reversed(list(history)) if row.episodes is not None), None)
