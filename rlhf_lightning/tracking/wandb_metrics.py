"""What W&B is told of each metric: its axis, and which of its values stand in the run's summary."""

from __future__ import annotations

import math
from collections.abc import Iterable

import wandb

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.tracking.history_file import EPISODES

GLOBAL_STEP = "trainer/global_step"

_LOWER_IS_BETTER = ("min", "last")
_HIGHER_IS_BETTER = ("max", "last")
_BOTH_WAYS = ("min", "max", "last")

_SUPERVISED: dict[str, tuple[str, ...]] = {"sft/loss": _LOWER_IS_BETTER, "sft/validation_loss": _LOWER_IS_BETTER}

SUMMARIES: dict[str, dict[str, tuple[str, ...]]] = {
    "sft": _SUPERVISED,
    "revision_sft": _SUPERVISED,
    "reward_model": {
        "reward_model/loss": _LOWER_IS_BETTER,
        "reward_model/validation_loss": _LOWER_IS_BETTER,
        "reward_model/accuracy": _HIGHER_IS_BETTER,
        "reward_model/validation_accuracy": _HIGHER_IS_BETTER,
    },
    "ppo": {
        "objective/score": _HIGHER_IS_BETTER,
        "objective/gold": _HIGHER_IS_BETTER,
        "objective/reward": _HIGHER_IS_BETTER,
        "objective/kl": _HIGHER_IS_BETTER,
        "objective/entropy": _LOWER_IS_BETTER,
        "policy/loss": _LOWER_IS_BETTER,
        "policy/approx_kl": _HIGHER_IS_BETTER,
        "policy/clip_fraction": _HIGHER_IS_BETTER,
        "value/loss": _LOWER_IS_BETTER,
        "value/explained_variance": _HIGHER_IS_BETTER,
        "rollout/length": _BOTH_WAYS,
        "rollout/eos_rate": _LOWER_IS_BETTER,
        "rollout/repetition": _HIGHER_IS_BETTER,
        "rollout/top_opening_share": _HIGHER_IS_BETTER,
        "rollout/distinct_2": _LOWER_IS_BETTER,
        "kl/coef": _BOTH_WAYS,
    },
}
"""By stage and metric: the values that its summary keeps. Of all other metrics it keeps the last."""


def declare_metrics(run: wandb.Run, stage: str) -> None:
    """Declare axes and summaries: PPO's figures stand over episodes, those of other trainings over optimizer steps."""
    axis = EPISODES if stage == "ppo" else GLOBAL_STEP
    run.define_metric(axis)
    run.define_metric("*", step_metric=axis, step_sync=True)
    for metric, values in SUMMARIES.get(stage, {}).items():
        run.define_metric(metric, step_metric=axis, step_sync=True, summary=",".join(values))


def summaries(rows: Iterable[HistoryRow], stage: str) -> dict[str, dict[str, float]]:
    """The declared summary values over all that a stage has logged, `{metric: {"max": ..., "last": ...}}`.

    The client counts from where a run was last opened; the history file knows the parts before as well.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.stage == stage and row.name in SUMMARIES.get(stage, {}) and math.isfinite(row.value):
            values.setdefault(row.name, []).append(row.value)
    return {
        metric: {
            kind: {"min": min(seen), "max": max(seen), "last": seen[-1]}[kind] for kind in SUMMARIES[stage][metric]
        }
        for metric, seen in values.items()
    }
