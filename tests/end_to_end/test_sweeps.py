"""Sweeps of real runs: killed and taken up again, several at once over one cache, and as W&B's agent starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_runs import SMALL, fingerprints, finished_metrics, without_times
from tracking import offline_run
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.config.compose import conf_directory
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.sweep.record import Sweep, state_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SFT = ("debug=tiny", "logger=none", "data.demonstrations=64", "pipeline=sft", "cache=off", "trainer.threads=1")


def sweep_at(directory: Path) -> Sweep:
    return Sweep.open(directory / "sweep")


def places(directory: Path) -> list[str]:
    return [f"paths.outputs={directory}", f"paths.sweep_dir={directory / 'sweep'}"]


def test_a_sweep_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    seeds = "seed=1,2,3"
    assert main(["train", "-m", *SFT, seeds, *places(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "rlhf_lightning", "train", "-m", *SFT, seeds, *places(tmp_path / "cut")]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not list((tmp_path / "cut" / "sweep" / "1").glob("run.log")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    cut = sweep_at(tmp_path / "cut")
    first, second, third = cut.jobs
    assert [state_of(job) for job in (first, second, third)] == ["finished", "dead", "pending"]
    before = fingerprints(first.path)
    assert main(["sweep", "resume", str(cut.directory)]) == 0
    assert fingerprints(first.path) == before
    whole = [without_times(finished_metrics(job)) for job in sweep_at(tmp_path / "whole").jobs]
    assert [without_times(finished_metrics(job)) for job in cut.jobs] == whole
    assert whole[0] != whole[1]


def test_jobs_at_once_share_a_cold_cache_and_no_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    small = [override for override in SMALL if override != "logger=none"]
    overrides = [*small, "logger.mode=offline", "ppo.iterations=1", "kl.coef=0.05,0.2"]
    assert main(["train", "-m", *overrides, "launcher=joblib", "launcher.jobs=2", *places(tmp_path)]) == 0
    jobs = sweep_at(tmp_path).jobs
    stages = [finished_metrics(job)["stages"] for job in jobs]
    for shared in ("sft", "comparisons", "reward_model"):
        assert sorted("cache" in told[shared] for told in stages) == [False, True], shared
        assert stages[0][shared]["key"] == stages[1][shared]["key"]
    assert all("cache" not in told["ppo"] for told in stages)
    runs = [(job, offline_run.recorded(job.path, "ppo")) for job in jobs]
    assert len({run.run.run_id for _, run in runs}) == 2
    assert {run.run.run_group for _, run in runs} == {"sweep"}
    assert [run.config["kl"]["coef"] for _, run in runs] == [0.05, 0.2]


def test_the_command_of_a_wandb_agent_is_a_run(tmp_path: Path) -> None:
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
    with contextlib.chdir(tmp_path):
        assert main([*words[1:], *SMALL, "ppo.iterations=1", "paths.run_dir=run"]) == 0
    run = RunDirectory.open(tmp_path / "run")
    assert (run.config["kl"]["coef"], run.config["seed"]) == (0.05, 2)
    assert isinstance(finished_metrics(run)["objective"], float)
