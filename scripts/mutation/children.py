"""Work in forked processes, under limits of time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress


@dataclass(frozen=True)
class Limit:
    """CPU seconds of a child, and seconds until it is stopped: a busy machine makes it slow, but no busier."""

    seconds: float
    duration: float


class Children:
    """Work in forked processes, each in its own process group and with its own temporary directory."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, works: Sequence[tuple[Callable[[], Any], Limit]]) -> Iterator[tuple[int, Any]]:
        """Results as they come, with the index of the work; `died` is the end of the output of one that has none."""
        running: dict[int, tuple[int, float, Path]] = {}
        waiting = list(enumerate(works))
        while waiting or running:
            while waiting and len(running) < self.jobs:
                index, (work, limit) = waiting.pop(0)
                folder = Path(tempfile.mkdtemp(prefix="mutant-"))
                running[self._fork(work, limit, folder)] = (index, time.monotonic() + limit.duration, folder)
            time.sleep(0.005)
            for pid, (index, deadline, folder) in list(running.items()):
                ended = os.waitpid(pid, os.WNOHANG)[0] == pid
                if not ended and time.monotonic() < deadline:
                    continue
                kill_group(pid)
                if not ended:
                    os.waitpid(pid, 0)
                del running[pid]
                result = folder / "result.json"
                output = (folder / "output").read_text(errors="replace")[-2000:]
                yield index, json.loads(result.read_text()) if result.exists() else {"died": output}
                shutil.rmtree(folder, ignore_errors=True)

    def _fork(self, work: Callable[[], Any], limit: Limit, folder: Path) -> int:
        if psutil.Process().num_threads() > 1:
            raise RuntimeError(f"a process with threads cannot be forked: {threading.enumerate()}")
        if pid := os.fork():
            return pid
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (ceil(limit.seconds), ceil(limit.seconds)))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ |= {"PYTEST_DEBUG_TEMPROOT": str(folder), "TMPDIR": str(folder)}
        tempfile.tempdir = None
        try:
            (folder / "partial").write_text(json.dumps(work()))
            (folder / "partial").rename(folder / "result.json")
        finally:
            traceback.print_exc()
            os._exit(0)


def kill_group(leader: int) -> None:
    """End what a child has left running, and the child itself."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def shown(results: Iterator[tuple[int, Any]], what: str, total: int) -> Iterator[tuple[int, Any]]:
    """Results with a progress bar, drawn without a thread: a process with one cannot be forked."""
    bar = Progress(console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with bar:
        task = bar.add_task(what, total=total)
        for result in results:
            yield result
            bar.update(task, advance=1, refresh=True)
