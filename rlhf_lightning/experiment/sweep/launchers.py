"""Hands jobs to Hydra's launcher: one after the other, several at once, or to SLURM."""

from __future__ import annotations

import copy
import itertools
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from rlhf_lightning.errors import RlhfError
from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.interruption import ECHO_SECONDS, SIGNALS
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.sweep.job import POLL_SECONDS, run_job
from rlhf_lightning.experiment.sweep.record import Sweep

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
    while any(job.is_held for job in jobs):
        time.sleep(POLL_SECONDS)


def run_prepared(_: DictConfig) -> None:
    """Run one job: the task function that Hydra calls, in any process."""
    hydra = HydraConfig.get()
    run_job(Sweep(Path(hydra.sweep.dir)), RunDirectory.open(Path(hydra.runtime.output_dir)))


def placed_by_hydra(sweep: Sweep) -> str:
    """The override that sets Hydra's sweep directory."""
    quoted = str(sweep.directory).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{quoted}'"


@contextmanager
def stopped_by_signals(sweep: Sweep) -> Iterator[None]:
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
