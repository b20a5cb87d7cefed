"""Every key of ppo and what belongs to it is turned, and something of the run is seen to turn with it.

The keys are read from the schema: a new one without a line in `FLIPS` fails.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import torch
from ppo_runs import PpoRun, composed, run_config
from pydantic import BaseModel

from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.stages.declaration import STAGES, StageSection
from rlhf_lightning.stages.run_settings import schema_of

SCHEMA = schema_of({name: name for name in STAGES})

SECTIONS = ("ppo", "peft", "reference", "kl", "advantage", "rollout", "reward")

REWARDS = {"kind": "ensemble", "models": ["reward", "other_reward"], "combine": "mean_minus_std"}
ENSEMBLE = {"reward": {**REWARDS, "disagreement_coef": 0.5}}
LABELED = {"kind": "classifier", "name_or_path": "classifier", "positive_label": "good", "include_prompt": False}
CLASSIFIER = {"reward": LABELED}
LEARNED = {"reward": {"kind": "learned"}}
NONE = {"kl": {"kind": "none"}}
FIXED = {"kl": {"kind": "fixed", "estimator": "k1", "apply_to": "reward", "coef": 0.3}}
ADAPTIVE = {"kl": {**FIXED["kl"], "kind": "adaptive", "target": 3.0, "horizon": 40}}
STEPS = {"learning_rate_factor": 5.0}
LORA = {"peft": {"kind": "lora", "rank": 2, "alpha": 4.0, "targets": None, **STEPS}}
IA3 = {"peft": {"kind": "ia3", **STEPS}}
PROMPT = {"peft": {"kind": "prompt_tuning", "virtual_tokens": 2, "init_text": None, **STEPS}}
TOP = {"peft": {"kind": "top_layers", "layers": 1, "reuse_trunk": True, **STEPS}, "ppo": {"policy_from": "deep_policy"}}
TWO: dict[str, Any] = {"ppo": {"iterations": 2}}
"""The KL of the first iteration's rollouts is 0, and its learning rate the first one."""
THREE: dict[str, Any] = {"ppo": {"iterations": 3}}
"""Where a coefficient has adapted to a KL that is not 0, and rewards were given under it."""

SMALLEST = ("ppo.iterations=1", "ppo.minibatches=1", "ppo.micro_batch_size=8", "callbacks.self_checks=false")
"""One iteration of two steps."""

Change = dict[str, dict[str, Any]]

