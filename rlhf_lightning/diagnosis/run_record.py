"""Record of a run, as the checks read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rlhf_lightning.diagnosis.curve import Curve
from rlhf_lightning.evaluation.curves import HistoryRow, rollout_stage
from rlhf_lightning.settings.pipeline import instances_of


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
