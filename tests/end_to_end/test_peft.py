"""Adapters through the whole pipeline: from stage to stage, opened by others, interrupted, and moved on from."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_runs import (
    SMALL,
    assert_alike,
    cut_short_in_iteration,
    finished_metrics,
    placed,
    train,
    weights_and_records,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from tuned import KINDS

from rlhf_lightning.callbacks.checkpoints import checkpoints_in
from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_classifier, load_policy
from rlhf_lightning.tracking.history_file import read_history
from rlhf_lightning.worlds.courtesy import asset_path

CHOICES: dict[str, tuple[str, ...]] = {
    "lora": ("peft=lora", "peft.rank=4"),
    "dora": ("peft=dora", "peft.rank=4"),
    "ia3": ("peft=ia3",),
    "prompt_tuning": ("peft=prompt_tuning", "peft.virtual_tokens=4"),
    "top_layers": ("peft=top_layers", "peft.layers=1"),
}

REFERENCES = {"top_layers": "shared_trunk"}
"""Where the reference lives; under all other kinds it is the policy with its adapter switched."""

ALL_KINDS = [kind if kind == "lora" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module", autouse=True)
def without_plots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_lightning.experiment.pipeline.draw_plots", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunDirectory]:
    """A whole pipeline of each kind, run once."""
    done: dict[str, RunDirectory] = {}

    def run(kind: str) -> RunDirectory:
        if kind not in done:
            rates = ("ppo.learning_rate=1e-3", "callbacks.save_every=1")
            done[kind] = train(*SMALL, *CHOICES[kind], *rates, *placed(tmp_path_factory.mktemp(kind)))
        return done[kind]

    return run


def base_hash() -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in asset_path().iterdir()}


def first(run: RunDirectory, name: str) -> float:
    """What was logged first under that name."""
    return float(next(row.value for row in read_history(run.path) if row.name == name))


@torch.no_grad()
def said(model: Any, ids: Tensor) -> Tensor:
    """Log-probs of a policy, or the scores of a classifier; without what virtual tokens say."""
    logits: Tensor = model.eval()(input_ids=ids).logits
    return logits.log_softmax(-1)[:, -ids.shape[1] :] if logits.dim() == 3 else logits


def text_of(directory: Path) -> Tensor:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    ids: Tensor = tokenizer("please tell me how to burn the engine", return_tensors="pt")["input_ids"]
    return ids


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_artifact_opens_with_peft_alone(kind: str, runs: Callable[[str], RunDirectory]) -> None:
    before = base_hash()
    run = runs(kind)
    assert base_hash() == before
    base = asset_path()
    ids = text_of(base)
    plain = said(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), ids)
    for stage in ("sft", "ppo"):
        directory = run.path / stage
        theirs = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(directory)
        )
        ours = said(load_policy(ModelSource(str(directory))), ids)
        torch.testing.assert_close(said(theirs, ids), ours, atol=1e-5, rtol=0)
        assert (ours - plain).abs().max() > 1e-3, "something was learned"
        if kind != "prompt_tuning":
            merged: Any = theirs.merge_and_unload()
            torch.testing.assert_close(said(merged, ids), ours, atol=1e-4, rtol=0)
    directory = run.path / "reward_model"
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(classifier, str(directory))
    torch.testing.assert_close(
        said(theirs, ids), said(load_classifier(ModelSource(str(directory))), ids), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_stages_go_on_from_one_another(kind: str, runs: Callable[[str], RunDirectory]) -> None:
    run = runs(kind)
    stages = finished_metrics(run)["stages"]
    assert stages["ppo"]["reference"] == REFERENCES.get(kind, "adapter_off")
    # The reference is what PPO starts from, SFT's adapter included: no distance before the first update.
    assert abs(first(run, "objective/kl")) < 1e-4
    assert stages["ppo"]["kl"] > 1e-4
    log = (run.path / "run.log").read_text()
    assert "Reward model reward_model: on the policy's frozen weights." in log
    assert len(log.split("Reference: ")) == 2
    whole = (asset_path() / "model.safetensors").stat().st_size * 2  # it is in half precision there
    for stage in ("sft", "reward_model", "ppo"):
        directory = run.path / stage
        assert not (directory / "model.safetensors").exists()
        held = load_file(directory / "adapter_model.safetensors")
        assert (directory / "adapter_model.safetensors").stat().st_size < whole * (0.6 if kind == "top_layers" else 0.2)
        config = json.loads((directory / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(asset_path())
        assert all(tensor.dtype == torch.float32 for tensor in held.values())


PPO = ("debug=tiny", "logger=none", "pipeline=ppo", "ppo.learning_rate=1e-3", "ppo.iterations=1")


def inputs(policy: Path, reward: Path) -> list[str]:
    return [f"ppo.policy_from={policy}", f"ppo.reward_from={reward}"]


def test_a_policy_with_an_adapter_goes_on_as_a_whole(runs: Callable[[str], RunDirectory], tmp_path: Path) -> None:
    start = runs("lora").path
    run = train(*PPO, *inputs(start / "sft", start / "reward_model"), *placed(tmp_path))
    assert finished_metrics(run)["stages"]["ppo"]["reference"] == "frozen_copy"
    assert abs(first(run, "objective/kl")) < 1e-4
    ids = text_of(asset_path())
    whole = said(AutoModelForCausalLM.from_pretrained(run.path / "ppo"), ids)
    torch.testing.assert_close(whole, said(load_policy(ModelSource(str(run.path / "ppo"))), ids), atol=1e-6, rtol=0)
    assert "a model of its own (the policy trains all its weights (peft=none))" in (run.path / "run.log").read_text()


def test_an_adapter_on_a_whole_policy_that_the_reward_model_shares(tiny: RunDirectory, tmp_path: Path) -> None:
    """SFT of all weights; then adapters on what it left, for the reward model and the policy."""
    sft = tiny.path / "sft"
    told = ["debug=tiny", "logger=none", "pipeline=reward_model", "pipeline.stages=[reward_model]", *CHOICES["lora"]]
    told += [f"reward_model.backbone_from={sft}", f"reward_model.comparisons_from={tiny.path / 'comparisons'}"]
    reward = train(*told, *placed(tmp_path / "reward"))
    run = train(
        *PPO,
        *CHOICES["lora"],
        "model.share_backbone=true",
        *inputs(sft, reward.path / "reward_model"),
        *placed(tmp_path),
    )
    assert "on the policy's frozen weights" in (run.path / "run.log").read_text()
    assert abs(first(run, "objective/kl")) < 1e-4
    config = json.loads((run.path / "ppo" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(sft.resolve())
    # With a reward model of all weights there is nothing to share.
    run = train(*PPO, *CHOICES["lora"], *inputs(sft, tiny.path / "reward_model"), *placed(tmp_path / "whole"))
    log = (run.path / "run.log").read_text()
    assert "a model of its own (the reward model is a whole model, not an adapter)" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        ("peft=lora", "peft.rank=4", "reference=frozen_copy"),
        ("peft=lora", "peft.rank=4", "model.share_backbone=false"),
        ("peft=lora", "peft.rank=4", "ppo.critic=separate", "ppo.critic_warmup=1", "ppo.iterations=2"),
        ("peft=lora", "peft.rank=4", "ppo.critic=reward_model", "model.gradient_checkpointing=true"),
        ("peft=lora", "peft.rank=4", "ppo.kl_budget=0.01", "ppo.iterations=3", "ppo.learning_rate=1e-2"),
        ("peft=lora", "peft.rank=4", "model.dtype=bfloat16", "trainer.precision=32-true"),
        ("peft=lora", "peft.rank=4", "trainer.precision=bf16-mixed"),
    ],
    ids=lambda choice: choice[2],
)
def test_other_choices_hold_together(
    choice: tuple[str, ...], runs: Callable[[str], RunDirectory], tmp_path: Path
) -> None:
    start = runs("lora").path
    run = train(*PPO, *choice, *inputs(start / "sft", start / "reward_model"), *placed(tmp_path))
    assert finished_metrics(run)["stages"]["ppo"]["iterations"] >= 1
    assert load_file(run.path / "ppo" / "adapter_model.safetensors").keys() == (
        load_file(start / "sft" / "adapter_model.safetensors").keys()
    )


# An interruption.

INTERRUPTED = ("kl=adaptive", "ppo.iterations=4", "callbacks.save_every=1", "callbacks.save_every_steps=1")

SLOWER = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("top_layers", "prompt_tuning")]

RESUMED: dict[str, tuple[str, ...]] = {
    "lora": (*CHOICES["lora"], "ppo.critic=separate"),
    "top_layers": (*CHOICES["top_layers"], "ppo.critic=separate"),
    "prompt_tuning": CHOICES["prompt_tuning"],
}


@pytest.mark.parametrize("kind", ["lora", *SLOWER])
def test_an_interrupted_run_goes_on_from_what_was_trained_alone(
    kind: str, runs: Callable[[str], RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = runs(kind).path
    command = [*PPO, *RESUMED[kind], *INTERRUPTED, *inputs(start / "sft", start / "reward_model")]
    whole = train(*command, *placed(tmp_path / "whole"))
    with cut_short_in_iteration(2, monkeypatch):
        assert main(["train", *command, *placed(tmp_path / "cut")]) == 130
    run = RunDirectory.open(tmp_path / "cut" / "run")
    newest, *_ = checkpoints_in(run.checkpoint_dir("ppo"))
    state = torch.load(newest, weights_only=True)["state_dict"]
    trained = finished_metrics(whole)["stages"]["ppo"]["trainable_parameters"]
    # A critic on the policy's trunk has its weights under two names.
    assert sum({weight.data_ptr(): weight.numel() for weight in state.values()}.values()) == trained
    assert not any("base_layer" in name or "embed_tokens" in name for name in state)
    assert main(["train", f"resume={run.path}"]) == 0
    assert_alike(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_a_supervised_stage_goes_on_too(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"sft": "SupervisedFineTuning", "reward_model": "RewardModel"}[stage]
    kind = getattr(__import__(f"rlhf_lightning.algorithms.{stage}", fromlist=[module]), module)
    command = [
        *SMALL,
        *CHOICES["lora"],
        "sft.batch_size=8",
        "sft.micro_batch_size=4",
        "reward_model.micro_batch_size=4",
    ]
    command += ["callbacks.save_every_steps=2"]
    command += ["pipeline.stages=[sft,comparisons,reward_model]"]
    whole = train(*command, *placed(tmp_path / "whole"))
    steps, step = iter(range(10**6)), kind.training_step

    def interrupted(self: Any, *arguments: Any) -> Any:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "training_step", interrupted)
        assert main(["train", *command, *placed(tmp_path / "cut")]) == 130
    run = RunDirectory.open(tmp_path / "cut" / "run")
    newest, *_ = checkpoints_in(run.checkpoint_dir(stage))
    names = torch.load(newest, weights_only=True)["state_dict"].keys()
    assert names
    assert all("lora_" in name or "score" in name for name in names)
    assert main(["train", f"resume={run.path}"]) == 0
    assert weights_and_records(run) == weights_and_records(whole)


@pytest.mark.slow
def test_killed_at_random(runs: Callable[[str], RunDirectory], tmp_path: Path) -> None:
    start, dice, log = runs("top_layers").path, random.Random(1), tmp_path / "terminal.txt"
    command = [*PPO, *RESUMED["top_layers"], *INTERRUPTED, *inputs(start / "sft", start / "reward_model")]
    whole = train(*command, *placed(tmp_path / "whole"))
    rows, run = len(read_history(whole.path)), RunDirectory(tmp_path / "killed" / "run")
    rlhf = [sys.executable, "-m", "rlhf_lightning", "train"]
    with log.open("a") as terminal:
        process = subprocess.Popen(
            [*rlhf, *command, *placed(tmp_path / "killed")], cwd=tmp_path, stdout=terminal, stderr=terminal
        )
    deadline = time.monotonic() + 300
    while not run.path.exists() or len(read_history(run.path)) < rows * dice.uniform(0.3, 0.7):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed before it had finished"
    done = subprocess.run([*rlhf, f"resume={run.path}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_alike(run, whole)


@pytest.mark.slow
def test_a_run_whose_start_is_gone_cannot_go_on(
    runs: Callable[[str], RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Frozen weights are in no checkpoint: what the run started from must be there, and be the same."""
    start = tmp_path / "start"
    for stage in ("sft", "reward_model"):
        shutil.copytree(runs("lora").path / stage, start / stage)
    command = [*PPO, *RESUMED["lora"], *INTERRUPTED, *inputs(start / "sft", start / "reward_model")]
    with cut_short_in_iteration(2, monkeypatch):
        assert main(["train", *command, *placed(tmp_path / "cut")]) == 130
    shutil.rmtree(start / "sft")
    assert main(["train", f"resume={tmp_path / 'cut' / 'run'}"]) != 0
    assert str(start / "sft") in capsys.readouterr().err
