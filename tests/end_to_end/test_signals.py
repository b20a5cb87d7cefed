"""Ctrl-C and SIGTERM, sent to a real `rlhf train` in the middle of a stage: what was done until then is kept."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
from tiny_runs import TINY, fingerprints
from transformers import AutoModelForCausalLM

from rlhf_lightning.algorithms.checkpoints import checkpoints_in
from rlhf_lightning.runs import run as run_module
from rlhf_lightning.stages.run_directory import RunDirectory

ENDLESS = {
    "sft": ["sft.epochs=100000", "sft.max_steps=null"],
    "ppo": ["ppo.iterations=100000"],
    "evaluate": ["evaluate.policies=[" + ",".join(["sft", "ppo"] * 500) + "]"],
}
"""What makes a stage last longer than any test waits."""

TRAINING = ("sft", "reward_model", "ppo")
STAGES = ("sft", "comparisons", "reward_model", "ppo", "evaluate")


def under_way(run: Path, stage: str) -> bool:
    """Whether a stage is running, and, if it trains, has left a checkpoint."""
    if not (run / "overrides.txt").exists() or RunDirectory.open(run).status.stage != stage:
        return False
    return stage not in TRAINING or bool(checkpoints_in(run / "checkpoints" / stage))


@pytest.mark.parametrize(
    ("stage", "sent"), [("sft", signal.SIGINT), ("ppo", signal.SIGTERM), ("evaluate", signal.SIGINT)], ids=str
)
def test_an_interrupted_stage_leaves_a_checkpoint_a_status_and_what_came_before(
    filled: Callable[[str], Path], stage: str, sent: signal.Signals
) -> None:
    """The stages before it come from the cache."""
    outputs = filled("outputs")
    run = outputs / "run"
    process = forked.start(
        ["train", *TINY, f"paths.outputs={outputs}", f"paths.run_dir={run}", *ENDLESS[stage]], cwd=outputs
    )
    process.wait_for(lambda: under_way(run, stage))
    earlier = STAGES[: STAGES.index(stage)]
    before = {name: fingerprints(run / name) for name in earlier}
    time.sleep(0.3)  # into the work that follows the announcement
    process.send_signal(sent)
    assert process.wait(timeout=60) == 130, process.stderr

    interrupted = RunDirectory.open(run)
    status = interrupted.status
    assert (status.state, status.stage, status.error) == ("interrupted", stage, None)
    assert status.artifacts == {name: name for name in earlier}
    assert all(files and fingerprints(run / name) == files for name, files in before.items())
    if "sft" in earlier:
        AutoModelForCausalLM.from_pretrained(run / "sft")
    assert tuple((interrupted.metrics or {"stages": []})["stages"]) == earlier

    printed = process.stdout + process.stderr
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


def import_slowly() -> None:
    """In a process of its own: what comes between the run's directory and its first stage takes long."""
    run_module._run_pipeline = lambda *_: time.sleep(600)


def test_an_interruption_before_the_first_stage_is_no_failure(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = forked.start(
        ["train", "debug=tiny", "logger=none", f"paths.run_dir={run}"], cwd=tmp_path, body=(import_slowly, ())
    )
    process.wait_for(lambda: (run / "provenance.json").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130, process.stderr
    assert "Interrupted. To go on: " in process.stderr
    assert "Traceback" not in process.stderr
    assert RunDirectory.open(run).status.state == "interrupted"
