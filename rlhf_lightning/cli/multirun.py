"""`rlhf train -m`: a sweep, each job in a process of its own, and a table of how they ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.errors import ConfigError, Problem, RlhfError
from rlhf_lightning.experiment.config.compose import CONFIG_NAME, ConfigTree
from rlhf_lightning.experiment.config.job_overrides import as_hydra_reads
from rlhf_lightning.experiment.config.preflight import check_sweep
from rlhf_lightning.experiment.config.surroundings import check_run_directory
from rlhf_lightning.experiment.config.sweep_jobs import BASIC_SWEEPER
from rlhf_lightning.experiment.config.task import job_directory, job_settings, typed_overrides
from rlhf_lightning.experiment.run import INTERRUPTED_EXIT
from rlhf_lightning.experiment.run_directory import (
    RunDirectory,
    RunError,
    holds_a_run,
    pin_latest,
    point_latest,
    writing_to,
)


class JobFailedError(RlhfError):
    """A job of a sweep did not finish."""


@dataclass(frozen=True)
class Sweep:
    """How a sweep stands: its jobs' directories, in order."""

    directory: Path

    @property
    def jobs(self) -> list[RunDirectory]:
        """The jobs that were started."""
        numbered = sorted((path for path in self.directory.glob("*") if path.name.isdigit()), key=lambda p: int(p.name))
        return [RunDirectory.open(path) for path in numbered if holds_a_run(path)]

    @property
    def exit_code(self) -> int:
        """Zero if every job finished."""
        states = {job.status.state for job in self.jobs}
        return INTERRUPTED_EXIT if "interrupted" in states else int(states != {"finished"})


def run_sweep(tree: ConfigTree, overrides: Sequence[str]) -> int:
    """Checks every job of a sweep, runs them, and prints how they ended."""
    overrides = pin_latest(overrides)
    checked = check_sweep(tree, overrides)
    if any(job.settings is not None and job.settings.resume is not None for job in checked):
        fix = "resume its jobs one by one, without -m: resume=SWEEP/0, resume=SWEEP/1, ..."
        raise ConfigError([Problem("resume", "a sweep is not resumed as a whole", fix=fix)])
    sweep = Sweep(checked[0].directories.sweep.absolute())
    check_run_directory(sweep.directory)
    texts = [*as_hydra_reads(tree, tree.parse(overrides)), f"hydra.sweep.dir={sweep.directory}", "hydra.mode=MULTIRUN"]
    interrupted = False
    try:
        with _terminable(), writing_to(sweep.directory):
            tree.hydra.multirun(CONFIG_NAME, run_job, texts)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        show_jobs(sweep)
    return INTERRUPTED_EXIT if interrupted else sweep.exit_code


def run_job(config: DictConfig) -> float | None:
    """What Hydra calls for each job: prepares its directory, runs it as a process, returns its objective.

    A process each, because a job may start others (Lightning's ranks replay the command line, which here would be the
    whole sweep), and because what one job leaves in memory or environment is then no other's concern.

    Raises:
        JobFailedError: if it did not finish and the sweeper chooses its jobs by how the last ones went. The basic
            sweeper would stop at the first failure; it gets no objective instead, and goes on.
    """
    settings = job_settings(config)
    run_dir = RunDirectory.create(job_directory(), settings.model_dump(mode="json"), typed_overrides())
    hydra = HydraConfig.get()
    point_latest(Path(settings.paths.outputs), Path(hydra.sweep.dir))
    code = _call([sys.executable, "-m", "rlhf_lightning", "run-job", str(run_dir.path)])
    _settle(run_dir, code)
    status = run_dir.status
    if status.state == "interrupted":
        raise KeyboardInterrupt
    if status.state != "finished" and hydra.sweeper["_target_"] != BASIC_SWEEPER:
        raise JobFailedError("A job of the sweep failed.", where=str(run_dir.path))
    objective = (run_dir.metrics or {}).get("objective")
    return float(objective) if objective is not None else None


def _settle(run_dir: RunDirectory, code: int) -> None:
    """Completes the status of a job whose process ended before it could."""
    if run_dir.status.state != "running":
        return
    if code in (INTERRUPTED_EXIT, -signal.SIGINT):
        run_dir.update_status(state="interrupted")
        return
    what = f"the job's process ended with code {code} and no word"
    run_dir.update_status(state="failed", error=RunError(what, fix="was it killed, or out of memory?"))


def show_jobs(sweep: Sweep) -> None:
    """Prints a table of a sweep's jobs: what each was told apart from the others, and how it ended."""
    jobs = sweep.jobs
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    table = Table(box=None, pad_edge=False)
    for name in ("job", "overrides", "state", "objective", "seconds"):
        table.add_column(name, overflow="fold", justify="right" if name in ("objective", "seconds") else "left")
    for job in jobs:
        status = job.status
        objective = (job.metrics or {}).get("objective")
        seconds = (datetime.fromisoformat(status.updated) - datetime.fromisoformat(status.started)).total_seconds()
        told = Text(" ".join(override for override in job.overrides if override not in shared))
        table.add_row(
            job.path.name, told, status.state, "" if objective is None else f"{objective:.3f}", f"{seconds:.0f}"
        )
    console = stdout()
    if shared:
        console.print(Text(f"all jobs: {' '.join(override for override in jobs[0].overrides if override in shared)}"))
    console.print(table)
    console.print(Text(f"directories: {sweep.directory}/JOB"), soft_wrap=True)


def _call(command: Sequence[str]) -> int:
    """Runs a process to its end. An interruption is passed on to it, and it gets the time to save its work."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SLURM's SIGUSR1 are interruptions like Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
