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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from tiny_runs import (
    LORA,
    SMALL,
    TINY,
    assert_alike,
    cut_short_in_iteration,
    fingerprints,
    finished_metrics,
    logged,
    placed,
    train,
    weights_and_records,
)

from rlhf_lightning.algorithms.checkpoints import checkpoints_in
from rlhf_lightning.algorithms.reward_model import RewardModel
from rlhf_lightning.algorithms.sft import SupervisedFineTuning
from rlhf_lightning.cli.main import main
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.tracking.history_file import series

PPO = (
    *SMALL,
    "cache=off",
    "pipeline=ppo",
    "ppo.learning_rate=1e-3",
    "rollout.batch_size=8",
    "ppo.minibatches=2",
    "kl=adaptive",
    "callbacks.sample_log_every=2",
    "callbacks.keep_last=2",
)


def going_on_from(run: RunDirectory) -> list[str]:
    """Where PPO finds what the stages before it left."""
    return [f"ppo.policy_from={run.path / 'sft'}", f"ppo.reward_from={run.path / 'reward_model'}"]


def of_ppo(overrides: Any) -> list[str]:
    """The overrides without those of stages that do not run."""
    return [override for override in overrides if not override.startswith(("data.demonstrations", "comparisons."))]


@pytest.fixture(scope="session")
def uninterrupted(tiny: RunDirectory, once: Callable[..., Path]) -> RunDirectory:
    command = [*of_ppo(PPO), "ppo.iterations=4", *going_on_from(tiny)]
    return RunDirectory.open(once("uninterrupted", lambda directory: train(*command, *placed(directory))) / "run")


@pytest.fixture(scope="session")
def cut_short(tiny: RunDirectory, once: Callable[..., Path]) -> Path:
    """The directory of a run that was cut short in the third iteration of PPO, with two checkpoints."""

    def build(directory: Path) -> None:
        command = [*of_ppo(PPO), "ppo.iterations=4", *going_on_from(tiny), *placed(directory)]
        with pytest.MonkeyPatch.context() as patch, cut_short_in_iteration(2, patch):
            assert main(["train", *command]) == 130

    run = RunDirectory.open(once("cut_short", build) / "run")
    assert (run.status.state, run.status.stage) == ("interrupted", "ppo")
    names = [path.name for path in checkpoints_in(run.checkpoint_dir("ppo"))]
    assert names == ["iteration=000002.ckpt", "iteration=000001.ckpt"]
    return run.path


