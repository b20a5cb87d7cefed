"""`debug=tiny` is tiny, and the keys that make it so do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import finished_metrics, placed, train

from rlhf_lightning.algorithms.checkpoints import AtomicCheckpointIO
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.tracking.history_file import read_history

SFT = ("pipeline=sft", "debug=tiny", "logger=none", "cache=off", "data.demonstrations=64", "sft.warmup_fraction=0.0")


def learning_rates(run: RunDirectory) -> list[float]:
    return [row.value for row in read_history(run.path) if row.name == "learning_rate"]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the checkpoints that are written."""
    names: list[str] = []
    save = AtomicCheckpointIO.save_checkpoint

    def noted(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        names.append(Path(path).name)
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    return names


def test_a_training_takes_two_steps_and_writes_one_checkpoint_and_no_picture(tmp_path: Path, saved: list[str]) -> None:
    run = train(*SFT, *placed(tmp_path))
    figures = finished_metrics(run)["stages"]["sft"]
    assert figures["steps"] == 2
    assert figures["validation_loss"] > 0
    assert saved == ["step=000001.ckpt"]
    assert not (run.path / "plots").exists()


def test_the_learning_rate_falls_over_the_steps_that_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_lightning.stages.training.LOG_EVERY_STEPS", 1)
    rates = {
        steps: learning_rates(train(*SFT, f"sft.max_steps={steps}", "sft.learning_rate=1.0", *placed(tmp_path / steps)))
        for steps in ("2", "4", "null")
    }
    # Of n steps, the one with number k is taken at 1 - k/n; 64 demonstrations, less the held-out ones, make 7.
    assert rates["2"] == pytest.approx([1.0, 0.5])
    assert rates["4"] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates["null"] == pytest.approx([1.0 - step / 7 for step in range(7)])
