"""`rlhf` in processes of its own that start in milliseconds: forked from a server that has imported everything once.

For tests in which a process is the point: signals, several ranks, the jobs of a sweep. What a fresh interpreter does
(which modules it imports, the console script) is no question for these.

    done = run(["train", "debug=tiny"], cwd=tmp_path)              # to its end
    process = start(["train", "debug=tiny"], cwd=tmp_path)         # process.pid, .send_signal(), .wait(), .stdout
    monkeypatch.setattr(subprocess, "Popen", Popen)                # whoever starts `python -m rlhf_lightning` gets one
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn, cast

import psutil

PRELOADED = (
    *("peft", "wandb", "matplotlib.pyplot", "torch.distributed.fsdp", "transformers.models.llama.modeling_llama"),
    *("rlhf_lightning.cli.train", "rlhf_lightning.experiment.pipeline", "rlhf_lightning.tracking.wandb_run"),
    *(
        f"rlhf_lightning.experiment.stages.{stage}"
        for stage in ("sft", "comparisons", "reward_model", "ppo", "evaluate", "critique_revision", "ai_feedback")
    ),
)

LIMIT = 240.0
"""Seconds after which a process counts as stuck."""

RealPopen = subprocess.Popen

Body = Callable[..., None]
"""Patches that a child makes before it runs `rlhf`; a function of a module, with its arguments in `start(body=...)`."""


class Process:
    """A running or finished `rlhf`, with the methods of `subprocess.Popen` that this project uses."""

    def __init__(self, process: BaseProcess, outputs: tuple[Path, Path]) -> None:
        self.process = process
        self.outputs = outputs
        assert process.pid is not None
        self.pid: int = process.pid

    @property
    def stdout(self) -> str:
        """All that it has printed so far."""
        return self.outputs[0].read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return self.outputs[1].read_text(encoding="utf-8", errors="replace")

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = LIMIT) -> int:
        """Its exit code; minus the signal's number if one killed it.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("rlhf", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

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
            assert self.returncode is None, f"ended with {self.returncode}:\n{self.stdout}\n{self.stderr}"
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
        body: a function of an importable module, and arguments for it: called in the child before `rlhf`.
        outputs: where stdout and stderr go; None: files of the temporary directory.
    """
    if outputs is None:
        folder = Path(tempfile.mkdtemp(prefix="forked-"))
        outputs = (folder / "stdout", folder / "stderr")
        for output in outputs:
            output.touch()
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(PRELOADED))
    environment = dict(os.environ if env is None else env)
    process = server.Process(target=_child, args=(list(arguments), str(cwd or Path.cwd()), environment, body, outputs))
    process.start()
    started = Process(process, outputs)
    # Not a daemon, which may not start processes itself; so whoever was forgotten is ended here.
    atexit.register(_end, started)
    return started


def _end(process: Process) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill_group()


def run(arguments: Sequence[str], *, timeout: float = LIMIT, **options: Any) -> subprocess.CompletedProcess[str]:
    """`rlhf ARGUMENTS` to its end; the options are those of `start`."""
    process = start(arguments, **options)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill_group()
        raise
    return subprocess.CompletedProcess(["rlhf", *arguments], code, process.stdout, process.stderr)


def Popen(command: Any, **options: Any) -> Any:
    """`subprocess.Popen` for whoever starts `python -m rlhf_lightning`; all other commands go the usual way."""
    arguments = _ours(command)
    if arguments is None:
        return RealPopen(command, **options)
    output, errors = options.get("stdout"), options.get("stderr")
    files = cast(tuple[Path, Path], tuple(_path_of(file, number) for file, number in ((output, 1), (errors, 2))))
    return start(arguments, cwd=options.get("cwd"), env=options.get("env"), outputs=files)


def _ours(command: Any) -> list[str] | None:
    words = [str(word) for word in command] if isinstance(command, Sequence) and not isinstance(command, str) else []
    if words[:1] == [sys.executable] and "rlhf_lightning" in words[:4] and "-m" in words[:3]:
        return words[words.index("rlhf_lightning") + 1 :]
    return None


def _path_of(file: Any, number: int) -> Path:
    """The file behind what `Popen` was given as an output."""
    if file is None:
        files = {opened.fd: Path(opened.path) for opened in psutil.Process().open_files()}
        return files.get(number, Path(os.devnull))
    if file == subprocess.DEVNULL:
        return Path(os.devnull)
    return Path(file.name)


def _child(
    arguments: list[str],
    cwd: str,
    environment: dict[str, str],
    body: tuple[Body, tuple[Any, ...]] | None,
    outputs: tuple[Path, Path],
) -> NoReturn:
    os.setsid()
    _become(cwd, environment, outputs)
    if body is not None:
        function, values = body
        function(*values)
    subprocess.Popen = Forked  # type: ignore[misc, assignment]
    sys.exit(_rlhf(arguments))


def _become(cwd: str | None, environment: Mapping[str, str], outputs: tuple[Path | None, Path | None]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for number, path in enumerate(outputs, start=1):
        if path is not None:
            with path.open("ab") as file:
                os.dup2(file.fileno(), number)
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


class Forked:
    """`subprocess.Popen` within such a process: what it starts of `rlhf` is forked from it, and is its child."""

    def __new__(cls, command: Any, **options: Any) -> Any:
        if _ours(command) is None:
            return RealPopen(command, **options)
        return super().__new__(cls)

    def __init__(self, command: Any, **options: Any) -> None:
        arguments = _ours(command)
        assert arguments is not None
        files = [options.get(name) for name in ("stdout", "stderr")]
        paths = tuple(None if file is None else _path_of(file, 1) for file in files)
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                environment = dict(options.get("env") or os.environ)
                os.closerange(3, 1024)  # as `subprocess` does: locks and pipes of the parent are not the child's
                _become(options.get("cwd"), environment, cast(tuple[Path | None, Path | None], paths))
                code = _rlhf(arguments)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
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
