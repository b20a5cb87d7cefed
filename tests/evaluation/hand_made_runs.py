"""Runs written down by hand: a healthy one, and what a test changes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.evaluation.doctor_record import RunRecord

ITERATIONS = 40
BATCH_SIZE = 128

CONFIG: dict[str, Any] = {
    "pipeline": {"stages": ["ppo", "evaluate"]},
    "ppo": {
        "learning_rate": 1e-4,
        "critic_learning_rate": 1e-3,
        "epochs": 2,
        "minibatches": 4,
        "value_coef": 0.1,
        "value_clip_range": 0.2,
        "entropy_coef": 0.0,
        "missing_eos_penalty": -1.0,
        "max_grad_norm": 1.0,
        "target_kl": None,
    },
    "kl": {"kind": "fixed", "coef": 0.04},
    "rollout": {"batch_size": BATCH_SIZE, "max_new_tokens": 32, "temperature": 1.0},
    "reward": {"length_penalty": 0.0, "clip": None},
    "trainer": {"precision": "32-true"},
}


def line(first: float, last: float, count: int = ITERATIONS) -> list[float]:
    """Values on a straight line."""
    return [first + (last - first) * index / max(count - 1, 1) for index in range(count)]


HEALTHY: dict[str, list[float]] = {
    "objective/score": line(0.0, 1.5),
    "objective/score_std": line(1.0, 0.6),
    "objective/reward": line(0.0, 1.4),
    "objective/gold": line(-0.1, 0.9),
    "objective/kl": line(0.0, 3.0),
    "objective/entropy": line(0.5, 0.15),
    "policy/approx_kl": [0.001] * ITERATIONS,
    "policy/clip_fraction": [0.005] * ITERATIONS,
    "value/mean": line(0.0, 1.4),
    "value/loss": line(0.3, 0.05),
    "value/explained_variance": line(0.0, 0.6),
    "rollout/length": line(14.0, 12.0),
    "rollout/eos_rate": [1.0] * ITERATIONS,
    "rollout/repetition": [0.0] * ITERATIONS,
    "rollout/top_opening_share": line(0.18, 0.34),
    "rollout/distinct_2": line(0.30, 0.21),
    "rollout/logprob_mismatch": [1e-7] * ITERATIONS,
    "rollout/score_length_correlation": [-0.1] * ITERATIONS,
    "optimizer/grad_norm": [0.4] * ITERATIONS,
    "kl/coef": [0.04] * ITERATIONS,
}


def make_record(
    curves: Mapping[str, Sequence[float]] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    only: bool = False,
    **circumstances: Any,
) -> RunRecord:
    """A healthy run of 40 iterations, changed.

    Args:
        curves: by metric, in place of the healthy ones.
        settings: by dotted key, in place of the shipped ones.
        only: there are no curves but the given ones.
        circumstances: other fields of the record.
    """
    figures: dict[str, Sequence[float]] = {**({} if only else HEALTHY), **(curves or {})}
    config = {section: dict(values) for section, values in CONFIG.items()}
    for key, value in (settings or {}).items():
        section, _, name = key.partition(".")
        config.setdefault(section, {})[name] = value
    history = [
        HistoryRow("ppo", 8 * (iteration + 1), BATCH_SIZE * (iteration + 1), name, value)
        for iteration in range(max(map(len, figures.values())))
        for name, values in figures.items()
        for value in values[iteration : iteration + 1]
    ]
    whole: dict[str, Any] = {
        "state": "finished",
        "stage": None,
        "alive": False,
        "error": None,
        "config": config,
        "metrics": {},
        "history": history,
    }
    return RunRecord(**{**whole, **circumstances})
