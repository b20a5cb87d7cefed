"""`rlhf sweep`: resume a stopped sweep, or show the table of its jobs. `status` imports no Hydra."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stderr, stdout
from rlhf_lightning.runs.sweep_record import GOING_ON_EXIT, JobState, Sweep, state_of
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.plugins import stages_of
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.tracking.history_file import read_history
from rlhf_lightning.tracking.wandb_files import SWEEP_FOLDER

COLUMNS = ("job", "overrides", "state", "stage", "progress", "objective", "seconds")
TO_THE_RIGHT = ("progress", "objective", "seconds")
COLORS: Mapping[JobState, str] = {
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
        Text(state, style=COLORS[state]),
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
    counts = ", ".join(f"{states[state]} {state}" for state in COLORS if states[state])
    return Text(f"{states.total()} jobs: {counts}")


EXIT_CODES = "exit code: 0 every job finished, 1 one did not, 130 one was interrupted, 3 one is running, 2 wrong usage"

WATCH_SECONDS = 2.0


def main(argv: Sequence[str]) -> int:
    """Runs `rlhf sweep` and returns the exit code."""
    arguments = parser().parse_args(list(argv))
    sweep = Sweep.open(Path(arguments.directory))
    if arguments.action == "resume":
        return resume(sweep, arguments.overrides)
    return watch(sweep) if arguments.watch else status(sweep)


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf sweep`."""
    arguments = argparse.ArgumentParser(prog="rlhf sweep", description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    actions = arguments.add_subparsers(dest="action", required=True, metavar="ACTION")
    resuming = actions.add_parser(
        "resume",
        help="run what failed, was interrupted or killed, or has not begun; each job in its directory, by its config",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    showing = actions.add_parser("status", help="a table of its jobs", epilog=EXIT_CODES, allow_abbrev=False)
    for action in (resuming, showing):
        action.add_argument("directory", metavar="DIR", help="the sweep's directory, such as outputs/latest")
    resuming.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="launcher=..., launcher.jobs=..., sweep.on_failure=..."
    )
    showing.add_argument("--watch", action="store_true", help="keep it up to date until the sweep has ended")
    return arguments


def status(sweep: Sweep) -> int:
    """Print the progress of a sweep."""
    show_jobs(sweep)
    return sweep.exit_code


def watch(sweep: Sweep) -> int:
    """Show the progress of a sweep until no process runs it."""
    with Live(sweep_table(sweep), console=stdout(), auto_refresh=False) as live:
        while sweep.exit_code == GOING_ON_EXIT:
            time.sleep(WATCH_SECONDS)
            live.update(sweep_table(sweep), refresh=True)
    return sweep.exit_code


def resume(sweep: Sweep, overrides: Sequence[str]) -> int:
    """Run the unfinished jobs; a sweeper that samples jobs also samples the missing ones."""
    # Imported here because Hydra's plugins take time to find, and `status` needs none.
    from rlhf_lightning.runs.sweep_adaptive import run_missing
    from rlhf_lightning.runs.sweep_jobs import launch, stop_on_signals
    from rlhf_lightning.runs.sweep_start import unfinished_jobs, update_plan

    with sweep.held(new=False):
        if overrides:
            update_plan(sweep, overrides)
        jobs = unfinished_jobs(sweep)
        stderr().print(Text(f"{len(jobs)} of {len(sweep.jobs)} jobs are left to do."))
        with stop_on_signals(sweep):
            try:
                if jobs:
                    launch(sweep, jobs)
                if sweep.plan.draws and not sweep.stopped and not run_missing(sweep):
                    stderr().print(
                        Text(
                            "The sweeper keeps no record of what it drew (hydra.sweeper.storage): no new"
                            " jobs are drawn."
                        )
                    )
            finally:
                show_jobs(sweep)
    return sweep.exit_code
