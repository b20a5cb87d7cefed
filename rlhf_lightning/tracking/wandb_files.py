"""Files that W&B writes to a run's directory, and the run that `wandb agent` expects from a command it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

READ_SECONDS = 60.0
SWEEP_FOLDER = "wandb"
"""In a sweep's directory: links to the W&B runs of all jobs, for `wandb leet`."""


def next_step(parts: Iterable[Path]) -> int:
    """The step after the last row of history in the directories of a run's parts; 0 where they hold none.

    An offline run cannot be queried, so `wandb leet inspect` reads its file, up to the last whole record.

    Raises:
        OSError: a file cannot be read.
    """
    steps = [_last_step(file) for part in parts for file in part.glob("*.wandb")]
    return max((step for step in steps if step is not None), default=-1) + 1


def _last_step(file: Path) -> int | None:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
    environment = {**os.environ, "WANDB_MODE": "offline"}  # it reports nothing to W&B then
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=READ_SECONDS
        )
    except subprocess.SubprocessError as error:
        raise OSError(f"{file} cannot be read: {error}") from error
    step: int | None = json.loads(done.stdout)["step"]
    return step


def link_into_sweep(part: Path, sweep: Path) -> None:
    """Link the directory of a run's part into `SWEEP_FOLDER`; the link is relative and outlives a move of the sweep.

    Raises:
        OSError: the file system refuses.
    """
    shown = sweep / SWEEP_FOLDER
    shown.mkdir(exist_ok=True)
    (shown / part.name).symlink_to(os.path.relpath(part, shown))


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
def hide_agent() -> Iterator[None]:
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
