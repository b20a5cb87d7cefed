"""Runs with a defect, through the command line: stopped by the self-checks, or let go and seen by the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import ONE_ITERATION, placed

from rlhf_lightning.cli.doctor import read_run
from rlhf_lightning.cli.main import main
from rlhf_lightning.evaluation.doctor import diagnose
from rlhf_lightning.stages.run_directory import RunDirectory

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

PPO = (*ONE_ITERATION, "pipeline=ppo")
HOT = (
    "allow_targets=[broken_runs]",
    "callbacks.extra=[{_target_: broken_runs.SampleAtAnotherTemperature, temperature: 1.4}]",
)


@pytest.fixture
def start(tiny: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What PPO begins with; the scripts are within reach."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return [f"ppo.policy_from={tiny.path / 'sft'}", f"ppo.reward_from={tiny.path / 'reward_model'}"]


def test_a_temperature_mismatch_stops_the_run_and_says_why(start: list[str], tmp_path: Path) -> None:
    assert main(["train", *PPO, *start, *HOT, *placed(tmp_path)]) == 1
    run = RunDirectory.open(tmp_path / "run")
    error = run.status.error
    assert error is not None
    assert "Iteration 0: responses were sampled from another distribution than is trained" in error.what
    assert "callbacks.self_checks=false" in str(error.fix)
    assert not (run.path / "ppo" / "model.safetensors").exists()


def test_without_self_checks_it_goes_on_and_the_doctor_sees_it(start: list[str], tmp_path: Path) -> None:
    assert main(["train", *PPO, *start, *HOT, "callbacks.self_checks=false", *placed(tmp_path)]) == 0
    assert diagnose(read_run(tmp_path / "run")).causes[0].name == "sampling_mismatch"


def test_a_diverged_run_keeps_the_batch_that_did_it(start: list[str], tmp_path: Path) -> None:
    rate = ("ppo.epochs=2", "ppo.learning_rate=1e30", "ppo.max_grad_norm=1e30", "callbacks.self_checks=false")
    assert main(["train", *PPO, *start, *rate, "ppo.iterations=2", *placed(tmp_path)]) == 1
    error = RunDirectory.open(tmp_path / "run").status.error
    assert error is not None
    assert "Training diverged" in error.what
    assert "ppo.learning_rate" in str(error.where)
    assert "lower ppo.learning_rate" in str(error.fix)
    path = tmp_path / "run" / "checkpoints" / "ppo" / "diverged_batch.safetensors"
    assert str(path) in str(error.fix)
    batch = load_file(path)
    assert {"0.rollout.sequences", "0.rollout.advantages", "0.rollout.response_mask"} <= set(batch)
    assert batch["0.rollout.sequences"].dtype == torch.int64
