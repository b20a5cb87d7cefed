"""Signals that interrupt a run, and the request to SLURM to requeue its job."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

ECHO_SECONDS = 2.0
"""A second Ctrl-C within this time counts as the first one delivered twice (by the terminal and by a sweep)."""


@dataclass
class Interruption:
    """The signal that interrupted a run; None if there was none."""

    number: int | None = None


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Ctrl-C, SIGTERM, SIGUSR1 (SLURM's `--signal=SIGUSR1@90`) and SIGUSR2 (submitit's, which requeues by itself) raise
    `KeyboardInterrupt` within a `with` block.

    An echo of the first within `ECHO_SECONDS` is ignored.
    """
    interruption = Interruption()
    last = -ECHO_SECONDS

    def interrupt(number: int, _: object) -> None:
        nonlocal last
        now = time.monotonic()
        if interruption.number is not None and now - last < ECHO_SECONDS:
            return
        interruption.number, last = number, now
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue_in_slurm() -> None:
    """Asks SLURM to requeue this process's job; does nothing without SLURM.

    SLURM ends the job at once. The same command then resumes the run, since SLURM counts the restarts.
    """
    job = _slurm_job()
    if job is None:
        return
    if shutil.which("scontrol") is None:
        log.warning("SLURM job %s is not put back into the queue: there is no scontrol here.", job)
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        log.info("SLURM job %s is back in the queue and will go on with this run.", job)
    else:
        log.warning("SLURM job %s could not be put back into the queue: %s", job, done.stderr.strip())


def _slurm_job() -> str | None:
    found = os.environ
    if "SLURM_ARRAY_JOB_ID" in found and "SLURM_ARRAY_TASK_ID" in found:
        return f"{found['SLURM_ARRAY_JOB_ID']}_{found['SLURM_ARRAY_TASK_ID']}"
    return found.get("SLURM_JOB_ID")
