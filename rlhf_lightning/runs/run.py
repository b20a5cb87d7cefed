"""Execute one run, from its checked settings to its final status; errors, signals and SLURM's requeueing included."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import rich
from rich.logging import RichHandler

from rlhf_lightning.errors import RlhfError
from rlhf_lightning.ranks import rank_info
from rlhf_lightning.runs.provenance import changes_since, completed, gather_provenance, write_script
from rlhf_lightning.stages.run_directory import (
    ERROR_LOG,
    PROVENANCE,
    RUN_LOG,
    RunDirectory,
    RunError,
    RunState,
    unwritable,
)
from rlhf_lightning.stages.run_settings import RunSettings

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


INTERRUPTED_EXIT = 130
"""128 + SIGINT, what a shell expects of a program that was interrupted."""

DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers for a full disk, an exhausted quota, a file that is too large, and a read-only disk."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run."""

    state: RunState
    exit_code: int
    error: RunError | None = None


def execute(settings: RunSettings, run_dir: RunDirectory, overrides: Sequence[str]) -> Outcome:
    """Runs the pipeline in its directory and records the outcome.

    Ctrl-C, SIGTERM and SIGUSR1 interrupt it. An interrupted run resumes from its last checkpoint.

    Raises:
        RunDirectoryError: another process is running there.
    """
    holding = nullcontext() if joins_a_run() else run_dir.held()
    with holding, _log_to(run_dir.path / _log_name()), interruptible() as interruption:
        with _Ending(run_dir, interruption) as ending:
            if not joins_a_run():
                _announce(settings, run_dir, overrides)
            _run_pipeline(settings, run_dir)
        # An echo is ignored here: srun sends SIGTERM as soon as another process has gone.
        if interruption.number == signal.SIGUSR1 and not joins_a_run():
            requeue_in_slurm()
    return ending.outcome


def _announce(settings: RunSettings, run_dir: RunDirectory, overrides: Sequence[str]) -> None:
    log.info("Run directory: %s", run_dir.path)
    run_dir.update_status(state="running", pid=os.getpid(), error=None)
    now = gather_provenance(settings, overrides)
    first = run_dir.provenance
    if first is None:
        run_dir.write_json(PROVENANCE, now)
        write_script(run_dir, now)
        return
    changed = changes_since(first, now)
    if changed:
        log.warning("What differs from when the run was started: %s. Its figures may differ too.", "; ".join(changed))
    run_dir.write_json(PROVENANCE, {**first, "resumed": [*first.get("resumed", ()), now]})


def joins_a_run() -> bool:
    """True if this process is not rank 0 of its run, and so does not own the run directory."""
    return rank_info().rank > 0


def _run_pipeline(settings: RunSettings, run_dir: RunDirectory) -> None:
    # Imported here: these import torch, and a config error must not wait for it.
    from rlhf_lightning.distributed import leave
    from rlhf_lightning.runs.pipeline import run_pipeline
    from rlhf_lightning.stages.training import join_processes

    join_processes(settings.trainer)
    run_pipeline(settings, run_dir)
    if not joins_a_run():
        run_dir.write_json(PROVENANCE, completed(run_dir.provenance or {}, settings))
    leave()


class _Ending:
    """Turns the result or error of a `with` block into an `Outcome`, and writes it to status.json."""

    def __init__(self, run_dir: RunDirectory, interruption: Interruption) -> None:
        self.run_dir = run_dir
        self.interruption = interruption
        self.outcome = Outcome("finished", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self.outcome = self._failed(error) if not self._is_interruption(error) else self._interrupted()
        before = self.run_dir.status
        if self.outcome.state == before.state == "failed" and before.error is not None:
            # Another process failed first and recorded it; this one only lost the connection.
            self.outcome = Outcome("failed", 1, before.error)
        elif not joins_a_run() or (self.outcome.state == "failed" and not _misses_another(error)):
            stage = before.stage if error else None
            self.run_dir.update_status(state=self.outcome.state, stage=stage, error=self.outcome.error)
        return True

    def _is_interruption(self, error: BaseException) -> bool:
        # When several processes are interrupted, one may lose another before its own signal arrives.
        return _is_interruption(error) or (self.interruption.number is not None and _misses_another(error))

    def _interrupted(self) -> Outcome:
        return Outcome("interrupted", INTERRUPTED_EXIT)

    def _failed(self, error: BaseException) -> Outcome:
        place = rank_info()
        log_name = ERROR_LOG if place.rank == 0 else f"error.rank{place.rank}.log"
        self.run_dir.write_text(log_name, "".join(traceback.format_exception(error)))
        trace = str(self.run_dir.path / log_name)
        prefix = f"Process {place.rank} of {place.world_size}: " if place.rank > 0 else ""
        known = error if isinstance(error, RlhfError) else _disk_refusal(error, self.run_dir.path)
        if _misses_another(error):
            missing = "Another process of this run has ended, and this one missed it."
            fix = "error.rankN.log says why, unless it was killed (out of memory?)"
            return Outcome("failed", 1, RunError(prefix + missing, fix=fix, traceback_file=trace))
        if known is not None:
            return Outcome("failed", known.exit_code, RunError(prefix + known.what, known.where, known.fix, trace))
        what = f"{prefix}{type(error).__name__}: {error}"
        return Outcome("failed", 1, RunError(what, traceback_file=trace, is_defect=True))


def _is_interruption(error: BaseException) -> bool:
    """True if an error is a `KeyboardInterrupt`, or what a library turned one into.

    Lightning turns it into `exit(1)`; torch, while it writes a file, into a `RuntimeError` about an incomplete file.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause is not None


def _misses_another(error: BaseException | None) -> bool:
    """True if an exchange with another process failed because its connection was closed."""
    return (
        rank_info().world_size > 1
        and isinstance(error, RuntimeError)
        and re.search("gloo|nccl|peer|socket", str(error), re.IGNORECASE) is not None
    )


def _disk_refusal(error: BaseException, run_dir: Path) -> RlhfError | None:
    """The error to raise if the disk refused what a library wrote into the run directory; None for other errors."""
    if isinstance(error, OSError):
        number, where = error.errno, error.filename
    else:
        in_words = re.search(r"\(os error (\d+)\)", str(error))  # safetensors writes this; its errors are no OSError
        number, where = (int(in_words[1]) if in_words else None), None
    return unwritable(str(where or run_dir), os.strerror(number)) if number in DISK_REFUSALS else None


def _log_name() -> str:
    return f"run.rank{rank_info().rank}.log" if joins_a_run() else RUN_LOG


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Sends the log to the terminal (ours, and others' warnings) and to a file in the run directory.

    The other ranks log the same as rank 0: only their warnings and errors are kept, in a file.
    """
    terminal = logging.NullHandler() if joins_a_run() else _terminal_handler()
    terminal.addFilter(lambda record: record.name.startswith("rlhf_lightning") or record.levelno >= logging.WARNING)
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING if joins_a_run() else logging.INFO)
    for handler in (terminal, file):
        root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for handler in (terminal, file):
            root.removeHandler(handler)
            handler.close()


def _terminal_handler() -> logging.Handler:
    """Handler with Rich log lines for a terminal; plain, unwrapped ones where output is piped."""
    # One console for log lines and Lightning's progress bars, or they would overwrite each other.
    rich.reconfigure(stderr=True)
    console = rich.get_console()
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    return handler
