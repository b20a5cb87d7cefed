"""Ctrl-C and SIGTERM, sent to a real `rlhf train` in the middle of a stage: what was done until then is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import fingerprints
from transformers import AutoModelForCausalLM

from rlhf_lightning.callbacks.checkpoints import checkpoints_in
from rlhf_lightning.experiment.run_directory import RunDirectory

PATIENCE = 120.0
"""Seconds until a stage must have got under way; importing torch takes most of it on a busy machine."""

ENDLESS = {
    "sft": ["sft.epochs=100000"],
    "ppo": ["ppo.iterations=100000"],
    "evaluate": ["evaluate.policies=[" + ",".join(["sft", "ppo"] * 500) + "]"],
}
"""What makes a stage last longer than any test waits."""

TRAINING = ("sft", "reward_model", "ppo")
STAGES = ("sft", "comparisons", "reward_model", "ppo", "evaluate")


def until(happened: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def under_way(run: Path, stage: str) -> bool:
    """Whether a stage is running, and, if it trains, has left a checkpoint."""
    if not (run / "overrides.txt").exists() or RunDirectory.open(run).status.stage != stage:
        return False
    return stage not in TRAINING or bool(checkpoints_in(run / "checkpoints" / stage))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sent"), [("sft", signal.SIGINT), ("ppo", signal.SIGTERM), ("evaluate", signal.SIGINT)], ids=str
)
def test_an_interrupted_stage_leaves_a_checkpoint_a_status_and_what_came_before(
    tmp_path: Path, stage: str, sent: signal.Signals
) -> None:
    run, log = tmp_path / "run", tmp_path / "terminal.txt"
    sizes = ["debug=tiny", "logger=none", "data.demonstrations=64", "comparisons.held_out_fraction=0.25"]
    sizes += ["callbacks.save_every=1", "callbacks.save_every_steps=1"]
    command = [sys.executable, "-m", "rlhf_lightning", "train", *sizes, f"paths.run_dir={run}", *ENDLESS[stage]]
    with log.open("w") as terminal:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=terminal, stderr=terminal, text=True)
    try:
        until(lambda: under_way(run, stage), process, log)
        earlier = STAGES[: STAGES.index(stage)]
        before = {name: fingerprints(run / name) for name in earlier}
        time.sleep(0.3)  # into the work that follows the announcement
        process.send_signal(sent)
        assert process.wait(timeout=60) == 130, log.read_text()
    finally:
        process.kill()

    interrupted = RunDirectory.open(run)
    status = interrupted.status
    assert (status.state, status.stage, status.error) == ("interrupted", stage, None)
    assert status.artifacts == {name: name for name in earlier}
    assert all(files and fingerprints(run / name) == files for name, files in before.items())
    if "sft" in earlier:
        AutoModelForCausalLM.from_pretrained(run / "sft")
    assert tuple((interrupted.metrics or {"stages": []})["stages"]) == earlier

    printed = log.read_text()
    assert f"Interrupted. To go on: rlhf train resume={run.name}" in printed
    assert "Traceback" not in printed
    assert not list(run.rglob("*.part")), "nothing is left half written"
    if stage not in TRAINING:
        assert not (run / "checkpoints").exists()
        return
    checkpoint, *_ = checkpoints_in(run / "checkpoints" / stage)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] > 0
    assert saved["optimizer_states"]
    assert all(torch.isfinite(weight).all() for weight in saved["state_dict"].values())


@pytest.mark.slow
def test_an_interruption_before_the_first_stage_is_no_failure(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "rlhf_lightning", "train", "debug=tiny", "logger=none", f"paths.run_dir={run}"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        deadline = time.monotonic() + PATIENCE
        while not (run / "run.log").exists():  # torch is being imported
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, printed
    assert "Interrupted. To go on: " in printed
    assert "Traceback" not in printed
    assert RunDirectory.open(run).status.state == "interrupted"
