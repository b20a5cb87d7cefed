"""An interrupted run that goes on ends as one that never was: the same history, the same weights, bit by bit.

Real runs through the command line, cut short in this process by an exception, or by SIGKILL in one of their own.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    SMALL,
    assert_alike,
    cut_short_in_iteration,
    finished_metrics,
    placed,
    weights_and_records,
)

from rlhf_lightning.algorithms.sft import SupervisedFineTuning
from rlhf_lightning.callbacks.checkpoints import checkpoints_in
from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.stages import STAGE_FUNCTIONS
from rlhf_lightning.tracking.history_file import read_history

SIZES = (
    *SMALL,
    "cache=off",
    "sft.epochs=2",
    "sft.batch_size=8",
    "sft.micro_batch_size=4",
    "reward_model.micro_batch_size=4",
    "ppo.iterations=5",
    "ppo.learning_rate=1e-3",
    "kl=adaptive",
    "callbacks.diary_every=2",
    "callbacks.save_every=1",
    "callbacks.save_every_steps=2",
)
"""The whole pipeline; SFT takes 14 or 16 optimizer steps of two micro-batches, in two epochs."""

INPUTS = {"policy_from": "sft", "reward_from": "reward_model"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = tmp_path_factory.mktemp("uninterrupted")
    assert main(["train", *SIZES, *placed(directory)]) == 0
    return RunDirectory.open(directory / "run")


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was cut short in the fourth iteration of PPO, with two checkpoints."""
    directory = tmp_path_factory.mktemp("cut_short")
    with pytest.MonkeyPatch.context() as patch, cut_short_in_iteration(3, patch):
        assert main(["train", *SIZES, *placed(directory)]) == 130
    run = RunDirectory.open(directory / "run")
    assert (run.status.state, run.status.stage) == ("interrupted", "ppo")
    names = [path.name for path in checkpoints_in(run.checkpoint_dir("ppo"))]
    assert names == ["iteration=000003.ckpt", "iteration=000002.ckpt"]
    return run.path


