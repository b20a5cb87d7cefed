"""Adapters through the whole pipeline: from stage to stage, opened by others, and moved on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_runs import ADAPTED, LORA, ONE_ITERATION, finished_metrics, placed, train
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_classifier, load_policy
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.tracking.history_file import read_history
from rlhf_lightning.worlds.courtesy import asset_path

REFERENCES = {"top_layers": "shared_trunk"}
"""Where the reference lives; under all other kinds it is the policy with its adapter switched."""

KINDS = [pytest.param(kind, marks=() if kind == "lora" else pytest.mark.slow) for kind in ADAPTED]


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


@pytest.mark.parametrize("kind", KINDS)
def test_every_artifact_opens_with_peft_alone(kind: str, adapted: Callable[[str], RunDirectory]) -> None:
    before = base_hash()
    run = adapted(kind)
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
    labels = 2 if run.config["reward_model"]["head"] == "classifier" else 1
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(classifier, str(directory))
    torch.testing.assert_close(
        said(theirs, ids), said(load_classifier(ModelSource(str(directory))), ids), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_stages_go_on_from_one_another(kind: str, adapted: Callable[[str], RunDirectory]) -> None:
    run = adapted(kind)
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


PPO = (*ONE_ITERATION, "pipeline=ppo", "ppo.learning_rate=1e-3")


def inputs(policy: Path, reward: Path) -> list[str]:
    return [f"ppo.policy_from={policy}", f"ppo.reward_from={reward}"]


def test_a_policy_with_an_adapter_goes_on_as_a_whole(adapted: Callable[[str], RunDirectory], tmp_path: Path) -> None:
    start = adapted("lora").path
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
    told = [*ONE_ITERATION[:2], "pipeline=reward_model", "pipeline.stages=[reward_model]", *LORA]
    told += [f"reward_model.backbone_from={sft}", f"reward_model.comparisons_from={tiny.path / 'comparisons'}"]
    reward = train(*told, *placed(tmp_path / "reward"))
    run = train(
        *PPO,
        *LORA,
        "model.share_backbone=true",
        *inputs(sft, reward.path / "reward_model"),
        *placed(tmp_path),
    )
    assert "on the policy's frozen weights" in (run.path / "run.log").read_text()
    assert abs(first(run, "objective/kl")) < 1e-4
    config = json.loads((run.path / "ppo" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(sft.resolve())
    # With a reward model of all weights there is nothing to share.
    run = train(*PPO, *LORA, *inputs(sft, tiny.path / "reward_model"), *placed(tmp_path / "whole"))
    log = (run.path / "run.log").read_text()
    assert "a model of its own (the reward model is a whole model, not an adapter)" in log


@pytest.mark.parametrize(
    "choice",
    [
        (
            *("reference=frozen_copy", "model.dtype=bfloat16", "trainer.precision=32-true"),
            *("ppo.critic=separate", "ppo.critic_warmup=1", "ppo.iterations=2"),
        ),
        (
            *("model.share_backbone=false", "trainer.precision=bf16-mixed"),
            *("ppo.critic=reward_model", "model.gradient_checkpointing=true"),
        ),
    ],
    ids=["reference of its own, half precision", "nothing shared, mixed precision"],
)
def test_other_choices_hold_together(
    choice: tuple[str, ...], adapted: Callable[[str], RunDirectory], tmp_path: Path
) -> None:
    start = adapted("lora").path
    sizes = ("rollout.batch_size=8", "rollout.max_new_tokens=8")
    run = train(*PPO, *sizes, *LORA, *choice, *inputs(start / "sft", start / "reward_model"), *placed(tmp_path))
    assert finished_metrics(run)["stages"]["ppo"]["iterations"] >= 1
    assert load_file(run.path / "ppo" / "adapter_model.safetensors").keys() == (
        load_file(start / "sft" / "adapter_model.safetensors").keys()
    )
