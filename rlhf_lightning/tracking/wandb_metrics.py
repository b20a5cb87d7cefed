"""Declaration of each metric to W&B: its axis, and its values in the run's summary."""

from __future__ import annotations

import math
from collections.abc import Iterable

import wandb

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.evaluation.metrics import LoggedMetrics
from rlhf_lightning.tracking.history_file import EPISODES

GLOBAL_STEP = "trainer/global_step"


def declare_metrics(run: wandb.Run, logged: LoggedMetrics) -> None:
    """Declare axes and summaries: rollout metrics are plotted over episodes, others over optimizer steps."""
    axis = EPISODES if logged.by_episodes else GLOBAL_STEP
    run.define_metric(axis)
    run.define_metric("*", step_metric=axis, step_sync=True)
    for metric, values in _kept(logged).items():
        run.define_metric(metric, step_metric=axis, step_sync=True, summary=",".join(values))


def summaries(rows: Iterable[HistoryRow], stage: str, logged: LoggedMetrics) -> dict[str, dict[str, float]]:
    """The declared summary values over all that a stage has logged, `{metric: {"max": ..., "last": ...}}`.

    The client covers only the part since the run was last opened; the history file has the earlier parts as well.
    """
    kept = _kept(logged)
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.stage == stage and row.name in kept and math.isfinite(row.value):
            values.setdefault(row.name, []).append(row.value)
    return {
        metric: {kind: {"min": min(seen), "max": max(seen), "last": seen[-1]}[kind] for kind in kept[metric]}
        for metric, seen in values.items()
    }


def _kept(logged: LoggedMetrics) -> dict[str, tuple[str, ...]]:
    """The summary values of each metric by name; those that are not here keep the last value."""
    return {metric.name: metric.keeps for metric in logged.metrics if len(metric.keeps) > 1}
