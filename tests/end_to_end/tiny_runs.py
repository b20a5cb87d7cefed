"""Runs of the real command line at sizes that take seconds, and what they leave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.algorithms.rollout_callbacks import SampleLogger
from rlhf_lightning.cli.main import main
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.tracking.history_file import read_history

SMALL = (
    "debug=tiny",
    "logger=none",
    "data.demonstrations=64",
    "comparisons.prompts=12",
    "comparisons.held_out_fraction=0.25",
    "rollout.max_new_tokens=16",
)
"""The whole pipeline in the embedded world within seconds."""

TINY = (*SMALL, "ppo.learning_rate=3e-3")
"""The same with a step size at which the policy moves: the run that the fixture `tiny` gives."""

LORA = ("peft=lora", "peft.rank=4")

ADAPTED: dict[str, tuple[str, ...]] = {
    "lora": (
        *LORA,
        "kl=adaptive",
        "ppo.critic=reward_model",
        "logger=wandb",
        "logger.mode=offline",
        "callbacks.sample_log_every=1",
    ),
    "top_layers": (
        "peft=top_layers",
        "peft.layers=1",
        "ppo.critic=separate",
        "kl=none",
        "reward_model.head=classifier",
    ),
    "prompt_tuning": (
        *("peft=prompt_tuning", "peft.virtual_tokens=4", "trainer=ddp", "trainer.devices=1"),
        *("reward=ensemble", "reward.models=[reward_model,reward_model]"),
    ),
}
"""Adapters, each with other choices for the rest."""

CONSTITUTIONAL = (
    "pipeline=constitutional",
    "constitution=hhh",
    "debug=tiny",
    "logger=none",
    "data.demonstrations=64",
    "rollout.max_new_tokens=16",
    "critique_revision.prompts=12",
    "critique_revision.batch_size=4",
    "critique_revision.max_new_tokens=16",
    "critique_revision.held_out_fraction=0.3",
    "ai_feedback.prompts=12",
    "ai_feedback.batch_size=4",
    "ai_feedback.held_out_fraction=0.3",
    "evaluate.splits=[iid]",
)
"""The same of Constitutional AI; chains and labels are made in three batches each."""

ONE_ITERATION = ("debug=tiny", "logger=none", "rollout.max_new_tokens=16", "ppo.iterations=1")
"""PPO from finished artifacts."""

TIMES = ("time/", "rollout/tokens_per_second")


def train(*overrides: str) -> RunDirectory:
    """A run that finishes, by the directory that it leaves; `paths.run_dir` must be among the overrides."""
    assert main(["train", *overrides]) == 0
    (directory,) = [value for key, _, value in map(_parts, overrides) if key == "paths.run_dir"]
    return RunDirectory.open(Path(directory))


def logged(*overrides: str) -> list[str]:
    """The same run, logged to Weights & Biases without a network."""
    return [*(override for override in overrides if override != "logger=none"), "logger.mode=offline"]


def placed(directory: Path) -> list[str]:
    """Overrides that put a run into `directory/run`."""
    return [f"paths.outputs={directory}", f"paths.run_dir={directory / 'run'}"]


@contextmanager
def cut_short_in_iteration(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C after the rollouts of an iteration."""
    write = SampleLogger.__call__

    def interrupted(self: SampleLogger, iteration: int, collected: Any) -> dict[str, float]:
        if iteration == number:
            raise KeyboardInterrupt
        return write(self, iteration, collected)

    with monkeypatch.context() as patch:
        patch.setattr(SampleLogger, "__call__", interrupted)
        yield


def assert_alike(run: RunDirectory, other: RunDirectory) -> None:
    """Two runs left the same to the last bit: weights, records, logged rows and figures, but times and memory."""
    assert logged_rows(run) == logged_rows(other)
    assert weights_and_records(run) == weights_and_records(other)
    assert without_times(finished_metrics(run)) == without_times(finished_metrics(other))
    assert not (run.path / "checkpoints").exists(), "those of finished stages are of no use"


def logged_rows(run: RunDirectory) -> list[tuple[Any, ...]]:
    """All rows of the history but times, in the order they stand; numbers as text, since nan is not itself."""
    return [tuple(map(str, row)) for row in read_history(run.path) if not row.name.startswith(TIMES)]


def weights_and_records(run: RunDirectory) -> dict[str, str]:
    """A hash of every weight, sample_log, comparison and sample that a run left."""
    return {
        name: digest for name, digest in fingerprints(run.path).items() if name.endswith((".safetensors", ".jsonl"))
    }


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
