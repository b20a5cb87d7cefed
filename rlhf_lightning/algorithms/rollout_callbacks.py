"""Callbacks and observers of PPO's rollouts: limit the KL, monitor diversity and gold reward, log samples."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.ppo_iteration import CollectedRollouts, RolloutBufferCallback
from rlhf_lightning.distributed import rank
from rlhf_lightning.records import ScoredResponse
from rlhf_lightning.rollouts.diversity import distinct, top_opening_share
from rlhf_lightning.worlds.courtesy import judge

logger = logging.getLogger(__name__)


class KlBudget(pl.Callback):
    """Ends the training when a rollout batch is further from the reference than allowed.

    The policy then goes back to what it was when it was last measured to be within the budget: what the run leaves
    keeps to it.

    Args:
        budget: in nats, of the KL summed over a response and averaged over responses.
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


def collapse_monitor(_: int, collected: CollectedRollouts) -> dict[str, float]:
    """`rollout/top_opening_share` and `rollout/distinct_2` of an iteration's responses, without end-of-sequence tokens.

    The second depends on how many responses there are: compare it between iterations of one batch size.
    """
    token_ids = [done.response_ids[:-1] if done.finished else done.response_ids for done in collected.responses]
    return {"rollout/top_opening_share": top_opening_share(token_ids), "rollout/distinct_2": distinct(token_ids, 2)}


def gold_monitor(_: int, collected: CollectedRollouts) -> dict[str, float]:
    """The mean gold reward of an iteration's rollouts, as `objective/gold`."""
    rewards = [
        judge(response.prompt.last_turn, response.text, response.finished).reward for response in collected.responses
    ]
    return {"objective/gold": sum(rewards) / len(rewards)}


class SampleLogger:
    """Writes some rollouts to a jsonl file and one line of metrics to the log, every few iterations.

    Args:
        path: appended to.
        every: iterations between entries.
        samples: rollouts per entry.
        report: gets each entry as well: (iteration, rollouts).
    """

    def __init__(
        self, path: Path, *, every: int, samples: int, report: Callable[[int, Sequence[ScoredResponse]], None]
    ) -> None:
        self.path = path
        self.every = every
        self.samples = samples
        self.report = report

    def __call__(self, iteration: int, collected: CollectedRollouts) -> dict[str, float]:
        if iteration % self.every == 0 and rank() == 0:
            self._write(iteration, collected)
            figures = collected.metrics
            logger.info(
                "Iteration %d: score %+.2f, KL %.2f, entropy %.2f, length %.1f.",
                iteration,
                figures["objective/score"],
                figures["objective/kl"],
                figures["objective/entropy"],
                figures["rollout/length"],
            )
        return {}

    def _write(self, iteration: int, collected: CollectedRollouts) -> None:
        scores = collected.rollout.scores.tolist()
        scored = [
            ScoredResponse(response.prompt, response.text, score, response.finished)
            for response, score in zip(collected.responses[: self.samples], scores, strict=False)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            for entry in scored:
                file.write(json.dumps({"iteration": iteration, **asdict(entry)}, ensure_ascii=False) + "\n")
        self.report(iteration, scored)
