"""Real fits of tiny models, small enough to compare weights after every step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.ppo_iteration import CollectedRollouts, RolloutBufferCallback, RolloutCollector
from rlhf_lightning.algorithms.rollout_callbacks import KlBudget
from rlhf_lightning.algorithms.training_callbacks import GradientNorm
from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.models.forward_pass import checkpoint_activations
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.sampler import PromptStream, SampledResponse
from rlhf_lightning.stages.ppo import PpoSettings
from rlhf_lightning.stages.training import EXPECTED

PPO_VALUES: dict[str, Any] = {
    "stage": "ppo",
    "policy_from": "sft",
    "reward_from": "reward_model",
    "critic": "policy_trunk",
    "iterations": 1,
    "epochs": 1,
    "minibatches": 1,
    "micro_batch_size": 8,
    "learning_rate": 0.01,
    "lr_schedule": "linear",
    "clip_range": 0.2,
    "value_clip_range": 0.2,
    "value_coef": 0.1,
    "entropy_coef": 0.0,
    "missing_eos_penalty": None,
    "max_grad_norm": 1e6,
    "target_kl": None,
    "kl_budget": None,
    "critic_warmup": 0,
}


class Recorder(Logger):
    """Keeps everything that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.entries.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def series(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.entries if name in metrics]


class Stepping:
    """An optimizer factory that remembers each step's learning rates: the first group's, and the last one's."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        self.optimizer = optimizer
        self.rates: list[float] = []
        self.critic_rates: list[float] = []

    def __call__(
        self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], *, lr: float
    ) -> torch.optim.Optimizer:
        made = self.optimizer(params, lr=lr)
        made.register_step_pre_hook(self._remember)
        return made

    def _remember(self, stepped: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        self.rates.append(stepped.param_groups[0]["lr"])
        self.critic_rates.append(stepped.param_groups[-1]["lr"])


@dataclass
class Fit:
    """A finished training."""

    module: pl.LightningModule
    trainer: pl.Trainer
    recorder: Recorder
    steps: Stepping
    collected: list[CollectedRollouts] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.module.named_parameters()}


@pytest.fixture
def stepping() -> type[Stepping]:
    return Stepping


@pytest.fixture
def fit() -> Callable[..., Fit]:
    """Trains a module, as the stages do."""

    def run(
        module: pl.LightningModule,
        steps: Stepping,
        batches: Any,
        *,
        epochs: int = 1,
        accumulate: int = 1,
        max_grad_norm: float = 1e6,
        callbacks: Sequence[pl.Callback] = (),
        held_out: Any = None,
    ) -> Fit:
        recorder = Recorder()
        watching = [GradientNorm(on_step=True), LearningRateMonitor(logging_interval="step")]
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=max_grad_norm,
            callbacks=[*watching, *callbacks],
            logger=recorder,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        with warnings.catch_warnings():
            for message in (*EXPECTED, ".*have no `val_dataloader`.*"):
                warnings.filterwarnings("ignore", message=message)
            validating = None if held_out is None else DataLoader(held_out, batch_size=None)
            trainer.fit(module, DataLoader(batches, batch_size=None), validating)
        return Fit(module, trainer, recorder, steps)

    return run


@pytest.fixture
def fit_ppo(fit: Callable[..., Fit], make_collector: Callable[..., RolloutCollector]) -> Callable[..., Fit]:
    """Trains a policy by PPO on a rule; values of `PpoSettings` that are not given stand in `PPO_VALUES`.

    The critic's learning rate is the policy's, unless it is given.
    """

    def run(
        policy: PreTrainedModel,
        rule: Callable[[SampledResponse], float],
        *,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        prompts: Sequence[Sequence[int]] = ((5, 9, 7), (11,), (6, 6, 40, 33), (20, 3)),
        batch_size: int = 8,
        seed: int = 0,
        value_head: Tensor | None = None,
        collecting: dict[str, Any] | None = None,
        checkpointing: bool = False,
        callbacks: Sequence[pl.Callback] = (),
        **values: Any,
    ) -> Fit:
        learning_rate = values.get("learning_rate", PPO_VALUES["learning_rate"])
        settings = PpoSettings.model_validate({**PPO_VALUES, "critic_learning_rate": learning_rate, **values})
        # A fifth of all tokens ends a response, so that responses differ in length.
        policy.generation_config.eos_token_id = list(range(40, 50))
        collector = make_collector(policy, rule, missing_eos_penalty=settings.missing_eos_penalty, **(collecting or {}))
        if value_head is not None:
            assert collector.actor_critic.value_head is not None
            collector.actor_critic.value_head.linear.weight.data.copy_(value_head)
        if checkpointing:
            checkpoint_activations(collector.actor_critic)
        buffer = RolloutBuffer(
            batch_size=batch_size,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            micro_batch_size=settings.micro_batch_size,
            seed=seed,
        )
        steps = Stepping(optimizer)
        collected: list[CollectedRollouts] = []

        def observe(_: int, seen: CollectedRollouts) -> dict[str, float]:
            collected.append(seen)
            return {}

        pool = [EncodedPrompt(Prompt("w"), tuple(prompt)) for prompt in prompts]
        rollouts = RolloutBufferCallback(collector, buffer, PromptStream(pool, seed), [observe])
        budget = [] if settings.kl_budget is None else [KlBudget(settings.kl_budget, rollouts)]
        finished = fit(
            PPO(collector.actor_critic, collector.reference, collector.kl, settings, collector.temperature, steps),
            steps,
            buffer,
            epochs=settings.iterations,
            accumulate=buffer.micro_batches_per_step,
            max_grad_norm=settings.max_grad_norm,
            callbacks=[rollouts, *budget, *callbacks],
        )
        finished.collected = collected
        return finished

    return run


@pytest.fixture
def assert_same_weights() -> Callable[[Fit, Fit], None]:
    """Neither a large difference nor a small one that is always on the same side."""

    def check(one: Fit, other: Fit) -> None:
        differences = torch.cat([(weight - other.weights[name]).flatten() for name, weight in one.weights.items()])
        assert differences.abs().max() < 1e-6
        assert differences.mean().abs() < 1e-8

    return check
