"""Runs under `wandb agent`: the last stage is the trial that the agent named, and no other run is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from made_up_constitutions import constitution
from offline_run import recorded

from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.run_settings import PipelineSettings, RunSettings, schema_of
from rlhf_lightning.tracking.loggers import is_trial, open_tracker
from rlhf_lightning.tracking.settings import WandbLogging
from rlhf_lightning.tracking.wandb_files import agent_trial

PARAMETERS = """\
wandb_version: 1
optimizer.lr:
  value: 0.3
seed:
  value: 7
"""


def settings() -> RunSettings:
    """The sections that tracking reads, and one more to stand for the config."""
    values: dict[str, Any] = {
        "name": None,
        "notes": None,
        "tags": [],
        "optimizer": {"lr": 0.3},
        "constitution": constitution(),
        "pipeline": PipelineSettings(name="test", stages=["sft", "ppo"]),
        "logger": WandbLogging(kind="wandb", project="mine", entity=None, mode="offline", artifacts="none"),
    }
    values |= {name: STAGES[name].Settings.model_construct(stage=name) for name in ("sft", "ppo")}
    return schema_of({"sft": "sft", "ppo": "ppo"}).model_construct(**values)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an agent tells the command that it starts."""
    parameters = tmp_path / "config-trial1.yaml"
    parameters.write_text(PARAMETERS)
    told = {
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_RUN_ID": "trial1",
        "WANDB_SWEEP_PARAM_PATH": str(parameters),
        "WANDB_PROJECT": "of_the_sweep",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("agent")
def test_the_last_stage_is_the_trial(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    environment = dict(os.environ)
    for stage in ("sft", "ppo"):
        with open_tracker(settings(), run_dir, stage, ["optimizer.lr=0.3"]) as tracker:
            tracker.log_summary({"score": 1.0})
            if stage == "ppo":
                tracker.log_objective(0.75)
    sft, ppo = recorded(run_dir, "sft"), recorded(run_dir, "ppo")

    assert (ppo.run.run_id, ppo.run.sweep_id, ppo.run.project) == ("trial1", "sweep1", "of_the_sweep")
    assert ppo.config["optimizer.lr"] == 0.3, "as the sweep knows it"
    assert ppo.config["optimizer"] == {"lr": 0.3}
    assert ppo.summary["objective"] == 0.75
    assert [row["objective"] for row in ppo.history if "objective" in row] == [0.75]
    assert sft.run.run_id != "trial1"
    assert (sft.run.sweep_id, sft.run.project) == ("", "mine")
    assert "optimizer.lr" not in sft.config
    assert "objective" not in sft.summary
    assert dict(os.environ) == environment


@pytest.mark.usefixtures("agent")
def test_a_trial_that_goes_on_stays_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        with open_tracker(settings(), tmp_path, "ppo", []):
            pass
        assert recorded(tmp_path, "ppo").run.run_id == "trial1"
        for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):  # the second time no agent is there
            monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("agent")
def test_jobs_of_a_sweep_of_ours_are_no_trials(tmp_path: Path) -> None:
    assert is_trial(settings(), tmp_path / "run", "ppo")
    assert not is_trial(settings(), tmp_path / "run", "sft")
    assert not is_trial(settings(), tmp_path / "sweep" / "0", "ppo")


def test_without_an_agent_there_is_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "leaked")
    assert agent_trial() is None
    with open_tracker(settings(), tmp_path, "ppo", []):
        pass
    assert recorded(tmp_path, "ppo").run.run_id != "leaked"
