"""Table of a sweep's progress: one line per job, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.sweep.record import JobState, Sweep, state_of
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.plugins import stages_of
from rlhf_lightning.tracking.history_file import read_history
from rlhf_lightning.tracking.wandb_files import SWEEP_FOLDER

COLUMNS = ("job", "overrides", "state", "stage", "progress", "objective", "seconds")
TO_THE_RIGHT = ("progress", "objective", "seconds")
COLOURS: Mapping[JobState, str] = {
    "finished": "green",
    "running": "cyan",
    "pending": "dim",
    "failed": "red",
    "dead": "red",
    "interrupted": "yellow",
}


def show_jobs(sweep: Sweep) -> None:
    """Print the progress of a sweep."""
    stdout().print(sweep_table(sweep))


def sweep_table(sweep: Sweep) -> Group:
    """Table of a sweep's jobs: distinguishing overrides, state and progress of each."""
    jobs = sweep.jobs
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, overflow="fold", justify="right" if name in TO_THE_RIGHT else "left")
    states = Counter[JobState]()
    for job in jobs:
        state = state_of(job)
        states[state] += 1
        table.add_row(*_row(job, state, shared))
    parts: list[RenderableType] = [
        table,
        _totals(states),
        Text(f"directories: {sweep.directory}/JOB", overflow="ignore", no_wrap=True),
    ]
    tracked = sweep.directory / SWEEP_FOLDER
    if tracked.is_dir():
        parts.append(Text(f"curves in the terminal: wandb leet {tracked}", overflow="ignore", no_wrap=True))
    if shared:
        told = " ".join(override for override in jobs[0].overrides if override in shared)
        parts.insert(0, Text(f"all jobs: {told}"))
    return Group(*parts)


def _row(job: RunDirectory, state: JobState, shared: set[str]) -> list[Text]:
    status = job.status
    objective = (job.metrics or {}).get("objective") if state == "finished" else None
    end = datetime.now(UTC) if state == "running" else datetime.fromisoformat(status.updated)
    seconds = (end - datetime.fromisoformat(status.started)).total_seconds()
    return [
        Text(job.path.name),
        Text(" ".join(override for override in job.overrides if override not in shared)),
        Text(state, style=COLOURS[state]),
        Text(status.stage or ""),
        Text(_progress(job, status.stage)),
        Text("" if objective is None else f"{objective:.3f}"),
        Text("" if state == "pending" else f"{seconds:.0f}"),
    ]


def _progress(job: RunDirectory, stage: str | None) -> str:
    """Rounds that a stage has logged, of how many; empty for a stage without rounds."""
    config: Any = job.config
    declared = STAGES.get(stages_of(config).get(stage or "", ""))
    rounds = declared.rounds if declared is not None else None
    if rounds is None:
        return ""
    epochs = [row.value for row in read_history(job.path) if row.stage == stage and row.name == "epoch"]
    return f"{int(epochs[-1]) + 1 if epochs else 0}/{config[stage][rounds]}"


def _totals(states: Counter[JobState]) -> Text:
    counts = ", ".join(f"{states[state]} {state}" for state in COLOURS if states[state])
    return Text(f"{states.total()} jobs: {counts}")
