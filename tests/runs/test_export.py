"""Exports: what plain Transformers and PEFT open computes what the run's model computed; whole, or not at all."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from tuned import KINDS, layers_of, peft

from rlhf_lightning.errors import ArtifactError, RlhfError, RunDirectoryError
from rlhf_lightning.models.adapters import POLICY, REWARD, adapter_names, adapter_parameters
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_classifier, load_policy, new_classifier, save_classifier, save_policy
from rlhf_lightning.models.tuning import tune
from rlhf_lightning.runs.export import export
from rlhf_lightning.runs.model_card import opening
from rlhf_lightning.stages.run_directory import RunDirectory

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
Trained = Callable[..., RunDirectory]


@pytest.fixture
def trained(
    finished_run: Callable[..., RunDirectory],
    make_policy: Callable[..., PreTrainedModel],
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Trained:
    """Builds runs whose stages ppo and reward_model left models that were tuned in a way; weights are random."""

    def build(kind: str = "none", **config: Any) -> RunDirectory:
        tuning = peft(kind)
        run = finished_run(peft=tuning.model_dump(mode="json"))
        base = tmp_path / "base"
        make_policy(**config).save_pretrained(base)
        words.save_pretrained(base)
        layers = layers_of(tuning)
        policy, reward = load_policy(ModelSource(str(base))), new_classifier(ModelSource(str(base)), ("reward",))
        for model, name in ((policy, POLICY), (reward, REWARD)):
            tune(model, tuning, name, words, seed=0)
            disturb(model, name)
        save_policy(policy, words, run.stage_dir("ppo"), layers)
        save_classifier(reward, words, run.stage_dir("reward_model"), layers)
        for stage in ("reward_model", "ppo"):
            (run.path / stage / "sample_log.jsonl").write_text("{}")
            run.add_artifact(stage, run.path / stage)
        return run

    return build


@torch.no_grad()
def disturb(model: PreTrainedModel, name: str) -> None:
    """A training that did something to every weight that is trained."""
    generator = torch.Generator().manual_seed(1)
    own = adapter_parameters(model, name) if name in adapter_names(model) else list(model.parameters())
    for parameter in own:
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    result: Tensor = model.eval()(input_ids=ids).logits
    return result


def policy_of(run: RunDirectory) -> PreTrainedModel:
    return load_policy(ModelSource(str(run.path / "ppo")))


def test_a_whole_model_is_copied_bit_for_bit_with_its_card_and_nothing_else(trained: Trained, tmp_path: Path) -> None:
    run = trained()
    (run.path / "ppo" / "value_head.safetensors").write_bytes(b"")
    done = export(run.path, stage=None, merge=False, target=tmp_path / "out")
    assert done.directory == tmp_path / "out"
    assert (done.model.stage, done.model.form) == ("ppo", "whole")
    assert set(done.files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    weights = [directory / "model.safetensors" for directory in (run.path / "ppo", tmp_path / "out")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(policy_of(run)))


@pytest.mark.parametrize("kind", KINDS)
def test_peft_alone_opens_an_exported_adapter(kind: str, trained: Trained, tmp_path: Path) -> None:
    run = trained(kind)
    done = export(run.path, stage="ppo", merge=False, target=None)
    assert done.directory == run.path / "exported" / "ppo"
    assert (done.model.form, done.model.method, done.model.base) == ("adapter", kind, str(tmp_path / "base"))
    assert "model.safetensors" not in done.files
    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(str(done.directory)))
    assert torch.allclose(theirs[:, -IDS.shape[1] :], logits(policy_of(run)), atol=1e-5)
    assert not torch.allclose(logits(policy_of(run)), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base")))


@pytest.mark.parametrize(
    ("kind", "tied"),
    [("lora", True), ("lora", False), ("dora", False), ("ia3", True), ("top_layers", True), ("top_layers", False)],
)
def test_plain_transformers_opens_a_merged_model(kind: str, tied: bool, trained: Trained, tmp_path: Path) -> None:
    run = trained(kind, tie_word_embeddings=tied)
    unmerged = logits(policy_of(run)).log_softmax(-1)
    done = export(run.path, stage=None, merge=True, target=None)
    assert done.directory == run.path / "exported" / "ppo-merged"
    assert not [name for name in done.files if "adapter" in name or "base_model" in name]
    shutil.rmtree(tmp_path / "base")  # nothing else is needed
    merged = AutoModelForCausalLM.from_pretrained(done.directory)
    assert torch.allclose(logits(merged).log_softmax(-1), unmerged, atol=1e-4)
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == tied


@pytest.mark.parametrize(
    ("kind", "merge"),
    [("lora", True), ("top_layers", True), ("lora", False), ("dora", False), ("ia3", False), ("prompt_tuning", False)],
)
def test_reward_models_are_exported_too(kind: str, merge: bool, trained: Trained) -> None:
    run = trained(kind)
    done = export(run.path, stage="reward_model", merge=merge, target=None)
    if merge:
        theirs = AutoModelForSequenceClassification.from_pretrained(done.directory)
        assert theirs.config.id2label == {0: "reward"}
    else:
        theirs = AutoPeftModelForSequenceClassification.from_pretrained(str(done.directory), num_labels=1)
    ours = load_classifier(ModelSource(str(run.path / "reward_model")))
    for ids in IDS.split(1):
        assert logits(ours, ids).abs() > 1e-2
        assert torch.allclose(logits(theirs, ids), logits(ours, ids), atol=1e-4)


@pytest.mark.parametrize("stage", ["ppo", "reward_model"])
@pytest.mark.parametrize("kind", ["none", "lora"])
def test_the_lines_in_the_card_open_it(
    stage: str,
    kind: str,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = export(trained(kind).path, stage=stage, merge=False, target=None)
    lines = opening(done.model)
    assert f"```python\n{lines}\n```" in (done.directory / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(done.directory)
    exec(lines, {})
    assert capsys.readouterr().out


@pytest.mark.parametrize(("tied", "reason"), [(True, "is tied to its output head"), (False, "would need rows in")])
def test_virtual_tokens_are_not_merged(tied: bool, reason: str, trained: Trained, tmp_path: Path) -> None:
    run = trained("prompt_tuning", tie_word_embeddings=tied)
    with pytest.raises(ArtifactError, match=f"cannot be merged.*{reason}.*\n.*\n.*without --merge"):
        export(run.path, stage="ppo", merge=True, target=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    assert export(run.path, stage="ppo", merge=False, target=tmp_path / "out").model.form == "adapter"


def test_merging_a_whole_model_is_a_copy(trained: Trained) -> None:
    done = export(trained().path, stage=None, merge=True, target=None)
    assert (done.model.form, done.directory.name) == ("whole", "ppo")


def test_an_empty_directory_is_filled_and_a_full_one_is_refused(trained: Trained, tmp_path: Path) -> None:
    run = trained()
    (tmp_path / "out").mkdir()
    assert export(run.path, stage=None, merge=False, target=tmp_path / "out").directory == tmp_path / "out"
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ArtifactError, match="target is taken"):
        export(run.path, stage=None, merge=False, target=tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="target is taken"):
        export(run.path, stage=None, merge=False, target=tmp_path / "file")
    with pytest.raises(ArtifactError, match="cannot be written: Not a directory"):
        export(run.path, stage=None, merge=False, target=tmp_path / "file" / "out")


def test_of_an_unfinished_run_only_a_named_stage_is_exported(trained: Trained) -> None:
    run = trained()
    artifacts = {"reward_model": "reward_model"}
    run.update_status(state="interrupted", artifacts=artifacts)
    with pytest.raises(ArtifactError, match=r"run is interrupted\.\n(.*\n)+.*resume=.*--stage reward_model"):
        export(run.path, stage=None, merge=False, target=None)
    with pytest.raises(ArtifactError, match="run is interrupted, and stage ppo has left no model"):
        export(run.path, stage="ppo", merge=False, target=None)
    run.update_status(state="running")
    with pytest.raises(ArtifactError, match="wait until it has ended"):
        export(run.path, stage="ppo", merge=False, target=None)
    done = export(run.path, stage="reward_model", merge=False, target=None)
    assert "The run is running: what came after" in (done.directory / "README.md").read_text(encoding="utf-8")


def test_a_stage_that_did_not_run_is_named(trained: Trained, tmp_path: Path) -> None:
    run = trained()
    with pytest.raises(ArtifactError, match=r"no model of stage sft\.\n(.*\n)+?.*--stage reward_model or ppo"):
        export(run.path, stage="sft", merge=False, target=None)
    run.update_status(artifacts={"evaluate": "evaluate"})
    with pytest.raises(ArtifactError, match=r"trained no model\.\n(.*\n)+?.*no other model"):
        export(run.path, stage=None, merge=False, target=None)
    with pytest.raises(RunDirectoryError, match="no run here"):
        export(tmp_path / "nowhere", stage=None, merge=False, target=None)


def test_an_artifact_that_is_gone_or_has_lost_its_base_is_an_error(trained: Trained, tmp_path: Path) -> None:
    run = trained("lora")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(RlhfError, match="base"):
        export(run.path, stage="ppo", merge=True, target=tmp_path / "out")
    shutil.rmtree(run.path / "ppo")
    with pytest.raises(RlhfError, match="ppo"):
        export(run.path, stage="ppo", merge=False, target=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    "refusal",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing(
    refusal: Exception, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()

    def full(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ArtifactError, match=r"cannot be written: .*No space left on device(.*\n)+.*free space"):
        export(run.path, stage=None, merge=False, target=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_an_interruption_leaves_nothing(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained()

    def interrupted(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_lightning.runs.export.model_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(run.path, stage=None, merge=False, target=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_the_base_of_an_adapter_is_known_by_its_weights(trained: Trained, tmp_path: Path) -> None:
    """Somebody trained the directory's model further: the adapter's updates mean nothing there."""
    run = trained("lora")
    base = load_policy(ModelSource(str(tmp_path / "base")))
    disturb(base, "none")
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ArtifactError, match="another base"):
        export(run.path, stage="ppo", merge=True, target=None)
    assert json.loads((run.path / "status.json").read_text())["state"] == "finished"
