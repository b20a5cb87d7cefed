"""Run with the number of processes that the config asks for: this one, its children, or those torchrun started."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lightning.errors import RunDirectoryError
from rlhf_lightning.ranks import LOCALHOST, rank_info
from rlhf_lightning.runs.run import INTERRUPTED_EXIT, SIGNALS, Outcome, execute
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.run_directory import RunDirectory, RunError
from rlhf_lightning.stages.run_settings import RunSettings, TrainerSettings

GRACE_SECONDS = 20.0
"""Time for the other processes to end by themselves after one failed; then they are interrupted, then killed."""

POLL_SECONDS = 0.1

LAUNCHER = "RLHF_LAUNCHER_PID"
"""Environment variable with the id of the process that launched a child."""

PR_SET_PDEATHSIG = 1
"""From Linux's prctl.h."""


def run_processes(settings: RunSettings, run_dir: RunDirectory, overrides: Sequence[str]) -> Outcome:
    """Runs the pipeline in its directory, in this process or, where that is too few, in children of it."""
    if os.environ.get(LAUNCHER) == str(os.getppid()):
        die_with_parent()
    if settings.trainer.processes > rank_info().world_size:
        return launch(run_dir, settings.trainer.devices)
    return execute(settings, run_dir, overrides)


def join_processes_started_outside(trainer: TrainerSettings) -> None:
    """Joins the other processes if torchrun or srun started several with the same command."""
    if rank_info().world_size > 1:
        from rlhf_lightning.stages.training import join_processes  # imports torch

        join_processes(trainer)


def broadcast_run_directory(run_dir: RunDirectory) -> None:
    """Broadcasts the run directory that rank 0 has claimed: its name contains the time."""
    if rank_info().world_size > 1:
        from rlhf_lightning.distributed import broadcast_object

        broadcast_object(str(run_dir.path))


def join_run() -> Outcome:
    """Join the run that rank 0 has set up; for the other ranks.

    Raises:
        RunDirectoryError: rank 0 could not set it up, or its directory is not visible here.
    """
    from rlhf_lightning.distributed import broadcast_object

    try:
        path: str = broadcast_object(None)
    except RuntimeError as error:
        raise RunDirectoryError("The first process of this run did not start it; it says why.") from error
    run_dir = RunDirectory.open(Path(path))
    return execute(settings_from(run_dir.config), run_dir, run_dir.overrides)


def launch(run_dir: RunDirectory, processes: int) -> Outcome:
    """Runs the pipeline in children of this process on this machine, and waits for them.

    Signals are passed on to them. Rank 0 keeps the run directory; a child that fails records it there itself, and for
    one that was killed it is recorded here.
    """
    run_dir.update_status(state="pending", error=None)
    children = Children(_started(run_dir, processes))
    with children.forwarding_signals():
        children.wait()
    return outcome_of(run_dir, children)


def _started(run_dir: RunDirectory, processes: int) -> list[subprocess.Popen[bytes]]:
    shared = {
        LAUNCHER: str(os.getpid()),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(free_port()),
        "NODE_RANK": "0",
    }
    command = [sys.executable, "-m", "rlhf_lightning", "run-job", str(run_dir.path)]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=None if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]


def die_with_parent() -> None:
    """Has the kernel interrupt this process when its parent ends; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Children:
    """The processes of a run, in the order of their ranks.

    Attributes:
        failed: the rank of the first one that failed.
        interrupted: whether they were told to stop.
    """

    processes: Sequence[subprocess.Popen[bytes]]
    failed: int | None = None
    interrupted: bool = False
    _stops: list[signal.Signals] = field(default_factory=lambda: [signal.SIGTERM, signal.SIGKILL])

    def wait(self) -> None:
        """Waits for all of them; once one has failed, the others are stopped after `GRACE_SECONDS`."""
        deadline = float("inf")
        while any(process.poll() is None for process in self.processes):
            if self.failed is None:
                self.failed = self._first_to_fail()
                deadline = float("inf") if self.failed is None else time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline and self._stops:
                self.send(self._stops.pop(0))
                deadline = time.monotonic() + GRACE_SECONDS
            time.sleep(POLL_SECONDS)
        if self.failed is None:
            self.failed = self._first_to_fail()

    def _first_to_fail(self) -> int | None:
        failures = [rank for rank, process in enumerate(self.processes) if process.poll()]
        # A killed process is the cause; the others failed because they lost it.
        return min(failures, key=lambda rank: (self.code(rank) >= 0, rank), default=None)

    def code(self, rank: int) -> int:
        """Exit code of a process; minus the signal's number if a signal killed it."""
        code = self.processes[rank].returncode
        assert code is not None
        return code

    def send(self, number: int) -> None:
        """Sends a signal to those that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Passes signals of this process on to the children within a `with` block."""

        def forward(number: int, _: object) -> None:
            self.interrupted = True
            self.send(number)

        before = {number: signal.signal(number, forward) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def outcome_of(run_dir: RunDirectory, children: Children) -> Outcome:
    """Outcome of a run whose processes have ended; written to its status if none of them could."""
    if children.failed is None:
        return Outcome("finished", 0)
    code = children.code(children.failed)
    status = run_dir.status
    if children.interrupted and status.state in ("pending", "running"):
        run_dir.update_status(state="interrupted")
    if children.interrupted or status.state == "interrupted":
        return Outcome("interrupted", INTERRUPTED_EXIT)
    if code < 0 or status.error is None:
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code} and no word"
        what = f"Process {children.failed} of {len(children.processes)} {ended}."
        error = RunError(what, fix="was it out of memory? lower the micro-batch sizes, or use fewer processes")
        run_dir.update_status(state="failed", error=error)
        return Outcome("failed", max(code, 1), error)
    return Outcome("failed", max(code, 1), status.error)
