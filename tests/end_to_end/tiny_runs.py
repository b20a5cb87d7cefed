"""Runs of the real command line at sizes that take seconds, and what they leave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.run_directory import RunDirectory

SMALL = (
    "debug=tiny",
    "logger=none",
    "data.demonstrations=64",
    "comparisons.prompts=12",
    "comparisons.held_out_fraction=0.25",
)
"""The whole pipeline in the embedded world within seconds."""

ONE_ITERATION = ("debug=tiny", "logger=none", "ppo.iterations=1")
"""PPO from finished artifacts."""


def train(*overrides: str) -> RunDirectory:
    """A run that finishes, by the directory that it leaves; `paths.run_dir` must be among the overrides."""
    assert main(["train", *overrides]) == 0
    (directory,) = [value for key, _, value in map(_parts, overrides) if key == "paths.run_dir"]
    return RunDirectory.open(Path(directory))


def placed(directory: Path) -> list[str]:
    """Overrides that put a run into `directory/run`."""
    return [f"paths.outputs={directory}", f"paths.run_dir={directory / 'run'}"]


def finished_metrics(run: RunDirectory) -> dict[str, Any]:
    """The metrics of a run that has finished."""
    assert run.status.state == "finished"
    metrics = run.metrics
    assert metrics is not None
    return metrics


def without_times(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Nested figures without how long anything took, how much memory, and who did it first."""
    return {
        name: without_times(value) if isinstance(value, Mapping) else value
        for name, value in figures.items()
        if name not in ("seconds", "memory", "cache")
    }


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fingerprints(directory: Path) -> dict[str, str]:
    """A hash of every file below a directory, by its path."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _parts(override: str) -> tuple[str, str, str]:
    return override.partition("=")
