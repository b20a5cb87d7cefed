"""What stages take in and leave, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.runs.pipeline import input_artifacts, output_artifact
from rlhf_lightning.stages.run_directory import METRICS, RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.worlds import courtesy

Compose = Callable[..., RunSettings]


def key_of(stage: str) -> str:
    """As long as a real one, and told apart by its stage."""
    return f"{stage:_<12}" + "0" * 52


def taken(settings: RunSettings, run: Path, stage: str) -> dict[str, Path | str]:
    return {artifact.name: artifact.place for artifact in input_artifacts(settings, RunDirectory(run), stage, key_of)}


def test_stages_of_a_run_take_in_each_others_work_once(tmp_path: Path, composed: Compose) -> None:
    settings = composed()
    assert taken(settings, tmp_path, "sft") == {"model-courtesy": courtesy.asset_path()}
    assert taken(settings, tmp_path, "ppo") == {
        "sft-sft_________": tmp_path / "sft",
        "reward_model-reward_model": tmp_path / "reward_model",
    }
    evaluated = list(taken(settings, tmp_path, "evaluate"))
    assert sorted(evaluated) == ["ppo-ppo_________", "reward_model-reward_model", "sft-sft_________"], (
        "once each, though the SFT policy is evaluated and is the reference"
    )


def test_stages_of_constitutional_ai_take_in_each_others_work(tmp_path: Path, composed: Compose) -> None:
    settings = composed("pipeline=constitutional", "constitution=hhh")
    base = {"model-courtesy": courtesy.asset_path()}
    stages = ("sft", "critique_revision", "revision_sft", "judge_calibration", "ai_feedback", "reward_model", "ppo")
    expected: dict[str, tuple[set[str], bool]] = {
        "sft": (set(), True),
        "critique_revision": ({"sft"}, False),
        "revision_sft": ({"critique_revision"}, True),
        "judge_calibration": (set(), True),
        "ai_feedback": ({"revision_sft", "judge_calibration"}, True),
        "reward_model": ({"revision_sft", "ai_feedback"}, False),
        "ppo": ({"revision_sft", "reward_model"}, False),
    }
    for stage in stages:
        below, from_base = expected[stage]
        found = taken(settings, tmp_path, stage)
        assert found == {
            **{f"{name}-{key_of(name)[:12]}": tmp_path / name for name in below},
            **(base if from_base else {}),
        }, stage


def test_what_is_mixed_in_and_who_judges_the_evaluation_are_taken_in(tmp_path: Path, composed: Compose) -> None:
    chosen = ("reward_model.mix_from=critique_revision", "reward_model.mix_ratio=1.0", "evaluate.satisfaction=8")
    settings = composed("pipeline=constitutional", "constitution=hhh", *chosen)
    assert tmp_path / "critique_revision" in taken(settings, tmp_path, "reward_model").values()
    judged = composed("pipeline=constitutional", "constitution=hhh", "evaluate.satisfaction=8", "judge.model_from=sft")
    assert tmp_path / "sft" in taken(judged, tmp_path, "evaluate").values()


def test_a_model_of_the_hub_is_taken_in_by_its_address(tmp_path: Path, composed: Compose) -> None:
    named = ("model=hub", "model.name_or_path=some/model")
    assert taken(composed(*named), tmp_path, "sft") == {
        "model-some.model": "https://huggingface.co/some/model/tree/main"
    }
    at_a_revision = composed(*named, "model.revision=v2")
    assert taken(at_a_revision, tmp_path, "sft") == {"model-some.model": "https://huggingface.co/some/model/tree/v2"}


def test_a_model_from_scratch_comes_from_nowhere(tmp_path: Path, composed: Compose) -> None:
    assert taken(composed("model=scratch"), tmp_path, "sft") == {}


@pytest.mark.parametrize(("key", "name"), [("0123456789abcdef", "sft-0123456789ab"), (None, "model-earlier.sft")])
def test_a_stage_of_another_run_has_the_name_that_it_has_there(
    tmp_path: Path, composed: Compose, key: str | None, name: str
) -> None:
    directory = tmp_path / "earlier" / "sft"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    stages = {"sft": {"loss": 1.0, **({"key": key} if key else {})}}
    (tmp_path / "earlier" / METRICS).write_text(json.dumps({"stages": stages}))
    settings = composed("pipeline=ppo", f"ppo.policy_from={directory}", f"ppo.reward_from={directory}")
    assert taken(settings, tmp_path, "ppo") == {name: directory}


def test_what_a_stage_leaves_tells_about_itself(tmp_path: Path, composed: Compose) -> None:
    settings = composed("peft=lora", "seed=5")
    figures = {"score": 0.5, "key": key_of("ppo")}
    left = output_artifact(settings, RunDirectory(tmp_path), "ppo", key_of, figures)
    assert (left.name, left.kind, left.place) == ("ppo-ppo_________", "ppo", tmp_path / "ppo")
    assert left.metadata == {
        "digest": key_of("ppo"),
        "base": "courtesy",
        "peft": "lora",
        "seed": 5,
        "run": str(tmp_path),
        "figures": {"score": 0.5},
    }
