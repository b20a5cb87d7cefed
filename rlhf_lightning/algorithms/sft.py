"""Supervised fine-tuning: imitate demonstrated responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.optimization import OptimizerFactory, supervised_optimizer
from rlhf_lightning.batches import DemonstrationBatch
from rlhf_lightning.distributed import all_reduce_means, world_size
from rlhf_lightning.models.forward_pass import position_arguments, shard
from rlhf_lightning.objectives.logprobs import token_logprobs
from rlhf_lightning.objectives.masked_stats import masked_sum

if TYPE_CHECKING:
    from rlhf_lightning.stages.sft import SftSettings


class SupervisedFineTuning(pl.LightningModule):
    """Cross-entropy on response tokens only.

    Args:
        policy: a causal language model.
        settings: of the stage.
        optimizer: makes the optimizer.
        total_steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(
        self, policy: PreTrainedModel, settings: SftSettings, optimizer: OptimizerFactory, total_steps: int
    ) -> None:
        super().__init__()
        self.policy = policy
        self.settings = settings
        self.make_optimizer = optimizer
        self.total_steps = total_steps

    def forward(self, batch: DemonstrationBatch) -> Tensor:
        """The sum of -log p over the batch's response tokens."""
        logits = self.policy(
            input_ids=batch.input_ids, **position_arguments(self.policy, batch.attention_mask), use_cache=False
        ).logits
        logprobs = token_logprobs(logits[:, :-1], batch.input_ids[:, 1:], temperature=1.0)
        return -masked_sum(logprobs, batch.loss_mask[:, 1:])

    def training_step(self, batch: DemonstrationBatch, _: int) -> Tensor:
        total: Tensor = self(batch)
        tokens = int(batch.loss_mask.sum())
        figures, pooled = all_reduce_means({"sft/loss": total.detach() / tokens}, tokens)
        self.log_dict(figures, on_step=True, on_epoch=False, prog_bar=True, batch_size=pooled)
        # Lightning divides by the number of accumulated micro-batches, and averages the gradients of the processes;
        # the weight of the step is its tokens.
        return total / batch.step_weight * self.trainer.accumulate_grad_batches * world_size()

    def validation_step(self, batch: DemonstrationBatch, _: int) -> None:
        tokens = int(batch.loss_mask.sum())
        figures, pooled = all_reduce_means({"sft/validation_loss": self(batch) / tokens}, tokens)
        self.log_dict(figures, on_epoch=True, batch_size=pooled)

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            shard(self.policy, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        return supervised_optimizer(self, self.make_optimizer, self.settings, self.total_steps)
