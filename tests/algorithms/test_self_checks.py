"""A PPO run with a defect stops and says so; a sound one is not disturbed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.ppo_iteration import RolloutBufferCallback, RolloutCollector
from rlhf_lightning.algorithms.self_checks import TOLERANCES, SelfChecks, tolerance
from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.errors import InvariantError
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.sampler import PromptStream
from rlhf_lightning.stages.ppo import PpoSettings

POOL = [EncodedPrompt(Prompt(f"w{token}"), (token, 3 + token % 5)[: 1 + token % 2]) for token in range(3, 15)]

SETTINGS: dict[str, Any] = {
    "stage": "ppo",
    "policy_from": "sft",
    "reward_from": "reward_model",
    "critic": "policy_trunk",
    "iterations": 3,
    "epochs": 2,
    "minibatches": 2,
    "micro_batch_size": 2,
    "learning_rate": 0.05,
    "critic_learning_rate": 0.05,
    "lr_schedule": "constant",
    "clip_range": 0.2,
    "value_clip_range": 0.2,
    "value_coef": 0.1,
    "entropy_coef": 0.0,
    "missing_eos_penalty": None,
    "max_grad_norm": 1.0,
    "target_kl": None,
    "kl_budget": None,
    "critic_warmup": 0,
}


class Doing(pl.Callback):
    """Does something once, when a training epoch or its first batch begins.

    Args:
        act: given the module.
        iteration: when.
        before_rollouts: at the beginning of the iteration; else at that of its first batch.
    """

    def __init__(self, act: Callable[[PPO], None], iteration: int, *, before_rollouts: bool = False) -> None:
        self.act = act
        self.iteration = iteration
        self.before_rollouts = before_rollouts

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._act_if(self.before_rollouts, trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del batch
        self._act_if(not self.before_rollouts and batch_idx == 0, trainer, pl_module)

    def _act_if(self, now: bool, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if now and trainer.current_epoch == self.iteration:
            assert isinstance(pl_module, PPO)
            self.act(pl_module)


@pytest.fixture
def fit(
    make_policy: Callable[..., PreTrainedModel],
    make_collector: Callable[..., RolloutCollector],
    make_trainer: Callable[..., pl.Trainer],
) -> Callable[..., PPO]:
    """Trains with self-checks and returns what was trained."""

    def run(
        *doings: pl.Callback,
        spoil: Callable[[RolloutCollector], None] = lambda _: None,
        precision: str = "32-true",
        checked: bool = True,
        state: dict[str, Any] | None = None,
        collecting: dict[str, Any] | None = None,
        **values: Any,
    ) -> PPO:
        settings = PpoSettings.model_validate({**SETTINGS, **values})
        policy = make_policy()
        policy.generation_config.eos_token_id = list(range(40, 50))
        collector = make_collector(policy, lambda done: done.response_ids[0] / 25.0, **(collecting or {}))
        spoil(collector)
        buffer = RolloutBuffer(batch_size=8, epochs=2, minibatches=2, micro_batch_size=4, seed=0)
        rollouts = RolloutBufferCallback(collector, buffer, PromptStream(POOL, seed=0))
        watching = SelfChecks(rollouts, collector.reference, tolerance("float32", precision))
        if state is not None:
            watching.load_state_dict(state)
        trainer = make_trainer(
            *[doing for doing in doings if getattr(doing, "before_rollouts", False)],
            rollouts,
            *[doing for doing in doings if not getattr(doing, "before_rollouts", False)],
            *([watching] if checked else []),
            max_epochs=settings.iterations,
            accumulate_grad_batches=buffer.micro_batches_per_step,
            precision=precision,
        )
        optimizer = partial(torch.optim.SGD, momentum=0.5)
        module = PPO(
            collector.actor_critic, collector.reference, collector.kl, settings, collector.temperature, optimizer
        )
        trainer.fit(module, DataLoader(buffer, batch_size=None))
        return module

    return run


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_sound_run_goes_to_its_end(precision: str, fit: Callable[..., PPO]) -> None:
    fit(precision=precision, collecting={"temperature": 0.7})


def test_the_checks_change_no_weight(fit: Callable[..., PPO]) -> None:
    checked, unchecked = fit().state_dict(), fit(checked=False).state_dict()
    assert all(torch.equal(checked[name], unchecked[name]) for name in unchecked)


def test_a_sampler_at_another_temperature_is_found_at_once(fit: Callable[..., PPO]) -> None:
    def heat(collector: RolloutCollector) -> None:
        collector.sampler.temperature = 1.3

    with pytest.raises(InvariantError, match="Iteration 0: responses were sampled from another distribution") as caught:
        fit(spoil=heat)
    assert "a temperature on one side only" in str(caught.value.fix)
    assert "callbacks.self_checks=false" in str(caught.value.fix)


def test_a_sampler_that_goes_wrong_later_is_found_then(fit: Callable[..., PPO]) -> None:
    kept: list[RolloutCollector] = []

    def heat(_: PPO) -> None:
        kept[0].sampler.temperature = 1.3

    with pytest.raises(InvariantError, match="Iteration 2: responses were sampled"):
        fit(Doing(heat, 2, before_rollouts=True), spoil=kept.append)


def test_another_reference_than_the_policy_is_found_at_the_start(
    fit: Callable[..., PPO], make_policy: Callable[..., PreTrainedModel]
) -> None:
    with pytest.raises(InvariantError, match="learned nothing yet, but its KL to the reference is") as caught:
        fit(collecting={"reference": make_policy(seed=1)})
    assert caught.value.where == "ppo.policy_from"


def test_dropout_in_training_is_found(fit: Callable[..., PPO]) -> None:
    def drop(module: PPO) -> None:
        # What Lightning's trainer, or a hub model's own code, may do to a model that is in evaluation mode.
        module.actor_critic.policy.get_output_embeddings().register_forward_pre_hook(
            lambda _, inputs: (nn.functional.dropout(inputs[0], 0.3),)
        )

    with pytest.raises(InvariantError, match="Iteration 1: before its first update") as caught:
        fit(Doing(drop, 1))
    assert "dropout" in str(caught.value.fix)


def test_a_policy_that_changes_after_the_rollouts_is_found_before_an_update(fit: Callable[..., PPO]) -> None:
    seen: list[PPO] = []

    def disturb(module: PPO) -> None:
        seen.append(module)
        with torch.no_grad():
            next(module.actor_critic.policy.parameters()).add_(0.05)

    with pytest.raises(InvariantError, match=r"off by a factor of up to \d"):
        fit(Doing(disturb, 0))
    assert seen[0].trainer.global_step == 0


def test_a_reference_that_changes_is_found_in_the_next_iteration(fit: Callable[..., PPO]) -> None:
    def train_reference(module: PPO) -> None:
        with torch.no_grad():
            next(module.reference.model.parameters()).mul_(1.001)

    with pytest.raises(InvariantError, match="in iteration 2 it answers a fixed input in another way"):
        fit(Doing(train_reference, 2, before_rollouts=True))


def test_a_reference_that_changes_at_the_very_end_is_found_by_its_weights(fit: Callable[..., PPO]) -> None:
    class AtTheEnd(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert isinstance(pl_module, PPO)
            if trainer.current_epoch == 2:
                with torch.no_grad():
                    # The embedding of a token that no prompt or response holds.
                    next(pl_module.reference.model.parameters())[2].add_(1.0)

    with pytest.raises(InvariantError, match="its weights at the end of training are not those of its start"):
        fit(AtTheEnd())


def test_a_resumed_run_needs_the_same_reference(
    fit: Callable[..., PPO], make_policy: Callable[..., PreTrainedModel]
) -> None:
    same = FrozenReference.copy_of(make_policy()).fingerprint()
    fit(state={"version": 1, "fingerprint": same})
    other = FrozenReference.copy_of(make_policy(seed=1)).fingerprint()
    with pytest.raises(InvariantError, match="goes on with another reference than it began with"):
        fit(state={"version": 1, "fingerprint": other})


def test_an_iteration_whose_update_is_left_out_is_not_judged(fit: Callable[..., PPO]) -> None:
    def rewind(module: PPO) -> None:
        # What the KL budget does: an older policy is put back after the rollouts, and not trained on them.
        module.update_is_over = True
        with torch.no_grad():
            next(module.actor_critic.policy.parameters()).add_(0.05)

    fit(Doing(rewind, 2, before_rollouts=False))


def test_the_coarsest_arithmetic_on_the_way_decides_what_is_allowed() -> None:
    assert tolerance("float32", "32-true") == TOLERANCES["float32"]
    assert tolerance("bfloat16", "32-true") == TOLERANCES["bfloat16"]
    assert tolerance("float16", "bf16-mixed") == tolerance("bfloat16", "16-mixed") == TOLERANCES["bfloat16"]
