"""Jobs of a sweep as processes of their own: slots on one machine, one job, and Hydra's launchers."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from rlhf_lightning.errors import RlhfError
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.launch import LAUNCHER, die_with_parent
from rlhf_lightning.runs.run import ECHO_SECONDS, INTERRUPTED_EXIT, SIGNALS
from rlhf_lightning.runs.sweep_record import Plan, Sweep
from rlhf_lightning.stages.run_directory import RunDirectory, RunError, now, writing_to

POLL_SECONDS = 0.2


@contextmanager
def leased(directory: Path, count: int, given_up: Callable[[], bool]) -> Iterator[int | None]:
    """Lease one of `count` slots for a `with` block; waits until one is free.

    A slot is a lock on a file in the sweep's directory: the operating system releases it when the process that holds
    it ends, however it ends.

    Args:
        given_up: returns True to stop waiting; the slot is then None.
    """
    lock = None
    while lock is None and not given_up():
        number, lock = next(_free(directory, count), (-1, None))
        if lock is None:
            time.sleep(POLL_SECONDS)
    if lock is None:
        yield None
        return
    try:
        yield number
    finally:
        lock.release()


def _free(directory: Path, count: int) -> Iterator[tuple[int, FileLock]]:
    for number in range(count):
        with writing_to(directory):
            lock = FileLock(directory / f".slot{number}", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
        yield number, lock


def share_of(slot: int, plan: Plan, trainer: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables that give a job its share of the machine.

    The slots get the GPUs in turn, `trainer.devices` each; where there are fewer than that, slots share them. The
    number of threads is not set if the job's config names one.

    Args:
        slot: its number.
        plan: of the sweep.
        trainer: the section of the job's config.
    """
    share = {}
    devices = trainer["devices"]
    if plan.cores is not None and trainer["threads"] is None:
        share["OMP_NUM_THREADS"] = str(max(1, plan.cores // (plan.slots * devices)))
    if plan.gpus and trainer["accelerator"] != "cpu":
        own = (plan.gpus[(slot * devices + place) % len(plan.gpus)] for place in range(devices))
        share["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return share


CONSOLE_LOG = "console.log"
"""File for a job's output, where several jobs run at once."""


def run_job(sweep: Sweep, job: RunDirectory) -> None:
    """Runs a job from the config in its directory, and waits for its end; the outcome is in its status.

    Each job is a process of its own, because it may start others (Lightning's ranks replay the command line, which
    here would be the whole sweep), and so that no job inherits memory or environment of another.

    Nothing is run if the sweep is being stopped or the job has finished (when SLURM restarted it, for one).
    """
    plan = sweep.plan
    if os.getppid() == plan.pid:
        die_with_parent()
    if os.getpid() != plan.pid:
        # A launcher's worker gets the terminal's Ctrl-C too. The sweep handles it and stops all jobs; a worker
        # that ended on it would end the jobs of others as well.
        signal.signal(signal.SIGINT, lambda *_: None)
    with leased(sweep.directory, plan.slots, lambda: sweep.stopped is not None) as slot:
        if slot is None or job.status.state == "finished" or job.is_running:
            return
        job.update_status(state="pending", started=now(), error=None)
        command = [sys.executable, "-m", "rlhf_lightning", "run-job", str(job.path)]
        environment = {LAUNCHER: str(os.getpid()), **share_of(slot, plan, job.config["trainer"])}
        log = job.path / CONSOLE_LOG if plan.launcher["kind"] != "basic" else None
        code = run_process(command, environment, log, lambda: sweep.stopped == "interrupted")
        _complete_status(job, code)
    state = job.status.state
    if state == "interrupted" and plan.on_this_machine:
        sweep.stop("interrupted")
    elif state == "failed" and plan.on_failure == "stop":
        sweep.stop("failed")


def run_process(
    command: Sequence[str], environment: Mapping[str, str], log: Path | None, interrupted: Callable[[], bool]
) -> int:
    """Runs a process to its end. An interruption is passed on to it, and it is given time to save its work.

    Args:
        environment: in addition to that of this process.
        log: file for its output; None: the output of this process.

    Returns:
        Its exit code; minus the signal's number if one killed it.
    """
    with contextlib.ExitStack() as files:
        output = files.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
        told = False
        while True:
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if not told and interrupted():
                    process.send_signal(signal.SIGINT)
                    told = True


def _complete_status(job: RunDirectory, code: int) -> None:
    """Completes the status of a job whose process ended before it could."""
    if job.status.state not in ("pending", "running"):
        return
    if code in (INTERRUPTED_EXIT, -signal.SIGINT):
        job.update_status(state="interrupted")
        return
    what = f"the job's process ended with code {code} and no word"
    job.update_status(state="failed", error=RunError(what, fix="was it killed, or out of memory?"))


SUBDIR = "hydra.sweep.subdir="


class LauncherError(RlhfError):
    """A launcher ended before its jobs did."""


class PreparedJobs:
    """The config loader and callbacks that Hydra's launchers use for each job they start.

    A job's config is composed and checked already; composing it again would take half a second.
    """

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of the sweep, for the job named by the only override."""
        config = copy.deepcopy(master_config)
        (override,) = sweep_overrides
        config.hydra.sweep.subdir = override.removeprefix(SUBDIR)
        return config

    def on_job_start(self, **_: Any) -> None:
        """Do nothing: Hydra's callbacks are rejected before a sweep starts."""

    def on_job_end(self, **_: Any) -> None:
        """Do nothing, likewise."""


def launch(sweep: Sweep, jobs: Sequence[RunDirectory]) -> None:
    """Runs jobs, each from the config in its directory, and waits for their end.

    Hydra is given the program's default config, since each job has its own already.

    Args:
        sweep: held by this process.
        jobs: of this sweep.

    Raises:
        LauncherError: a launcher's worker was killed, or what it had to run.
    """
    tree, plan = ConfigTree.load(), sweep.plan
    config = copy.deepcopy(tree.compose(()))
    with open_dict(config):
        config.hydra.sweep.dir = str(sweep.directory)
        config.launcher = plan.launcher
        config.hydra.launcher = plan.hydra_launcher
    prepared: Any = PreparedJobs()
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=prepared, callbacks=prepared),
        task_function=run_prepared,
        config=config,
    )
    numbered = enumerate(jobs)
    while batch := list(itertools.islice(numbered, plan.batch)):
        told = [[f"{SUBDIR}{job.path.name}"] for _, job in batch]
        try:
            launcher.launch(told, initial_job_idx=batch[0][0])
        except RuntimeError as error:  # includes submitit's UncompletedJobError, joblib's TerminatedWorkerError
            if sweep.stopped != "interrupted":  # otherwise Ctrl-C ended a worker
                raise launcher_error(sweep, error) from error
        if plan.on_this_machine:
            await_jobs([job for _, job in batch])


def launcher_error(sweep: Sweep, error: RuntimeError) -> LauncherError:
    """The error for a launcher that failed; the status of each job is in its directory."""
    what = f"The launcher gave up: {str(error).strip().splitlines()[0]}"
    return LauncherError(what, where=str(sweep.directory), fix=f"rlhf sweep resume {sweep.directory}")


def await_jobs(jobs: Sequence[RunDirectory]) -> None:
    """Waits for jobs that outlive their launcher: interrupted ones are still saving."""
    while any(job.is_running for job in jobs):
        time.sleep(POLL_SECONDS)


def run_prepared(_: DictConfig) -> None:
    """Run one job: the task function that Hydra calls, in any process."""
    hydra = HydraConfig.get()
    run_job(Sweep(Path(hydra.sweep.dir)), RunDirectory.open(Path(hydra.runtime.output_dir)))


def sweep_directory_override(sweep: Sweep) -> str:
    """The override that sets Hydra's sweep directory."""
    quoted = str(sweep.directory).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{quoted}'"


@contextmanager
def stop_on_signals(sweep: Sweep) -> Iterator[None]:
    """Stop a sweep on Ctrl-C, SIGTERM or SLURM's SIGUSR1: its jobs save their work, and no further one starts.

    A second Ctrl-C does not wait for the jobs.
    """
    last = None

    def stop(*_: object) -> None:
        nonlocal last
        if last is not None and time.monotonic() - last > ECHO_SECONDS:
            raise KeyboardInterrupt
        last = time.monotonic()
        sweep.stop("interrupted")

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
