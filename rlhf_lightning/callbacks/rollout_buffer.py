"""Phase one of each PPO iteration, as a Lightning callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl

from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.collector import Collected, RolloutCollector
from rlhf_lightning.rollouts.prompts import PromptStream

Observer = Callable[[int, Collected], dict[str, float]]
"""Looks at an iteration's rollouts and may return figures to log: (iteration, collected) -> metrics."""


SHOWN = ("objective/score", "objective/kl")
"""Figures beside the progress bar."""


class RolloutBufferCallback(pl.Callback):
    """Fills the rollout buffer at the start of each epoch and logs what was collected.

    What PPO carries from one iteration to the next beside weights and optimizer is the state of this callback: how
    many prompts were taken (which numbers the draws), the KL coefficient, the running moments of the reward.

    Args:
        collector: makes rollouts of prompts.
        buffer: read by the train dataloader.
        prompts: which prompts come next.
        observers: see each iteration's rollouts (a sample diary, the gold reward of a synthetic world).

    Attributes:
        last_metrics: of the last rollouts.
    """

    def __init__(
        self,
        collector: RolloutCollector,
        buffer: RolloutBuffer,
        prompts: PromptStream,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.collector = collector
        self.buffer = buffer
        self.prompts = prompts
        self.observers = tuple(observers)
        self.last_metrics: dict[str, float] = {}
        self._update_started = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer
        self.collector.to(pl_module.device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        iteration = trainer.current_epoch
        draws = range(self.prompts.taken, self.prompts.taken + self.buffer.batch_size)
        collected = self.collector.collect(
            self.prompts.take(self.buffer.batch_size), draws, trainer.precision_plugin.forward_context()
        )
        self.buffer.fill(collected.rollout, iteration)
        metrics = collected.metrics | {"rollout/episodes": float(self.prompts.taken)}
        for observe in self.observers:
            metrics |= observe(iteration, collected)
        for name, value in metrics.items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1, prog_bar=name in SHOWN)
        self.last_metrics = metrics
        self._update_started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer
        pl_module.log("time/update", time.perf_counter() - self._update_started, batch_size=1)
        self.collector.kl.update(self.last_metrics["objective/kl"], self.buffer.batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": 1,
            "prompts_taken": self.prompts.taken,
            "kl": self.collector.kl.state_dict(),
            "reward": self.collector.shaper.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.prompts.taken = state_dict["prompts_taken"]
        self.collector.kl.load_state_dict(state_dict["kl"])
        self.collector.shaper.load_state_dict(state_dict["reward"])