@pytest.fixture
def interrupted(cut_short: Path, tmp_path: Path) -> RunDirectory:
    """A copy of that run: the place of a run may change."""
    shutil.copytree(cut_short, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


def test_ppo_goes_on_between_two_iterations(
    interrupted: RunDirectory, uninterrupted: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_short_in_iteration(3, monkeypatch):
        assert main(["train", f"resume={interrupted.path}"]) == 130
    # Half an artifact, and half a line of the history, as a kill may leave them.
    (interrupted.path / "ppo" / "model.safetensors").write_bytes(b"half")
    with (interrupted.path / "history.csv").open("a") as file:
        file.write("ppo,40,80,objec")
    assert main(["train", f"resume={interrupted.path}"]) == 0
    assert_alike(interrupted, uninterrupted)


def test_a_damaged_checkpoint_is_passed_over(
    interrupted: RunDirectory, uninterrupted: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, _ = checkpoints_in(interrupted.checkpoint_dir("ppo"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert main(["train", f"resume={interrupted.path}"]) == 0
    printed = capsys.readouterr().err
    assert f"{newest} is damaged; it is passed over" in printed
    assert "goes on from checkpoints/ppo/iteration=000001.ckpt" in printed
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


SFT = ("pipeline=sft", *("debug=tiny", "logger=none", "data.demonstrations=32", "sft.epochs=2", "sft.max_steps=null"))
"""Six optimizer steps of two micro-batches, in two epochs."""

REWARD_MODEL = ("pipeline=reward_model", "pipeline.stages=[reward_model]", "debug=tiny", "logger=none")
"""Four or five steps of two micro-batches."""


@contextmanager
def cut_short_in_step(number: int, kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C before a micro-batch, counted from 0."""
    steps, training_step = iter(range(10**6)), kind.training_step

    def interrupted(self: Any, *arguments: Any) -> Any:
        if next(steps) == number:
            raise KeyboardInterrupt
        return training_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "training_step", interrupted)
        yield


@pytest.mark.parametrize("stage", ["sft", pytest.param("reward_model", marks=pytest.mark.slow)])
def test_a_supervised_stage_goes_on_between_two_steps(
    stage: str, tiny: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short in the middle of an epoch, and of an optimizer step."""
    if stage == "sft":
        command, kind, step = [*SFT, "sft.micro_batch_size=4"], SupervisedFineTuning, 9
    else:
        inputs = {"backbone_from": "sft", "comparisons_from": "comparisons"}
        command = [*REWARD_MODEL, *(f"reward_model.{key}={tiny.path / name}" for key, name in inputs.items())]
        command += [*LORA, "reward_model.max_steps=null", "reward_model.micro_batch_size=4"]
        kind, step = RewardModel, 7
    command += ["cache=off", "callbacks.save_every_steps=2"]
    whole = train(*command, *placed(tmp_path / "whole"))
    with cut_short_in_step(step, kind, monkeypatch):
        assert main(["train", *command, *placed(tmp_path / "cut")]) == 130
    run = RunDirectory(tmp_path / "cut" / "run")
    assert run.status.stage == stage
    newest, *_ = checkpoints_in(run.checkpoint_dir(stage))
    names = torch.load(newest, weights_only=True)["state_dict"].keys()
    assert names
    assert stage == "sft" or all("lora_" in name or "score" in name for name in names), "only what is trained"
    assert main(["train", f"resume={run.path}"]) == 0
    assert_alike(run, whole)


def test_a_stage_that_does_not_train_is_done_again(
    tmp_path: Path, tiny: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = ("pipeline.stages=[comparisons]", f"comparisons.policy_from={tiny.path / 'sft'}")
    sizes = [override for override in SMALL if not override.startswith("data.demonstrations")]
    with monkeypatch.context() as patch:
        patch.setattr(STAGES["comparisons"], "run", lambda context: _half_done(context.directory))
        assert main(["train", *sizes, *inputs, *placed(tmp_path)]) == 130
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert fingerprints(tmp_path / "run" / "comparisons") == fingerprints(tiny.path / "comparisons")


def _half_done(directory: Path) -> Any:
    (directory / "train.jsonl").write_text('{"half": ')
    (directory / "rest").mkdir()
    raise KeyboardInterrupt


def test_a_wandb_run_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "run")
    with cut_short_in_step(1, SupervisedFineTuning, monkeypatch):
        assert main(["train", *logged(*SFT), *placed(tmp_path)]) == 130
    before = json.loads((run.path / "wandb" / "sft.json").read_text())
    assert main(["train", f"resume={run.path}"]) == 0
    after = json.loads((run.path / "wandb" / "sft.json").read_text())
    assert (after["id"], after["name"], after["group"]) == (before["id"], before["name"], before["group"])
    assert after["directory"] != before["directory"]


STATEFUL = {
    "lora": [  # an update that ends early, a critic of its own, running statistics
        *(*LORA, "ppo.target_kl=1e-4", "ppo.micro_batch_size=2", "ppo.critic_warmup=1"),
        *("ppo.critic=separate", "reward.running_normalization=true"),
    ],
    "top_layers": [  # a budget that is used up, KL in the loss, recomputed activations
        *("peft=top_layers", "peft.layers=1", "ppo.kl_budget=0.3", "ppo.learning_rate=1e-2", "kl.coef=0.01"),
        *("kl.estimator=exact", "kl.apply_to=loss", "ppo.entropy_coef=0.01", "model.gradient_checkpointing=true"),
    ],
}
"""What has a state of its own that an interruption must not lose."""


@pytest.mark.parametrize("kind", STATEFUL)
def test_whatever_has_a_state_keeps_it(
    kind: str, adapted: Callable[[str], RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*of_ppo(PPO), "ppo.iterations=2", *STATEFUL[kind], *going_on_from(adapted(kind))]
    command += ["reward.standardize_on_reference=null"]
    whole = train(*command, *placed(tmp_path / "whole"))
    figures = finished_metrics(whole)["stages"]["ppo"]
    assert figures["iterations"] > 1
    with cut_short_in_iteration(figures["iterations"] - 1, monkeypatch):
        assert main(["train", *command, *placed(tmp_path / "cut")]) == 130
    run = RunDirectory.open(tmp_path / "cut" / "run")
    newest, *_ = checkpoints_in(run.checkpoint_dir("ppo"))
    state = torch.load(newest, weights_only=True)["state_dict"]
    # A critic on the policy's trunk has its weights under two names.
    held = sum({weight.data_ptr(): weight.numel() for weight in state.values()}.values())
    assert held == figures["trainable_parameters"]
    assert not any("base_layer" in name or "embed_tokens" in name for name in state)
    assert main(["train", f"resume={run.path}"]) == 0
    assert_alike(run, whole)


def test_a_run_whose_start_is_gone_cannot_go_on(
    adapted: Callable[[str], RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Frozen weights are in no checkpoint: what the run started from must be there, and be the same."""
    start = RunDirectory(tmp_path / "start")
    for stage in ("sft", "reward_model"):
        shutil.copytree(adapted("lora").path / stage, start.path / stage)
    with cut_short_in_iteration(0, monkeypatch):
        assert main(["train", *of_ppo(PPO), *LORA, *going_on_from(start), *placed(tmp_path / "cut")]) == 130
    shutil.rmtree(start.path / "sft")
    assert main(["train", f"resume={tmp_path / 'cut' / 'run'}"]) != 0
    assert str(start.path / "sft") in capsys.readouterr().err


def test_killed_twice_at_random(tmp_path: Path, tiny: RunDirectory) -> None:
    run, dice = RunDirectory(tmp_path / "run"), random.Random(1)
    told = [*TINY, "cache=off", *placed(tmp_path)]
    moments: list[Callable[[], bool]] = [
        lambda: run.path.exists() and bool(checkpoints_in(run.checkpoint_dir("reward_model"))),
        lambda: len(series(run.path, "ppo", "objective/score")) == 1,
    ]
    for moment in moments:
        process = forked.start(["train", *told], cwd=tmp_path)
        process.wait_for(moment)
        time.sleep(dice.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed before it had finished"
        assert run.status.state == "running"
        before, told = weights_and_records(run), [f"resume={run.path}"]
    assert main(["train", *told]) == 0
    assert_alike(run, tiny)
    after = weights_and_records(run)
    finished = ("sft/", "comparisons/", "reward_model/")
    assert all(after[name] == digest for name, digest in before.items() if name.startswith(finished))
