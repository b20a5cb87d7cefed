"""`rlhf` in processes of its own that start in milliseconds: forked from that of the tests, which has imported all.

For tests in which a process is the point: signals, several ranks, the jobs of a sweep. What a fresh interpreter does
(which modules it imports, the console script) is no question for these.

    done = run(["train", "debug=tiny"], cwd=tmp_path)              # to its end
    process = start(["train", "debug=tiny"], cwd=tmp_path)         # process.pid, .send_signal(), .wait(), .stdout
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

PRELOADED = (
    *("peft", "wandb", "matplotlib.pyplot", "torch.distributed.fsdp", "transformers.models.llama.modeling_llama"),
    *("rlhf_lightning.cli.train", "rlhf_lightning.runs.pipeline", "rlhf_lightning.tracking.wandb_run"),
    *(
        f"rlhf_lightning.stages.{stage}"
        for stage in ("sft", "comparisons", "reward_model", "ppo", "evaluate", "critique_revision", "ai_feedback")
    ),
)

LIMIT = 240.0
"""Seconds after which a process counts as stuck."""

RealPopen = subprocess.Popen

Body = Callable[..., None]
"""Patches that a child makes before it runs `rlhf`; a function of a module, with its arguments in `start(body=...)`."""


class Child:
    """A child of this process, with the methods of `subprocess.Popen` that this project uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; minus the signal's number if one killed it.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("rlhf", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Process(Child):
    """A running or finished `rlhf` and what it prints."""

    def __init__(self, pid: int, outputs: tuple[Path, Path]) -> None:
        super().__init__(pid)
        self.outputs = outputs

    @property
    def stdout(self) -> str:
        """All that it has printed so far."""
        return self.outputs[0].read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return self.outputs[1].read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float | None = LIMIT) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs; what its threads do is printed.
        """
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGABRT)
            time.sleep(1.0)
            sys.stderr.write(self.stderr)
            raise

    def kill_group(self) -> None:
        """SIGKILL for it and for all that it has started."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait_for(self, condition: Callable[[], bool], timeout: float = LIMIT) -> None:
        """Waits until something is so, which this process brings about.

        Raises:
            AssertionError: the process ended before, or it took too long.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.poll() is None, f"ended with {self.returncode}:\n{self.stdout}\n{self.stderr}"
            assert time.monotonic() < deadline, f"still waiting:\n{self.stdout}\n{self.stderr}"
            time.sleep(0.02)


def start(
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    body: tuple[Body, tuple[Any, ...]] | None = None,
    outputs: tuple[Path, Path] | None = None,
) -> Process:
    """Starts `rlhf ARGUMENTS` as the leader of a process group of its own.

    Args:
        env: its whole environment; None: that of this process.
        body: a function, and arguments for it: called in the child before `rlhf`.
        outputs: where stdout and stderr go; None: files of the temporary directory.
    """
    for module in PRELOADED:
        importlib.import_module(module)
    if outputs is None:
        folder = Path(tempfile.mkdtemp(prefix="forked-"))
        outputs = (folder / "stdout", folder / "stderr")
        for output in outputs:
            output.touch()
    environment = dict(os.environ if env is None else env)

    def prepare() -> None:
        os.setsid()
        _become(str(cwd or Path.cwd()), environment, outputs)
        if body is not None:
            function, values = body
            function(*values)
        subprocess.Popen = Forked  # type: ignore[misc, assignment]

    started = Process(_fork(arguments, prepare), outputs)
    atexit.register(_end, started)
    return started


def _end(process: Process) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill_group()


def _fork(arguments: Sequence[str], prepare: Callable[[], None]) -> int:
    """Forks this process into one that prepares itself and then is `rlhf ARGUMENTS`; returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.closerange(3, 1024)  # as `subprocess` does: locks and pipes of the parent are not the child's
        prepare()
        code = _rlhf(list(arguments))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - the test that waits for the process shows it
        traceback.print_exc()
    finally:
        os._exit(code)


def run(arguments: Sequence[str], *, timeout: float = LIMIT, **options: Any) -> subprocess.CompletedProcess[str]:
    """`rlhf ARGUMENTS` to its end; the options are those of `start`."""
    process = start(arguments, **options)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill_group()
        raise
    return subprocess.CompletedProcess(["rlhf", *arguments], code, process.stdout, process.stderr)


def _ours(command: Any) -> list[str] | None:
    words = [str(word) for word in command] if isinstance(command, Sequence) and not isinstance(command, str) else []
    if words[:1] == [sys.executable] and "rlhf_lightning" in words[:4] and "-m" in words[:3]:
        return words[words.index("rlhf_lightning") + 1 :]
    return None


def _path_of(file: Any) -> Path:
    """The file behind what `Popen` was given as an output."""
    return Path(os.devnull) if file == subprocess.DEVNULL else Path(file.name)


def _become(cwd: str | None, environment: Mapping[str, str], outputs: tuple[Path | None, Path | None]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, path in enumerate(outputs, start=1):
        if path is not None:
            with path.open("ab") as file:
                os.dup2(file.fileno(), number)
    # Not those of pytest, which gathers what tests print.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            # Lightning keeps the standard error of its import. That was closed: its number is another file's now.
            if type(handler) is logging.StreamHandler and not isinstance(handler.stream, io.StringIO):
                handler.setStream(sys.stderr)
    faulthandler.enable(sys.stderr)  # for `Process.wait`
    import torch

    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))


def _rlhf(arguments: list[str]) -> int:
    from rlhf_lightning.cli.main import main

    sys.argv = ["rlhf", *arguments]
    try:
        return main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class Forked(Child):
    """`subprocess.Popen` for whoever starts `python -m rlhf_lightning`: forked from this process."""

    def __new__(cls, command: Any, **options: Any) -> Any:
        if _ours(command) is None:
            return RealPopen(command, **options)
        return super().__new__(cls)

    def __init__(self, command: Any, **options: Any) -> None:
        arguments = _ours(command)
        assert arguments is not None
        files = [options.get(name) for name in ("stdout", "stderr")]
        paths = cast(tuple[Path | None, Path | None], tuple(None if file is None else _path_of(file) for file in files))
        environment = dict(options.get("env") or os.environ)
        super().__init__(_fork(arguments, lambda: _become(options.get("cwd"), environment, paths)))