@pytest.fixture
def interrupted(cut_short: Path, tmp_path: Path) -> RunDirectory:
    """A copy of that run: the place of a run may change."""
    shutil.copytree(cut_short, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


def test_ppo_goes_on_between_two_iterations(
    interrupted: RunDirectory, uninterrupted: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights_and_records(interrupted)
    with cut_short_in_iteration(4, monkeypatch):
        assert main(["train", f"resume={interrupted.path}"]) == 130
    # Half an artifact, and half a line of the history, as a kill may leave them.
    (interrupted.path / "ppo" / "model.safetensors").write_bytes(b"half")
    with (interrupted.path / "history.csv").open("a") as file:
        file.write("ppo,40,80,objec")
    assert main(["train", f"resume={interrupted.path}"]) == 0
    assert_alike(interrupted, uninterrupted)
    after = weights_and_records(interrupted)
    assert all(after[name] == digest for name, digest in before.items() if "ppo" not in name)


def test_a_damaged_checkpoint_is_passed_over(
    interrupted: RunDirectory, uninterrupted: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, _ = checkpoints_in(interrupted.checkpoint_dir("ppo"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert main(["train", f"resume={interrupted.path}"]) == 0
    printed = capsys.readouterr().err
    assert f"{newest} is damaged; it is passed over" in printed
    assert "goes on from checkpoints/ppo/iteration=000002.ckpt" in printed
    assert_alike(interrupted, uninterrupted)


def test_without_a_readable_checkpoint_the_stage_starts_anew(
    interrupted: RunDirectory, uninterrupted: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, older = checkpoints_in(interrupted.checkpoint_dir("ppo"))
    newest.write_bytes(bytes(1000))  # as a power failure leaves it
    content = bytearray(older.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight
    older.write_bytes(content)
    assert main(["train", f"resume={interrupted.path}"]) == 0
    assert "the stage starts anew" in capsys.readouterr().err
    assert_alike(interrupted, uninterrupted)


class Code:
    """Pickled, it is a command that runs when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("kind", ["archive", "bare pickle"])
def test_a_checkpoint_with_code_is_refused(
    interrupted: RunDirectory, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, _ = checkpoints_in(interrupted.checkpoint_dir("ppo"))
    content = torch.load(newest, weights_only=True) | {"more": Code(tmp_path / "proof")}
    if kind == "archive":
        torch.save(content, newest)
    else:
        newest.write_bytes(pickle.dumps(Code(tmp_path / "proof")))
    assert main(["train", f"resume={interrupted.path}"]) == 1
    printed = capsys.readouterr().err
    assert "loading it could run code" in printed
    reason = {"archive": "it names posix.system", "bare pickle": "a bare pickle"}[kind]
    assert f"{newest} ({reason})" in printed
    assert not (tmp_path / "proof").exists()
    status = interrupted.status
    assert (status.state, status.stage) == ("failed", "ppo")


@pytest.mark.parametrize("stage", ["sft", pytest.param("reward_model", marks=pytest.mark.slow)])
def test_a_supervised_stage_goes_on_between_two_steps(
    stage: str, tmp_path: Path, uninterrupted: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, module = RunDirectory(tmp_path / "run"), {"sft": "SupervisedFineTuning", "reward_model": "RewardModel"}[stage]
    kind = getattr(__import__(f"rlhf_lightning.algorithms.{stage}", fromlist=[module]), module)
    steps = iter(range(10**6))
    train = kind.training_step

    def interrupted(self: Any, *arguments: Any) -> Any:
        if next(steps) == (21 if stage == "sft" else 7):  # in the middle of an epoch, and of an optimizer step
            raise KeyboardInterrupt
        return train(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "training_step", interrupted)
        assert main(["train", *SIZES, *placed(tmp_path)]) == 130
    assert run.status.stage == stage
    assert checkpoints_in(run.checkpoint_dir(stage))
    assert main(["train", f"resume={run.path}"]) == 0
    assert_alike(run, uninterrupted)


@pytest.mark.slow
def test_a_stage_that_does_not_train_is_done_again(
    tmp_path: Path, uninterrupted: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(STAGE_FUNCTIONS, "comparisons", lambda context: _half_done(context.directory))
        assert main(["train", *SIZES, *placed(tmp_path)]) == 130
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert_alike(RunDirectory.open(tmp_path / "run"), uninterrupted)


def _half_done(directory: Path) -> Any:
    (directory / "train.jsonl").write_text('{"half": ')
    (directory / "rest").mkdir()
    raise KeyboardInterrupt


def test_a_wandb_run_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, train = iter(range(10**6)), SupervisedFineTuning.training_step

    def interrupted(self: Any, *arguments: Any) -> Any:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return train(self, *arguments)

    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(SupervisedFineTuning, "training_step", interrupted)
        logger = ["pipeline=sft", "logger=wandb", "logger.mode=offline", "sft.batch_size=8", "sft.micro_batch_size=8"]
        assert main(["train", "debug=tiny", "data.demonstrations=64", *logger, *placed(tmp_path)]) == 130
    before = json.loads((run.path / "wandb" / "sft.json").read_text())
    assert main(["train", f"resume={run.path}"]) == 0
    after = json.loads((run.path / "wandb" / "sft.json").read_text())
    assert (after["id"], after["name"], after["group"]) == (before["id"], before["name"], before["group"])
    assert after["directory"] != before["directory"]


STATEFUL = {
    "an update that ends early, a critic of its own, running statistics": [
        *("ppo.target_kl=1e-4", "ppo.micro_batch_size=2", "ppo.critic_warmup=1"),
        *("ppo.critic=separate", "reward.running_normalisation=true"),
    ],
    "a budget that is used up, KL in the loss, recomputed activations": [
        *("ppo.kl_budget=0.3", "ppo.critic=reward_model", "kl.coef=0.01"),
        *("kl.estimator=exact", "kl.apply_to=loss", "ppo.entropy_coef=0.01", "model.gradient_checkpointing=true"),
    ],
}
"""What has a state of its own that an interruption must not lose."""


@pytest.mark.slow
@pytest.mark.parametrize("told", STATEFUL.values(), ids=STATEFUL)
def test_whatever_has_a_state_keeps_it(
    told: list[str], uninterrupted: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "debug=tiny", "logger=none", "pipeline=ppo", "kl=adaptive", "callbacks.save_every=1", *told]
    command += ["ppo.iterations=5", "ppo.learning_rate=1e-3", "reward.standardise_on_reference=null"]
    command += [f"ppo.{key}={uninterrupted.path / stage}" for key, stage in INPUTS.items()]
    assert main([*command, *placed(tmp_path / "whole")]) == 0
    whole = RunDirectory.open(tmp_path / "whole" / "run")
    iterations = finished_metrics(whole)["stages"]["ppo"]["iterations"]
    assert iterations > 1
    for number in {1, iterations - 1}:
        with cut_short_in_iteration(number, monkeypatch):
            assert main([*command, *placed(tmp_path / f"cut_{number}")]) == 130
        run = RunDirectory.open(tmp_path / f"cut_{number}" / "run")
        assert main(["train", f"resume={run.path}"]) == 0
        assert_alike(run, whole)


@pytest.mark.slow
def test_killed_three_times_at_random(tmp_path: Path, uninterrupted: RunDirectory) -> None:
    run, log, dice = RunDirectory(tmp_path / "run"), tmp_path / "terminal.txt", random.Random(1)
    rows = len(read_history(uninterrupted.path))
    start = [sys.executable, "-m", "rlhf_lightning", "train"]
    # Each third of the run once, at a moment of its own.
    for third in range(3):
        told = [f"resume={run.path}"] if third else [*SIZES, *placed(tmp_path)]
        moment = dice.uniform(third, third + 1) / 3 * rows
        with log.open("a") as terminal:
            process = subprocess.Popen([*start, *told], cwd=tmp_path, stdout=terminal, stderr=terminal)
        deadline = time.monotonic() + 300
        while len(read_history(run.path)) < moment:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed before it had finished"
        assert run.status.state == "running"
    done = subprocess.run([*start, f"resume={run.path}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_alike(run, uninterrupted)
