"""A sweep that is logged to Weights & Biases without a network, read back from the files that it leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_runs import finished_metrics
from tracking.offline_run import OfflineRun

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.run_directory import RunDirectory


def recorded(job: RunDirectory, stage: str) -> OfflineRun:
    """What a stage of a job logged."""
    identity = json.loads((job.path / "wandb" / f"{stage}.json").read_text())
    assert identity["mode"] == "offline"
    directory = Path(identity["directory"])
    assert directory.is_relative_to(job.path), "one job's records lie in its own directory"
    return OfflineRun(directory)


@pytest.mark.slow
def test_the_stages_of_a_sweeps_jobs_are_runs_of_their_own_in_one_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    stages = ["pipeline.stages=[sft,evaluate]", "evaluate.policies=[sft]", "evaluate.reward_from=null"]
    sizes = ["debug=tiny", "data.demonstrations=64"]
    places = [f"paths.outputs={tmp_path}", f"paths.sweep_dir={tmp_path / 'sweep'}"]
    assert main(["train", "-m", "logger.mode=offline", "sft.learning_rate=1e-4,1e-3", *stages, *sizes, *places]) == 0

    jobs = [RunDirectory.open(tmp_path / "sweep" / number) for number in "01"]
    losses = [finished_metrics(job)["stages"]["sft"]["validation_loss"] for job in jobs]
    assert losses[0] != losses[1]
    runs = {(job, stage): recorded(jobs[job], stage) for job in (0, 1) for stage in ("sft", "evaluate")}
    assert len({run.run.run_id for run in runs.values()}) == 4
    assert len({run.run.run_group for run in runs.values()}) == 1
    for (job, stage), run in runs.items():
        config = jobs[job].config
        assert (run.run.job_type, run.exit_code) == (stage, 0)
        assert run.run.display_name.startswith(f"{stage} sft.learning_rate={config['sft']['learning_rate']}")
        assert {key: run.config[key] for key in config} == config, "plain containers, nothing lost"
        assert run.summary["seconds"] == finished_metrics(jobs[job])["stages"][stage]["seconds"]
    for job, loss in enumerate(losses):
        history = runs[job, "sft"].history
        assert [row["sft/validation_loss"] for row in history if "sft/validation_loss" in row] == pytest.approx([loss])
        gold = finished_metrics(jobs[job])["evaluate"]["sft"]["iid"]["gold_reward"]
        assert runs[job, "evaluate"].summary["sft/iid/gold_reward"] == pytest.approx(gold)
