"""What the sections of a config ask of each other, of the machine, and of the sweep that they are a job of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.rollouts.settings import ClassifierReward
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.environment_checks import environment_problems
from rlhf_lightning.runs.preflight import check_job
from rlhf_lightning.runs.rules import cross_field_problems
from rlhf_lightning.stages.run_settings import RunSettings

CLASSIFIER = ClassifierReward(
    kind="classifier",
    name_or_path="owner/name",
    positive_label="good",
    include_prompt=False,
    standardize_on_reference=None,
    running_normalization=False,
    scale=1.0,
    clip=None,
    length_penalty=0.0,
)


@pytest.fixture(scope="module")
def settings(composed: Callable[..., RunSettings]) -> RunSettings:
    return composed("logger=none")


def changed(settings: RunSettings, **sections: dict[str, Any]) -> RunSettings:
    """The settings with other values in some sections: `changed(settings, ppo={"minibatches": 4})`."""
    update = {name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()}
    return settings.model_copy(update=update)


def contradictions(settings: RunSettings) -> dict[str, str]:
    return {problem.key: problem.what for problem in cross_field_problems(settings)}


def test_micro_batches_divide_the_minibatch_and_not_only_the_rollouts(settings: RunSettings) -> None:
    # 24 rollouts in 4 minibatches are 6 each, which 3 divides and 8 does not, though 8 divides 24.
    rollouts = changed(settings, rollout={"batch_size": 24}, ppo={"minibatches": 4, "micro_batch_size": 3})
    assert contradictions(rollouts) == {}
    found = contradictions(changed(rollouts, ppo={"micro_batch_size": 8}))
    assert list(found) == ["ppo.micro_batch_size"]
    assert "8 does not divide the minibatch of 6 rollouts" in found["ppo.micro_batch_size"]


def test_what_weights_in_shards_cannot_do(settings: RunSettings) -> None:
    shards = {"strategy": "fsdp", "accelerator": "gpu"}
    assert contradictions(changed(settings, trainer=shards)) == {}
    assert list(contradictions(changed(settings, trainer={**shards, "precision": "16-mixed"}))) == ["trainer.precision"]
    assert list(contradictions(changed(settings, trainer=shards, ppo={"kl_budget": 10.0}))) == ["ppo.kl_budget"]
    # Neither is refused where each process has all weights.
    whole = {**shards, "strategy": "ddp", "precision": "16-mixed"}
    assert contradictions(changed(settings, trainer=whole, ppo={"kl_budget": 10.0})) == {}


def test_a_critic_starts_from_the_reward_model_only_where_that_gives_the_reward(settings: RunSettings) -> None:
    classified = settings.model_copy(update={"reward": CLASSIFIER})
    copied = {"critic": "reward_model"}
    assert contradictions(changed(settings, ppo=copied)) == {}
    assert list(contradictions(changed(classified, ppo=copied))) == ["ppo.critic"]
    assert contradictions(changed(classified, ppo={"critic": "separate"})) == {}


def test_a_path_must_exist_and_a_hub_id_is_left_to_the_hub(settings: RunSettings) -> None:
    absent = [f"{start}no_such_model" for start in ("./", "../", "/", "~/")]
    for name in absent:
        (problem,) = environment_problems(changed(settings, sft={"policy_from": name}))
        assert (problem.key, problem.what) == ("sft.policy_from", f"{name} does not exist")
    for name in ("gpt2", "owner/name"):
        assert environment_problems(changed(settings, sft={"policy_from": name})) == []


def test_a_job_of_a_sweep_knows_its_number() -> None:
    tree = ConfigTree.load()
    numbered = ["name=job-${hydra:job.num}", "paths.sweep_dir=there/${hydra:job.id}"]
    checked = check_job(tree, tree.parse(["debug=tiny", "logger=none", *numbered]), number=3)
    assert checked.problems == ()
    assert checked.settings is not None
    assert checked.settings.name == "job-3"
    assert checked.directories.sweep == Path("there/3")
