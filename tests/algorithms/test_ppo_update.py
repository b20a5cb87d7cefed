"""What an update of PPO asks of its models, and how it ends; small enough to be run by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fits import PPO_VALUES
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.ppo_iteration import RolloutCollector
from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.models.actor_critic import ResponseOutputs
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.buffer import Rollout
from rlhf_lightning.stages.ppo import PpoSettings

MakeModel = Callable[..., PreTrainedModel]
MakeCollector = Callable[..., RolloutCollector]

PROMPTS = [EncodedPrompt(Prompt("w"), ids) for ids in ((5, 9, 7), (11,), (6, 6, 40, 33), (20, 3))]


def first_token(completion: Any) -> float:
    return float(completion.response_ids[0]) / 25.0 - 1.0


def ppo(collector: RolloutCollector, **values: Any) -> PPO:
    settings = PpoSettings.model_validate({**PPO_VALUES, "critic_learning_rate": 0.01, **values})
    return PPO(collector.actor_critic, collector.reference, collector.kl, settings, 1.0, torch.optim.SGD)


def outputs(collector: RolloutCollector, rollout: Rollout, **values: Any) -> ResponseOutputs:
    found: ResponseOutputs = ppo(collector, **values)(rollout)
    return found


@pytest.mark.parametrize(
    ("apply_to", "estimator", "asked"),
    [("loss", "exact", True), ("loss", "k3", False), ("reward", "exact", False), ("reward", "k1", False)],
)
def test_the_reference_is_asked_again_only_for_the_exact_kl_in_the_loss(
    apply_to: str,
    estimator: str,
    asked: bool,
    make_policy: MakeModel,
    make_collector: MakeCollector,
    make_kl: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any other penalty is made of what the rollout has: a pass of the reference would double an update's cost."""
    kl = make_kl("fixed", estimator=estimator, apply_to=apply_to, coef=0.1)
    collector = make_collector(make_policy(), first_token, kl=kl)
    rollout = collector.collect(PROMPTS, range(4)).rollout
    passes = []
    logits = collector.reference.logits
    monkeypatch.setattr(collector.reference, "logits", lambda *inputs: passes.append(1) or logits(*inputs))
    assert (outputs(collector, rollout).kl is not None) == asked
    assert len(passes) == asked


@pytest.mark.parametrize(("coef", "measured"), [(0.0, False), (1e-6, True), (0.5, True)])
def test_the_entropy_is_measured_where_it_is_rewarded(
    coef: float, measured: bool, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    collector = make_collector(make_policy(), first_token)
    rollout = collector.collect(PROMPTS, range(4)).rollout
    assert (outputs(collector, rollout, entropy_coef=coef).entropies is not None) == measured


@pytest.mark.filterwarnings("error:Trying to infer the `batch_size`")
def test_an_update_that_has_gone_too_far_leaves_out_its_other_steps(make_policy: MakeModel, fit_ppo: Any) -> None:
    fit = fit_ppo(make_policy(), first_token, epochs=4, iterations=2, learning_rate=0.5, target_kl=1e-4)
    # The first step of an iteration sees the policy that sampled; the second one sees how far that step went.
    assert fit.recorder.series("policy/optimizer_steps") == [2.0, 2.0]
    assert fit.trainer.global_step == 4
