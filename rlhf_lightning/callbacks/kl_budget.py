"""A limit on how far the policy may go from the reference, after which the run ends."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.callbacks.rollout_buffer import RolloutBufferCallback

logger = logging.getLogger(__name__)


class KlBudget(pl.Callback):
    """Ends the training when a rollout batch is further from the reference than allowed.

    The policy then goes back to what it was when it was last measured to be within the budget: what the run leaves
    keeps to it.

    Args:
        budget: in nats, of the KL summed over a reply and averaged over replies.
        rollouts: stands before this callback and measures the KL.
    """

    def __init__(self, budget: float, rollouts: RolloutBufferCallback) -> None:
        self.budget = budget
        self.rollouts = rollouts
        self._within: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PPO)
        weights = {name: weight for name, weight in pl_module.named_parameters() if weight.requires_grad}
        kl = self.rollouts.last_metrics["objective/kl"]
        if kl <= self.budget:
            self._within = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
            return
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(self._within[name])
        pl_module.update_is_over = True
        trainer.should_stop = True
        logger.warning(
            "Iteration %d: the KL of %.2f is over ppo.kl_budget=%g; the run ends with the last policy within it.",
            trainer.current_epoch,
            kl,
            self.budget,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1, "within": self._within}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._within = state_dict["within"]