FLIPS: dict[str, tuple[Change, Change]] = {
    "PpoSettings.policy_from": ({}, {"ppo": {"policy_from": "other_policy"}}),
    "PpoSettings.reward_from": ({}, {"ppo": {"reward_from": "other_reward"}}),
    "PpoSettings.critic": ({}, {"ppo": {"critic": "separate"}}),
    "PpoSettings.iterations": ({}, TWO),
    "PpoSettings.epochs": ({}, {"ppo": {"epochs": 1}}),
    "PpoSettings.minibatches": ({}, {"ppo": {"minibatches": 2, "micro_batch_size": 4}}),
    "PpoSettings.learning_rate": ({}, {"ppo": {"learning_rate": 0.02}}),
    "PpoSettings.critic_learning_rate": ({}, {"ppo": {"critic_learning_rate": 0.03}}),
    "PpoSettings.lr_schedule": (TWO, {"ppo": {"lr_schedule": "constant"}}),
    "PpoSettings.clip_range": ({}, {"ppo": {"clip_range": 0.05}}),
    "PpoSettings.value_clip_range": ({}, {"ppo": {"value_clip_range": 0.01}}),
    "PpoSettings.value_coef": ({}, {"ppo": {"value_coef": 0.7}}),
    "PpoSettings.entropy_coef": ({}, {"ppo": {"entropy_coef": 0.1}}),
    "PpoSettings.missing_eos_penalty": ({}, {"ppo": {"missing_eos_penalty": None}}),
    "PpoSettings.max_grad_norm": ({}, {"ppo": {"max_grad_norm": 0.05}}),
    "PpoSettings.target_kl": ({"ppo": {"epochs": 3}}, {"ppo": {"target_kl": 1e-5}}),
    "PpoSettings.kl_budget": (TWO, {"ppo": {"kl_budget": 1e-3}}),
    "PpoSettings.critic_warmup": (TWO, {"ppo": {"critic_warmup": 1}}),
    "NoPeft.kind": ({}, LORA),
    "PartlyTrained.learning_rate_factor": (LORA, {"peft": {"learning_rate_factor": 2.0}}),
    "Lora.kind": (LORA, {"peft": {**LORA["peft"], "kind": "dora"}}),
    "Lora.rank": (LORA, {"peft": {"rank": 4}}),
    "Lora.alpha": (LORA, {"peft": {"alpha": 8.0}}),
    "Lora.targets": (LORA, {"peft": {"targets": ["q_proj"]}}),
    "Ia3.kind": (IA3, {"peft": {"kind": "none"}}),
    "PromptTuning.kind": (PROMPT, {"peft": {"kind": "none"}}),
    "PromptTuning.virtual_tokens": (PROMPT, {"peft": {"virtual_tokens": 3}}),
    "PromptTuning.init_text": (PROMPT, {"peft": {"init_text": "w7 w9"}}),
    "TopLayers.kind": (TOP, {"peft": {"kind": "none"}}),
    "TopLayers.layers": (TOP, {"peft": {"layers": 2}}),
    "RolloutSettings.batch_size": ({}, {"rollout": {"batch_size": 16}}),
    "RolloutSettings.max_new_tokens": ({}, {"rollout": {"max_new_tokens": 3}}),
    "RolloutSettings.temperature": ({}, {"rollout": {"temperature": 0.7}}),
    "KlPenalty.estimator": (FIXED | TWO, {"kl": {"estimator": "k3"}}),
    "KlPenalty.apply_to": (FIXED | TWO, {"kl": {"apply_to": "loss"}}),
    "KlPenalty.coef": (FIXED | TWO, {"kl": {"coef": 0.6}}),
    "FixedKl.kind": (FIXED | TWO, NONE),
    "NoKl.kind": (NONE | TWO, FIXED),
    "AdaptiveKl.kind": (ADAPTIVE | TWO, FIXED),
    "AdaptiveKl.coef": (ADAPTIVE | TWO, {"kl": {"coef": 0.6}}),
    "AdaptiveKl.target": (ADAPTIVE | THREE, {"kl": {"target": 0.05}}),
    "AdaptiveKl.horizon": (ADAPTIVE | TWO, {"kl": {"horizon": 10}}),
    "GaeSettings.gamma": ({}, {"advantage": {"gamma": 0.7}}),
    "GaeSettings.gae_lambda": ({}, {"advantage": {"gae_lambda": 0.3}}),
    "GaeSettings.whiten": ({}, {"advantage": {"whiten": False}}),
    "GaeSettings.whiten_rewards": ({}, {"advantage": {"whiten_rewards": True}}),
    "RewardSection.standardize_on_reference": ({}, {"reward": {"standardize_on_reference": 16}}),
    "RewardSection.running_normalization": ({}, {"reward": {"running_normalization": True}}),
    "RewardSection.scale": ({}, {"reward": {"scale": 3.0}}),
    "RewardSection.clip": ({}, {"reward": {"clip": 0.1}}),
    "RewardSection.length_penalty": ({}, {"reward": {"length_penalty": 0.2}}),
    "LearnedReward.kind": (LEARNED, CLASSIFIER),
    "EnsembleReward.kind": (ENSEMBLE, LEARNED),
    "EnsembleReward.models": (ENSEMBLE, {"reward": {"models": ["other_reward", "third_reward"]}}),
    "EnsembleReward.combine": ({"reward": {**REWARDS, "disagreement_coef": 0.0}}, {"reward": {"combine": "min"}}),
    "EnsembleReward.disagreement_coef": (ENSEMBLE, {"reward": {"disagreement_coef": 2.0}}),
    "ClassifierReward.kind": (CLASSIFIER, LEARNED),
    "ClassifierReward.name_or_path": (CLASSIFIER, {"reward": {"name_or_path": "other_classifier"}}),
    "ClassifierReward.positive_label": (CLASSIFIER, {"reward": {"positive_label": "great"}}),
    "ClassifierReward.include_prompt": (CLASSIFIER, {"reward": {"include_prompt": True}}),
}
"""Key -> (what has to be set for it to count, what it is turned to)."""

