"""What a stage's key is made of: its code, the content that it reads, and the settings that it reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from rlhf_lightning.data.sources import RecordedSource
from rlhf_lightning.records import Preference, Prompt
from rlhf_lightning.runs import input_identity
from rlhf_lightning.runs.code_identity import code_of
from rlhf_lightning.runs.identity import StageIdentity, StageKeys, changes, deciding_settings, settings_read
from rlhf_lightning.runs.input_identity import data_identity, model_identity
from rlhf_lightning.runs.machine import deciding_packages, installed
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.readers import reads
from rlhf_lightning.stages.run_settings import RunSettings

Composed = Callable[..., RunSettings]


def test_a_hub_id_counts_by_the_commit_that_its_revision_has_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_identity, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--someone--two-revisions"
    (model / "refs").mkdir(parents=True)
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (model / "refs" / revision).write_text(commit)
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "snapshots" / commit / "config.json").write_text("{}")
    assert model_identity("someone/two-revisions") == f"hub someone/two-revisions {'a' * 40}"
    assert model_identity("someone/two-revisions", "v2") == f"hub someone/two-revisions {'b' * 40}"
    assert model_identity("someone/two-revisions", "v3") == "hub someone/two-revisions v3"


def pairs(*chosen: str) -> Callable[[], RecordedSource]:
    return lambda: RecordedSource(0.5, given_comparisons=[Preference(Prompt("hello"), text, "no") for text in chosen])


def test_a_dataset_of_the_hub_counts_by_its_records(composed: Composed) -> None:
    settings = composed("data=hub", "data.name=someone/pairs", "data.record=preference", "model=scratch")
    first = data_identity(settings, pairs("hi", "ho"))
    assert first == data_identity(settings, pairs("hi", "ho"))
    assert first != data_identity(settings, pairs("hi", "he"))
    assert first != data_identity(settings, pairs("hi"))


def test_the_record_that_is_kept_is_what_the_keys_are_hashes_of(composed: Composed) -> None:
    keys = StageKeys(composed(), "cpu", None)
    packages = deciding_packages(installed())
    for stage, kept in json.loads(json.dumps(keys.record())).items():
        assert StageIdentity(stage=stage, packages=packages, **kept).key == keys.of(stage)


def test_what_differs_is_named_once_and_not_with_all_that_follows(composed: Composed) -> None:
    first = StageKeys(composed(), "cpu", None).record()
    assert changes(first, first) == []
    now = copy.deepcopy(first)
    now["sft"]["code"]["rlhf_lightning"] = now["ppo"]["code"]["rlhf_lightning"] = "another"
    now["sft"]["inputs"]["sft.policy_from"] = ["base another"]
    now["ppo"]["inputs"]["ppo.policy_from"] = ["stage sft another"]  # follows from the change of sft
    assert changes(first, now) == ["the base model", "the code of rlhf_lightning"]


def test_settings_that_no_stage_reads_do_not_decide(composed: Composed) -> None:
    settings = deciding_settings(composed())
    assert {"seed", "kl.coef", "sft.epochs", "pipeline.stages", "trainer.precision", "ppo.policy_from"} <= set(settings)
    assert not {"judge.kind", "paths.run_dir", "callbacks.sample_log_every", "ppo.micro_batch_size"} & set(settings)


def read(settings: RunSettings, stage: str) -> dict[str, object]:
    return dict(settings_read(settings, stage))


def identity_of(settings: RunSettings, stage: str) -> StageIdentity:
    return StageKeys(settings, "cpu", lambda: pytest.fail("no data is read")).identity(stage)


def test_records_count_for_the_stages_that_read_them(composed: Composed, tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    path.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    settings = composed("data=files", f"data.preferences={path}", "model=scratch", "model.vocab_size=300")
    stages: tuple[str, ...] = ("sft", "comparisons", "reward_model", "ppo", "evaluate")
    # The reward model learns from what the stage before it left.
    assert [stage for stage in stages if not identity_of(settings, stage).data] == ["reward_model"]
    assert identity_of(composed(), "sft").data == {}, "the world's records are made by its code and settings"


def test_how_demonstrations_are_made_counts_only_where_they_are_learned(composed: Composed, tmp_path: Path) -> None:
    assert {"data.demonstrations", "data.demonstrator.harm_rate"} <= read(composed(), "sft").keys()
    elsewhere = read(composed(f"sft.demonstrations_from={tmp_path}"), "sft")
    assert not {key for key in elsewhere if key.startswith("data.demonstrat")}
    assert "data.max_prompt_length" in elsewhere


def test_the_quantization_counts_where_there_is_one(composed: Composed) -> None:
    lora = composed("peft=lora")
    four_bits = lora.model_dump(mode="json")
    four_bits["peft"] |= {"kind": "qlora", "quantization": "fp4", "double_quantization": True}
    quantization = {"peft.quantization": "fp4", "peft.double_quantization": True}
    assert quantization.items() <= read(settings_from(four_bits), "sft").items()
    assert not quantization.keys() & read(lora, "sft").keys()


def test_the_stages_that_ask_the_judge(composed: Composed) -> None:
    def asking(*overrides: str) -> set[str]:
        settings = composed("pipeline=constitutional", "constitution=hhh", *overrides)
        return {stage for stage in settings.pipeline.stages if reads(settings, stage, "judge")}

    assert asking("evaluate.satisfaction=null") == {"judge_calibration", "ai_feedback"}
    assert asking("evaluate.satisfaction=16") == {"judge_calibration", "ai_feedback", "evaluate"}


def test_code_from_elsewhere_that_the_config_names_counts_for_training(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of packages is told by their versions, and that of this one by its rooms."""
    (tmp_path / "my_callbacks.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    named = [
        "my_callbacks.Mine",
        "rlhf_lightning.algorithms.training_callbacks.GradientNorm",
        "pytorch_lightning.callbacks.Timer",
    ]
    targets = ",".join(f"{{_target_: {name}}}" for name in named)
    settings = composed(f"callbacks.extra=[{targets}]", "allow_targets=[my_callbacks]")
    assert identity_of(settings, "sft").code.keys() == {"rlhf_lightning", "rlhf_lightning.stages.sft", "my_callbacks"}
    assert identity_of(settings, "evaluate").code == code_of(STAGES["evaluate"])
