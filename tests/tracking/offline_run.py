"""What an offline W&B run recorded, read back from its file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

from rlhf_lightning.tracking.offline_file import records


class OfflineRun:
    """What an offline run recorded.

    Attributes:
        run: how it was filed (`run_id`, `run_group`, `job_type`, `display_name`, `tags`, `notes`).
        config: by key.
        history: logged rows, by key; W&B's own columns (`_step`, ...) left out.
        steps: the step of each row.
        summary: figures that were set as summary, by key; of a nested one by its path, `samples/nrows`.
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
            self._take(record)

    def _take(self, record: Record) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
            self.config |= _values(record.run.config.update)
        elif kind == "history":
            row = _values(record.history.item)
            self.steps.append(row["_step"])
            self.history.append({key: value for key, value in row.items() if not key.startswith("_")})
        elif kind == "summary":
            self.summary |= _values(record.summary.update)
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            self.axes[name] = record.metric.step_metric
            self.summaries[name] = {kind for kind in ("min", "max", "last") if getattr(record.metric.summary, kind)}
        elif kind == "artifact" and not record.artifact.type.startswith(("run_table", "wandb-")):
            side = self.taken if record.artifact.use_after_commit else self.left
            side[record.artifact.name] = record.artifact
        elif kind == "environment":
            self.arguments = list(record.environment.args) or self.arguments
        elif kind == "exit":
            self.exit_code = record.exit.exit_code


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


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