SIZES: dict[str, Change] = {
    "PpoSettings.micro_batch_size": {"ppo": {"micro_batch_size": 2}},
    "RolloutSettings.chunk_size": {"rollout": {"chunk_size": 2}},
}
"""Keys that change no result, but what goes through the models at once."""

WITHOUT_A_CHOICE = {"GaeSettings.kind"}
"""Tags of groups with one kind."""

CHANGE_NO_RESULT = {"ReferenceSettings.kind", "TopLayers.reuse_trunk"}
"""Whether a copy is held, and whether blocks run: test_sharing_changes_no_loss and test_trunk_reuse see it."""

ON_A_GPU = {f"QLora.{key}" for key in ("kind", "rank", "alpha", "targets", "quantization", "double_quantization")}


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of a section, and those that they inherit keys from."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for member in members:
        yield from (
            base
            for base in member.__mro__
            if base.__module__.startswith("rlhf_lightning.") and base is not StageSection
        )


def schema_keys() -> set[str]:
    """`Class.field` of each key, under the class that declares it."""
    return {
        f"{section.__name__}.{field}"
        for name in SECTIONS
        for section in sections(SCHEMA.model_fields[name].annotation)
        for field in section.__annotations__
        if field in section.model_fields and f"{section.__name__}.{field}" != "RewardSection.kind"
    }


def test_no_key_is_forgotten() -> None:
    assert schema_keys() == {*FLIPS, *SIZES, *WITHOUT_A_CHOICE, *CHANGE_NO_RESULT, *ON_A_GPU}


class Runs:
    """Runs of changed configs; each config once."""

    def __init__(self, artifacts: Path, directory: Path) -> None:
        self.artifacts = artifacts
        self.directory = directory
        self.plain = composed(artifacts, *SMALLEST)
        self.done: dict[str, PpoRun] = {}

    def __call__(self, *changes: Change) -> PpoRun:
        config = self.config(*changes)
        key = json.dumps(config, sort_keys=True)
        if key not in self.done:
            self.done[key] = run_config(config, self.directory / str(len(self.done)))
        return self.done[key]

    def config(self, *changes: Change) -> dict[str, Any]:
        config = copy.deepcopy(self.plain)
        for change in changes:
            for section, values in change.items():
                if "kind" in values and section == "reward":
                    kept = {"standardize_on_reference", "running_normalization", "scale", "clip", "length_penalty"}
                    config[section] = {name: value for name, value in config[section].items() if name in kept}
                elif "kind" in values:
                    config[section] = {}
                config[section] |= {name: self._placed(name, value) for name, value in values.items()}
        return config

    def _placed(self, name: str, value: Any) -> Any:
        """Names of artifacts become paths."""
        if name == "models":
            return [str(self.artifacts / model) for model in value]
        return str(self.artifacts / value) if name in ("policy_from", "reward_from", "name_or_path") else value


@pytest.fixture(scope="module")
def runs(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(artifacts, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("key", FLIPS)
def test_the_key_changes_the_update(key: str, runs: Runs) -> None:
    base, flip = FLIPS[key]
    before, after = runs(base), runs(base, flip)
    assert before.in_common(after).distance(after) > 1e-5


@pytest.mark.parametrize("key", SIZES)
def test_the_key_changes_what_goes_through_the_model_at_once_and_no_result(
    key: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[bool, list[int]] = {}
    forward: Callable[..., Any] = ActorCritic.forward

    def counting(self: ActorCritic, sequences: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(sequences))
        return forward(self, sequences, *args, **kwargs)

    monkeypatch.setattr(ActorCritic, "forward", counting)
    # Under a name of their own: these runs must happen while the passes are counted.
    name = {"callbacks": {"sample_log_every": 11 + list(SIZES).index(key)}}
    seen = sizes[False] = []
    before = runs(name)
    seen = sizes[True] = []
    after = runs(name, SIZES[key])
    assert max(sizes[True]) <= max(sizes[False])
    assert len(sizes[True]) > len(sizes[False]) > 0
    assert before.distance(after) < 1e-4
    assert before.drift(after) < 1e-6
