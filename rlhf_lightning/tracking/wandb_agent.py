"""The run that `wandb agent` expects from a command that it starts.

An agent names its trial in the environment. W&B's client would make every run of the process that trial; a pipeline
has one run per stage, and the trial is the last of them, which has the objective.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

OF_AN_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""Environment variables that an agent sets for the command that it starts."""


@dataclass(frozen=True, slots=True)
class AgentTrial:
    """A trial of a W&B sweep.

    Attributes:
        sweep: the sweep's id.
        run_id: the id that the trial's run must have.
        project: of the sweep; None if the agent does not name it.
        entity: likewise.
        parameters: values that the sweep chose, by its parameter names (`kl.coef`).
    """

    sweep: str
    run_id: str
    project: str | None
    entity: str | None
    parameters: Mapping[str, Any]


def agent_trial() -> AgentTrial | None:
    """The trial that this process was started for; None where no agent started it."""
    sweep, run_id = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if not sweep or not run_id:
        return None
    return AgentTrial(
        sweep,
        run_id,
        os.environ.get("WANDB_PROJECT") or None,
        os.environ.get("WANDB_ENTITY") or None,
        _parameters(os.environ.get("WANDB_SWEEP_PARAM_PATH")),
    )


@contextmanager
def agent_hidden() -> Iterator[None]:
    """Hides the agent's variables from the client in a `with` block, so that not every run becomes the trial."""
    told = {name: os.environ.pop(name) for name in OF_AN_AGENT if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(told)


def _parameters(path: str | None) -> dict[str, Any]:
    """Parameters from an agent's file, which holds `{key: {value: ...}}`, and a version without a value."""
    if path is None or not Path(path).exists():
        return {}
    told: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return {key: entry["value"] for key, entry in told.items() if isinstance(entry, Mapping) and "value" in entry}
