"""A sweep's directory: its settings, its jobs, its lock, and its stop flag."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from rlhf_lightning.errors import RunDirectoryError
from rlhf_lightning.runs.run import INTERRUPTED_EXIT
from rlhf_lightning.stages.run_directory import (
    LOCK,
    SWEEP,
    RunDirectory,
    RunState,
    already_taken,
    holds_a_run,
    is_locked,
    writing_to,
)

STOP = ".stop"

GOING_ON_EXIT = 3
"""The exit code for a sweep, or a job of it, that another process is running."""

JobState = RunState | Literal["dead"]
"""`dead`: the status says running, but no process is."""

UNFINISHED: tuple[JobState, ...] = ("pending", "dead", "failed", "interrupted")

Reason = Literal["failed", "interrupted"]
"""Reason for stopping a sweep. `failed`: a job failed, and no further one is started. `interrupted`: running jobs are
interrupted as well."""


@dataclass(frozen=True)
class Plan:
    """Settings of a sweep: the content of sweep.json.

    Attributes:
        overrides: as the user typed them.
        config_dir: the user's own folder of configs.
        on_failure: `continue` or `stop`.
        launcher: the section `launcher`.
        hydra_launcher: Hydra's settings of its launcher, interpolations unresolved.
        draws: whether the sweeper draws jobs from the results of earlier ones; they are then not in `jobs`.
        sampled_before: the number of existing jobs when the sweeper was last started.
        jobs: the overrides of each, by its number.
        batch: how many jobs are handed to the launcher at a time; None: all.
        gpus: those that jobs at once share, as CUDA_VISIBLE_DEVICES names them.
        cores: those that they share; None where something else divides them.
        started: time, in ISO format.
        pid: of the process that runs it, or did last.
    """

    overrides: Sequence[str]
    config_dir: str | None
    on_failure: Literal["continue", "stop"]
    launcher: dict[str, Any]
    hydra_launcher: dict[str, Any]
    draws: bool
    sampled_before: int
    jobs: dict[str, list[str]]
    batch: int | None
    gpus: Sequence[str]
    cores: int | None
    started: str
    pid: int

    @property
    def on_this_machine(self) -> bool:
        """True if all jobs run on this machine; False if each runs on one of its own."""
        return bool(self.launcher["kind"] != "submitit_slurm")

    @property
    def slots(self) -> int:
        """Number of jobs that may run at once on this machine."""
        return int(self.launcher.get("jobs", 1)) if self.on_this_machine else 1


@dataclass(frozen=True)
class Sweep:
    """A sweep, by its directory; the jobs lie in it as 0, 1, 2, ..."""

    directory: Path

    @classmethod
    def open(cls, directory: Path) -> Sweep:
        """An existing sweep.

        Raises:
            RunDirectoryError: if no sweep lies there.
        """
        directory = directory.resolve()
        if not (directory / SWEEP).exists():
            what = "There is no sweep here."
            if (directory / "0").is_dir():
                what = "The sweep was cut off before its first job started."
            fix = f"name a directory with a {SWEEP}, such as outputs/latest after rlhf train -m"
            raise RunDirectoryError(what, where=str(directory), fix=fix)
        return cls(directory)

    @property
    def plan(self) -> Plan:
        """The content of its sweep.json."""
        return Plan(**json.loads((self.directory / SWEEP).read_text(encoding="utf-8")))

    def write_plan(self, plan: Plan) -> None:
        """Writes sweep.json, whole."""
        RunDirectory(self.directory).write_json(SWEEP, asdict(plan))

    def change_plan(self, **changes: Any) -> None:
        """Changes fields of sweep.json; the others stay as they are."""
        self.write_plan(replace(self.plan, **changes))

    @property
    def jobs(self) -> list[RunDirectory]:
        """The jobs that have a directory, in order."""
        numbered = [path for path in self.directory.glob("*") if path.name.isdigit() and holds_a_run(path)]
        return [RunDirectory.open(path) for path in sorted(numbered, key=lambda path: int(path.name))]

    def in_state(self, *states: JobState) -> list[RunDirectory]:
        """Its jobs that are in one of these states."""
        return [job for job in self.jobs if state_of(job) in states]

    @property
    def exit_code(self) -> int:
        """Zero if every job finished, else the code for the first that applies: running, interrupted, unfinished."""
        states = {state_of(job) for job in self.jobs}
        if "running" in states or self.is_running:
            return GOING_ON_EXIT
        if "interrupted" in states or self.stopped == "interrupted":
            return INTERRUPTED_EXIT
        return int(states != {"finished"})

    @property
    def is_running(self) -> bool:
        """True if a process runs this sweep now."""
        return is_locked(self.directory / LOCK)

    @contextlib.contextmanager
    def held(self, *, new: bool) -> Iterator[None]:
        """Keeps other processes from running this sweep until the `with` block is left or this process ends.

        Args:
            new: the directory must not hold a run or sweep yet.

        Raises:
            RunDirectoryError: another process runs it, or the directory holds a run or sweep already.
        """
        with writing_to(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.directory / LOCK, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise RunDirectoryError(
                    "The sweep is going on: another process is at it.",
                    where=str(self.directory),
                    fix="wait until it has ended, or stop it first; rlhf sweep status shows how it stands",
                ) from None
        try:
            if new and holds_a_run(self.directory):
                raise already_taken(self.directory)
            if not new:
                self.change_plan(pid=os.getpid())
            self.clear_stop()
            yield
        finally:
            lock.release()

    def stop(self, reason: Reason) -> None:
        """Requests a stop: no further job starts; `interrupted` also interrupts running jobs, on any machine."""
        if self.stopped != "interrupted":
            RunDirectory(self.directory).write_text(STOP, f"{reason}\n")

    def clear_stop(self) -> None:
        """Clears the request to stop."""
        (self.directory / STOP).unlink(missing_ok=True)

    @property
    def stopped(self) -> Reason | None:
        """The reason for which it is being stopped; None if it is not."""
        try:
            said = (self.directory / STOP).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        return next((reason for reason in get_args(Reason) if reason == said), None)


def state_of(job: RunDirectory) -> JobState:
    """State of a job: that of its status, or `dead` if its process was killed."""
    state = job.status.state
    return "dead" if state == "running" and not job.is_running else state
