"""Sweeps of real runs: killed and taken up again, and as W&B's agent starts them.

The jobs of `tests/cli/test_sweep_processes.py` run at once.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import forked
import pytest
import yaml
from tiny_runs import ONE_ITERATION, fingerprints, finished_metrics, placed, train, without_times

from rlhf_lightning.cli.main import main
from rlhf_lightning.runs.compose import conf_directory
from rlhf_lightning.runs.sweep_record import Sweep, state_of
from rlhf_lightning.stages.run_directory import RunDirectory

SFT = ("debug=tiny", "logger=none", "data.demonstrations=64", "pipeline=sft", "cache=off", "trainer.threads=1")


@pytest.mark.usefixtures("jobs_in_this_process")
def test_a_sweep_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    places = [f"paths.outputs={tmp_path}", f"paths.sweep_dir={tmp_path / 'sweep'}"]
    process = forked.start(["train", "-m", *SFT, "seed=1,2,3", *places])
    second = RunDirectory(tmp_path / "sweep" / "1")
    process.wait_for(lambda: (second.path / "run.log").exists() and state_of(second) == "running")
    process.kill_group()
    process.wait()
    cut = Sweep.open(tmp_path / "sweep")
    first, second, third = cut.jobs
    deadline = time.monotonic() + 30.0
    while second.is_running and time.monotonic() < deadline:  # the job was killed too, and may take a moment to be gone
        time.sleep(0.02)
    assert [state_of(job) for job in (first, second, third)] == ["finished", "dead", "pending"]
    before = fingerprints(first.path)
    assert main(["sweep", "resume", str(cut.directory)]) == 0
    assert fingerprints(first.path) == before
    figures = [without_times(finished_metrics(job)) for job in cut.jobs]
    alone = train(*SFT, "seed=2", *placed(tmp_path / "alone"))
    assert figures[1] == without_times(finished_metrics(alone))
    assert figures[0] != figures[1] != figures[2]


def test_the_command_of_a_wandb_agent_is_a_run(tiny: RunDirectory, tmp_path: Path) -> None:
    from wandb.sdk.launch.sweeps import utils as wandb_sweeps  # seconds that only this test needs

    sweep = yaml.safe_load((conf_directory() / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    assert sweep["metric"] == {"name": "objective", "goal": "maximize"}
    chosen = {"kl.coef": {"value": 0.05}, "seed": {"value": 2}}
    assert chosen.keys() == sweep["parameters"].keys()
    arguments = wandb_sweeps.create_sweep_command_args({"args": chosen})
    # As `wandb.wandb_agent.Agent._command_run` puts the command together.
    words: list[str] = []
    for part in wandb_sweeps.create_sweep_command(sweep["command"]):
        words += arguments[part[2:-1]] if part.startswith("${") else [part]
    assert words == ["rlhf", "train", "kl.coef=0.05", "seed=2"]
    start = (f"ppo.policy_from={tiny.path / 'sft'}", f"ppo.reward_from={tiny.path / 'reward_model'}")
    with contextlib.chdir(tmp_path):
        assert main([*words[1:], "pipeline=ppo", *ONE_ITERATION, *start, "paths.run_dir=run"]) == 0
    run = RunDirectory.open(tmp_path / "run")
    assert (run.config["kl"]["coef"], run.config["seed"]) == (0.05, 2)
    assert isinstance(finished_metrics(run)["objective"], float)
