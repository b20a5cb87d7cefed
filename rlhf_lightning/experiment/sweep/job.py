"""One job of a sweep, as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlhf_lightning.experiment.launch import LAUNCHER, end_with_parent
from rlhf_lightning.experiment.run import INTERRUPTED_EXIT
from rlhf_lightning.experiment.run_directory import RunDirectory, RunError, now
from rlhf_lightning.experiment.sweep.record import Sweep
from rlhf_lightning.experiment.sweep.slots import leased, share_of

CONSOLE_LOG = "console.log"
"""File for a job's output, where several jobs run at once."""

POLL_SECONDS = 0.2


def run_job(sweep: Sweep, job: RunDirectory) -> None:
    """Runs a job from the config in its directory, and waits for its end; the outcome is in its status.

    Each job is a process of its own, because it may start others (Lightning's ranks replay the command line, which
    here would be the whole sweep), and so that no job inherits memory or environment of another.

    Nothing is run if the sweep is being stopped or the job has finished (when SLURM restarted it, for one).
    """
    plan = sweep.plan
    if os.getppid() == plan.pid:
        end_with_parent()
    if os.getpid() != plan.pid:
        # A launcher's worker gets the terminal's Ctrl-C too. The sweep handles it and stops all jobs; a worker
        # that ended on it would end the jobs of others as well.
        signal.signal(signal.SIGINT, lambda *_: None)
    with leased(sweep.directory, plan.slots, lambda: sweep.stopped is not None) as slot:
        if slot is None or job.status.state == "finished" or job.is_held:
            return
        job.update_status(state="pending", started=now(), error=None)
        command = [sys.executable, "-m", "rlhf_lightning", "run-job", str(job.path)]
        environment = {LAUNCHER: str(os.getpid()), **share_of(slot, plan, job.config["trainer"])}
        log = job.path / CONSOLE_LOG if plan.launcher["kind"] != "basic" else None
        code = call(command, environment, log, lambda: sweep.stopped == "interrupted")
        _settle(job, code)
    state = job.status.state
    if state == "interrupted" and plan.on_this_machine:
        sweep.stop("interrupted")
    elif state == "failed" and plan.on_failure == "stop":
        sweep.stop("failed")


def call(
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


def _settle(job: RunDirectory, code: int) -> None:
    """Completes the status of a job whose process ended before it could."""
    if job.status.state not in ("pending", "running"):
        return
    if code in (INTERRUPTED_EXIT, -signal.SIGINT):
        job.update_status(state="interrupted")
        return
    what = f"the job's process ended with code {code} and no word"
    job.update_status(state="failed", error=RunError(what, fix="was it killed, or out of memory?"))
