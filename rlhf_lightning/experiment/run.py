"""One run from its checked settings to its final status, whatever happens on the way."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import rich
from rich.logging import RichHandler

from rlhf_lightning.errors import RlhfError
from rlhf_lightning.experiment.provenance import gather_provenance
from rlhf_lightning.experiment.run_directory import ERROR_LOG, RUN_LOG, RunDirectory, RunError, RunState, unwritable
from rlhf_lightning.settings.run import RunSettings

log = logging.getLogger(__name__)

INTERRUPTED_EXIT = 130
"""128 + SIGINT, what a shell expects of a program that was interrupted."""

DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the operating system says when a disk is full or a quota used up, a file too large, a disk read-only."""

ECHO_SECONDS = 2.0
"""A second Ctrl-C within this time is taken for the first one, delivered twice (by the terminal and by a sweep)."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: RunState
    exit_code: int
    error: RunError | None = None
    checkpoint: Path | None = None
    """Where an interrupted run left its checkpoint."""
    is_defect: bool = False
    """Whether the program is to blame, and not what it was told."""


def execute(settings: RunSettings, run_dir: RunDirectory, overrides: Sequence[str]) -> Outcome:
    """Runs the pipeline in its directory and records how it ended.

    Ctrl-C and SIGTERM interrupt it; Lightning saves a checkpoint first.
    """
    with _log_to(run_dir.path / RUN_LOG), _interruptible(), _Ending(run_dir) as ending:
        if joins_a_run():
            _run_pipeline(settings, run_dir)
            return ending.outcome
        log.info("Run directory: %s", run_dir.path)
        run_dir.update_status(state="running", pid=os.getpid(), error=None)
        run_dir.write_json("provenance.json", gather_provenance(settings, overrides))
        _run_pipeline(settings, run_dir)
    return ending.outcome


def joins_a_run() -> bool:
    """Whether this process is a further rank of a distributed run, whose first rank keeps the directory."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


def _run_pipeline(settings: RunSettings, run_dir: RunDirectory) -> None:
    # Here and not above: this import brings torch, and a config error must not wait for it.
    from rlhf_lightning.experiment.pipeline import run_pipeline

    run_pipeline(settings, run_dir)


class _Ending:
    """Turns the way a `with` block was left into an `Outcome`, and into status.json."""

    def __init__(self, run_dir: RunDirectory) -> None:
        self.run_dir = run_dir
        self.outcome = Outcome("finished", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self.outcome = self._failed(error) if not _is_interruption(error) else self._interrupted()
        if not joins_a_run():
            stage = self.run_dir.status.stage if error else None
            self.run_dir.update_status(state=self.outcome.state, stage=stage, error=self.outcome.error)
        return True

    def _interrupted(self) -> Outcome:
        return Outcome("interrupted", INTERRUPTED_EXIT, checkpoint=self.run_dir.interrupted_checkpoint())

    def _failed(self, error: BaseException) -> Outcome:
        self.run_dir.write_text(ERROR_LOG, "".join(traceback.format_exception(error)))
        trace = str(self.run_dir.path / ERROR_LOG)
        known = error if isinstance(error, RlhfError) else _disk_refusal(error, self.run_dir.path)
        if known is not None:
            return Outcome("failed", known.exit_code, RunError(known.what, known.where, known.fix, trace))
        what = f"{type(error).__name__}: {error}"
        return Outcome("failed", 1, RunError(what, traceback_file=trace), is_defect=True)


def _is_interruption(error: BaseException) -> bool:
    """Lightning answers Ctrl-C with `exit(1)`: a `SystemExit` raised while a `KeyboardInterrupt` was handled."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    )


def _disk_refusal(error: BaseException, run_dir: Path) -> RlhfError | None:
    """The error of a disk that would not take what a library wrote into the run directory; None for any other."""
    if isinstance(error, OSError):
        number, where = error.errno, error.filename
    else:
        in_words = re.search(r"\(os error (\d+)\)", str(error))  # so says safetensors, whose errors are no OSError
        number, where = (int(in_words[1]) if in_words else None), None
    return unwritable(str(where or run_dir), os.strerror(number)) if number in DISK_REFUSALS else None


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `KeyboardInterrupt`; an echo of the first within `ECHO_SECONDS` is ignored."""
    first: list[float] = []

    def interrupt(*_: object) -> None:
        now = time.monotonic()
        if first and now - first[0] < ECHO_SECONDS:
            return
        first[:] = [now]
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Sends the log to the terminal (ours, and others' warnings) and to a file in the run directory."""
    terminal = _terminal_handler()
    terminal.addFilter(lambda record: record.name.startswith("rlhf_lightning") or record.levelno >= logging.WARNING)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    # Further ranks say the same as the first: of them only what goes wrong is kept.
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
    """Log lines for a person at a terminal; plain ones, never folded, where they are piped."""
    # One console for log lines and Lightning's progress bars, or they would overwrite each other.
    rich.reconfigure(stderr=True)
    console = rich.get_console()
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    return handler
