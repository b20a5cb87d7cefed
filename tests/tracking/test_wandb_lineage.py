"""Artifacts of W&B: their names, contents and versions, read back from offline files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from offline_run import recorded

from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.tracking.naming import Artifact, model_artifact, stage_artifact
from rlhf_lightning.tracking.wandb_client import Content, wandb_artifact
from rlhf_lightning.tracking.wandb_run import RunCard, WandbRun, WandbSink

KEY = "0123456789abcdef" * 4


def model_in(directory: Path) -> Path:
    (directory / "deeper").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "deeper" / "config.json").write_text("{}")
    return directory


def log(run_dir: Path, stage: str, content: Content | None, taken: Artifact, left: Artifact) -> None:
    card = RunCard("test", None, "group", stage, stage, [], None, {}, STAGES[stage].logged)
    with WandbRun(card, run_dir, "offline") as tracked:
        sink = WandbSink(tracked, content)
        sink.log_input_artifact(taken)
        sink.log_output_artifact(left)


def test_two_jobs_that_share_a_stage_share_its_artifact(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job trains SFT; another has its copy from the stage cache. Name and version are the same."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    base = model_artifact("courtesy", model_in(tmp_path / "base"))
    trained = stage_artifact("sft", KEY, model_in(tmp_path / "0" / "sft"), {"peft": "lora", "api_key": "sk-1"})
    cached = stage_artifact("sft", KEY, model_in(tmp_path / "1" / "sft"), {})
    policy = stage_artifact("ppo", KEY[::-1], model_in(tmp_path / "1" / "ppo"), {})
    log(tmp_path / "0", "sft", "reference", base, trained)
    log(tmp_path / "1", "ppo", "reference", cached, policy)
    sft, ppo = recorded(tmp_path / "0", "sft"), recorded(tmp_path / "1", "ppo")

    assert list(sft.taken) == ["model-courtesy"]
    assert list(sft.left) == list(ppo.taken) == ["sft-0123456789ab"]
    assert sft.left["sft-0123456789ab"].digest == ppo.taken["sft-0123456789ab"].digest
    assert sft.left["sft-0123456789ab"].type == "sft"
    assert json.loads(sft.left["sft-0123456789ab"].metadata) == {"peft": "lora", "api_key": "<redacted>"}
    assert list(ppo.left) == ["ppo-fedcba987654"]
    assert (sft.exit_code, ppo.exit_code) == (0, 0)
    captured = capfd.readouterr()
    assert "wandb" not in captured.out + captured.err, "the terminal is ours"
    assert not (tmp_path / "home" / ".local").exists(), "copies lie with the run"


def files_of(artifact: Any) -> dict[str, tuple[bool, bool]]:
    """Of each file, whether it is a reference, and whether it would be uploaded."""
    return {entry["path"]: ("ref" in entry, "local_path" in entry) for entry in artifact.manifest["contents"]}


def test_weights_are_uploaded_only_where_that_was_asked_for(tmp_path: Path) -> None:
    left = stage_artifact("sft", KEY, model_in(tmp_path / "sft"), {})
    taken = stage_artifact("comparisons", KEY, model_in(tmp_path / "comparisons"), {})
    log(tmp_path / "a", "sft", "reference", taken, left)
    log(tmp_path / "b", "sft", "upload", taken, left)
    log(tmp_path / "c", "sft", None, taken, left)
    by_reference, uploaded, none = (recorded(tmp_path / name, "sft") for name in "abc")
    both = ("deeper/config.json", "model.safetensors")

    assert files_of(by_reference.left["sft-0123456789ab"]) == dict.fromkeys(both, (True, False))
    assert files_of(uploaded.left["sft-0123456789ab"]) == dict.fromkeys(both, (False, True))
    assert files_of(uploaded.taken["comparisons-0123456789ab"]) == dict.fromkeys(both, (True, False))
    assert uploaded.left["sft-0123456789ab"].digest == by_reference.left["sft-0123456789ab"].digest
    assert none.taken == none.left == {}


def test_a_version_is_told_by_content(tmp_path: Path) -> None:
    def version(directory: Path) -> str:
        return wandb_artifact(stage_artifact("sft", KEY, directory, {"seed": 1}), "reference").digest

    first, second = model_in(tmp_path / "a"), model_in(tmp_path / "b")
    assert version(first) == version(second)
    (second / "model.safetensors").write_bytes(b"Weights")
    assert version(first) != version(second)


def test_a_model_of_the_hub_is_named_by_its_address() -> None:
    place = "https://user:secret@huggingface.co/some/model/tree/main"
    made = wandb_artifact(model_artifact("some/model", place), "upload")
    assert (made.name, made.type) == ("model-some.model", "model")
    (entry,) = made.manifest.entries.values()
    assert str(entry.ref) == "https://<redacted>@huggingface.co/some/model/tree/main"


def test_names_and_metadata_are_what_the_service_takes(tmp_path: Path) -> None:
    """It refuses names with blanks, and figures that are not finite; a run that has diverged has both."""
    place = model_in(tmp_path / "my models" / "größer")
    named = model_artifact("my models/größer", place)
    assert named.name == "model-my.models.gr..er"
    made = wandb_artifact(
        Artifact(named.name, "model", place, {"kl": [float("inf"), 1.0], "loss": float("nan")}), "upload"
    )
    assert made.metadata == {"kl": [None, 1.0], "loss": None}
    assert len(model_artifact("x" * 500, place).name) == 128


def test_an_artifact_that_cannot_be_made_does_not_end_the_stage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("rlhf_lightning.tracking.wandb_run.wandb_artifact", refused)
    thing = model_artifact("courtesy", tmp_path)
    log(tmp_path, "sft", "reference", thing, thing)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "W&B did not take an artifact (No space left on device); the lineage of this run is not whole."
    ] * 2
    assert recorded(tmp_path, "sft").exit_code == 0
