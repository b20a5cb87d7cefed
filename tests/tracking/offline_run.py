"""What an offline W&B run recorded, read back from its file."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wandb.util import get_core_path


class OfflineRun:
    """What an offline run recorded.

    Attributes:
        run: how it was filed (`run_id`, `run_group`, `job_type`, `display_name`, `tags`, `notes`).
        config: by key.
        history: logged rows, by key; W&B's own columns (`_step`, ...) left out.
        steps: the step of each row.
        summary: figures that were set as summary, by key; of a nested one by its path, `samples.nrows`.
        axes: the x-axis of each declared metric.
        summaries: the values that the summary keeps of each declared metric.
        taken: artifacts that it took in, by name.
        left: artifacts that it left, by name, without those that tables make.
        arguments: of the command that was running.
        exit_code: None while it is not finished.
    """

    def __init__(self, directory: Path) -> None:
        (path,) = directory.glob("*.wandb")
        self.directory = directory
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.steps: list[int] = []
        self.axes: dict[str, str] = {}
        self.summaries: dict[str, set[str]] = {}
        self.taken: dict[str, Any] = {}
        self.left: dict[str, Any] = {}
        self.arguments: list[str] = []
        self.exit_code: int | None = None
        for record in records(path):
            self._take(record["type"], record.get(record["type"]))

    def _take(self, kind: str, record: Any) -> None:
        if kind == "run":
            self.run = SimpleNamespace(**{"tags": [], "notes": "", "sweep_id": "", **record})
            self.config |= record.get("config", {}).get("update", {})
        elif kind == "history":
            self.steps.append(record["item"]["_step"])
            self.history.append({key: value for key, value in record["item"].items() if not key.startswith("_")})
        elif kind == "summary":
            self.summary |= record.get("update", {})
        elif kind == "metric":
            name = record.get("name") or record["glob_name"]
            self.axes[name] = record.get("step_metric", "")
            self.summaries[name] = {kind for kind in ("min", "max", "last") if kind in record.get("summary", {})}
        elif kind == "artifact" and not record["type"].startswith(("run_table", "wandb-")):
            side = self.taken if record.get("use_after_commit") else self.left
            side[record["name"]] = SimpleNamespace(**record)
        elif kind == "environment":
            self.arguments = record.get("args") or self.arguments
        elif kind == "exit":
            self.exit_code = record.get("exit_code", 0)


def records(file: Path) -> list[dict[str, Any]]:
    """The records of a `.wandb` file up to the last whole one, by `wandb leet inspect` less its second of imports."""
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability", "--run-file", str(file)]
    done = subprocess.run([*command, str(file.parent)], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def recorded(run_dir: Path, stage: str) -> OfflineRun:
    """What a stage of a run logged, in the part that it began last and has finished."""
    identity = json.loads((run_dir / "wandb" / f"{stage}.json").read_text())
    run = finished(Path(identity["directory"]))
    assert run.run.run_id == identity["id"]
    return run


def finished(directory: Path) -> OfflineRun:
    """A finished part of a run: the client's service writes the end of its file shortly after `finish` has returned."""
    deadline = time.monotonic() + 10.0
    while (run := OfflineRun(directory)).exit_code is None:
        assert time.monotonic() < deadline, f"{directory} has no end"
        time.sleep(0.02)
    return run
