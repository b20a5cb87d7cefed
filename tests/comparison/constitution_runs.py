"""Run directories of a sweep over constitutions, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report_runs import write_json, write_run

Figures = Mapping[str, Any]


def principle(name: str, tag: str | None = None, weight: float = 1.0) -> dict[str, Any]:
    """What counts of a principle in a resolved config."""
    return {"id": name, "weight": weight, "world": None if tag is None else {"tag": tag}}


def write_constitutional(
    directory: Path,
    constitution: str,
    seed: int,
    evaluate: Mapping[str, Mapping[str, Figures]],
    *,
    principles: Sequence[Mapping[str, Any]] = (),
    kl_coef: float = 0.1,
    state: str = "finished",
) -> Path:
    """A run under a constitution.

    Args:
        evaluate: figures by policy and split.
        kl_coef: a setting beside the constitution that a sweep may vary too.
    """
    run = write_run(directory, seed=seed, state=state, overrides=[f"constitution={constitution}"])
    config = {
        "seed": seed,
        "pipeline": {"stages": ["sft", "revision_sft", "ppo", "evaluate"]},
        "constitution": {"name": constitution, "principles": list(principles)},
        "evaluate": {"policies": list(evaluate)},
        "kl": {"coef": kl_coef},
    }
    write_json(run / "config.yaml", config)
    if state == "finished":
        write_json(run / "metrics.json", {"objective": 0.5, "stages": {}, "evaluate": evaluate})
    return run
