"""Reward model training on preference pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.optimization import OptimizerFactory, supervised_optimizer
from rlhf_lightning.batches import PreferenceBatch
from rlhf_lightning.distributed import all_reduce_means, world_size
from rlhf_lightning.models.classifier import classifier_logits
from rlhf_lightning.models.forward_pass import shard
from rlhf_lightning.models.loading import score_head
from rlhf_lightning.objectives.preference import bradley_terry_loss, centering_loss, classification_loss

if TYPE_CHECKING:
    from rlhf_lightning.stages.reward_model import RewardModelSettings


class PairLogits(NamedTuple):
    """(pairs, labels) logits of the preferred responses and of the others."""

    chosen: Tensor
    rejected: Tensor


class RewardModel(pl.LightningModule):
    """Bradley-Terry on pairs, with optional margin and centering; with two labels also a classifier.

    With a two-label head the reward is the positive label's logit; cross-entropy is added, so that the two logits
    are also a calibrated answer to "was this the preferred one?".

    Args:
        classifier: a sequence classifier with one or two labels.
        positive: index of the label whose logit is the reward.
        settings: of the stage.
        optimizer: makes the optimizer.
        total_steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        positive: int,
        settings: RewardModelSettings,
        optimizer: OptimizerFactory,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.positive = positive
        self.settings = settings
        self.make_optimizer = optimizer
        self.total_steps = total_steps

    def forward(self, batch: PreferenceBatch) -> PairLogits:
        return pair_logits(self.classifier, batch)

    def training_step(self, batch: PreferenceBatch, _: int) -> Tensor:
        logits = self(batch)
        losses = self.pair_losses(logits, batch.margin, batch.probability)
        self._log(logits, losses, len(batch))
        # Lightning divides by the number of accumulated micro-batches, and averages the gradients of the processes;
        # the weight of the step is its pairs.
        return losses.sum() / batch.step_weight * self.trainer.accumulate_grad_batches * world_size()

    def validation_step(self, batch: PreferenceBatch, _: int) -> None:
        logits = self(batch)
        margin = (logits.chosen - logits.rejected)[:, self.positive]
        figures = {
            "reward_model/validation_loss": self.pair_losses(logits, batch.margin, batch.probability).mean(),
            "reward_model/validation_accuracy": (margin > 0).float().mean(),
        }
        figures, pairs = all_reduce_means(figures, len(batch))
        self.log_dict(figures, on_epoch=True, batch_size=pairs)

    def pair_losses(self, logits: PairLogits, margin: Tensor, probability: Tensor | float = 1.0) -> Tensor:
        """(pairs,) losses.

        Args:
            margin: (pairs,) recorded margins.
            probability: (pairs,) soft labels.
        """
        chosen, rejected = logits.chosen[:, self.positive], logits.rejected[:, self.positive]
        losses = bradley_terry_loss(chosen, rejected, self.settings.margin_coef * margin, probability)
        losses = losses + self.settings.reward_centering_coef * centering_loss(chosen, rejected)
        if logits.chosen.shape[1] == 2:
            losses = losses + classification_loss(logits.chosen, logits.rejected, self.positive, probability)
        return losses

    def _log(self, logits: PairLogits, losses: Tensor, pairs: int) -> None:
        margin = (logits.chosen - logits.rejected)[:, self.positive]
        figures = {
            "reward_model/loss": losses.mean(),
            "reward_model/accuracy": (margin > 0).float().mean(),
            "reward_model/margin": margin.mean(),
        }
        figures, pooled = all_reduce_means(figures, pairs)
        self.log_dict(figures, on_step=True, on_epoch=False, prog_bar=True, batch_size=pooled)

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            # A linear head is read apart from its trunk (`classifier_logits`), so each of them is a whole of its own.
            head = score_head(self.classifier)
            for part in (self.classifier,) if head is None else (self.classifier.base_model, head):
                shard(part, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        return supervised_optimizer(self, self.make_optimizer, self.settings, self.total_steps)


def pair_logits(classifier: PreTrainedModel, batch: PreferenceBatch) -> PairLogits:
    """Logits of both sides from one forward pass over twice as many sequences."""
    width = max(batch.chosen_ids.shape[1], batch.rejected_ids.shape[1])
    input_ids, attention_mask = (
        torch.cat([functional.pad(side, (0, width - side.shape[1])) for side in sides])
        for sides in ((batch.chosen_ids, batch.rejected_ids), (batch.chosen_mask, batch.rejected_mask))
    )
    return PairLogits(*classifier_logits(classifier, input_ids, attention_mask).chunk(2))


@torch.no_grad()
def pair_rewards(classifier: PreTrainedModel, positive: int, batch: PreferenceBatch) -> tuple[list[float], list[float]]:
    """The rewards of a batch's chosen and rejected responses."""
    logits = pair_logits(classifier, batch)
    return logits.chosen[:, positive].tolist(), logits.rejected[:, positive].tolist()
