"""Proximal policy optimisation: phase two of an iteration, on the rollouts that phase one left in the buffer."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from rlhf_lightning.algorithms.optimization import OptimizerFactory, linear_decay, scheduled, trainable
from rlhf_lightning.models.actor_critic import ActorCritic, ReplyOutputs
from rlhf_lightning.objectives.masked_stats import masked_mean, masked_sum
from rlhf_lightning.objectives.ppo import PolicyLoss, ValueLoss, clipped_policy_loss, clipped_value_loss
from rlhf_lightning.rollouts.buffer import Minibatch
from rlhf_lightning.rollouts.rollout import Rollout
from rlhf_lightning.settings.stages import PpoSettings


class PPO(pl.LightningModule):
    """Maximise reward within a trust region around the policy that sampled.

    One Lightning epoch is one iteration: `RolloutBufferCallback` fills the buffer when it starts, the dataloader
    iterates over it, and `training_step` is a forward pass and the weighted sum of three losses.

    Args:
        actor_critic: policy and critic, without dropout.
        settings: of the stage.
        temperature: that rollouts are sampled at.
        optimizer: makes the optimizer.
        total_steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        settings: PpoSettings,
        temperature: float,
        optimizer: OptimizerFactory,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.actor_critic = actor_critic
        self.settings = settings
        self.temperature = temperature
        self.make_optimizer = optimizer
        self.total_steps = total_steps

    def forward(self, rollout: Rollout) -> ReplyOutputs:
        outputs: ReplyOutputs = self.actor_critic(
            rollout.sequences,
            rollout.attention_mask,
            rollout.reply_length,
            self.temperature,
            with_entropy=self.settings.entropy_coef > 0,
        )
        return outputs

    def training_step(self, batch: Minibatch, _: int) -> Tensor:
        rollout, mask = batch.rollout, batch.rollout.reply_mask
        outputs = self(rollout)
        policy = clipped_policy_loss(outputs.logprobs, rollout.logprobs, rollout.advantages, self.settings.clip_range)
        value = clipped_value_loss(outputs.values, rollout.values, rollout.returns, self.settings.value_clip_range)
        losses = policy.loss + self.settings.value_coef * value.loss
        if outputs.entropies is not None:
            losses = losses - self.settings.entropy_coef * outputs.entropies
        self._log(policy, value, outputs.entropies, mask)
        # Tokens are weighted alike over the whole optimizer step; Lightning divides by the accumulated micro-batches.
        return masked_sum(losses, mask) / batch.step_weight * self.trainer.accumulate_grad_batches

    def _log(self, policy: PolicyLoss, value: ValueLoss, entropies: Tensor | None, mask: Tensor) -> None:
        per_token = {
            "policy/loss": policy.loss.detach(),
            "policy/ratio": policy.ratio,
            "policy/approx_kl": policy.approx_kl,
            "policy/clip_fraction": policy.clipped,
            "value/loss": value.loss.detach(),
            "value/clip_fraction": value.clipped,
        }
        if entropies is not None:
            per_token["policy/entropy"] = entropies.detach()
        figures = {name: masked_mean(values, mask) for name, values in per_token.items()}
        # Weighted by tokens, so that the epoch's mean is the mean over tokens, not over micro-batches.
        self.log_dict(figures, on_step=False, on_epoch=True, batch_size=int(mask.sum()))

    def configure_optimizers(self) -> Any:
        critic = self.actor_critic.critic_parameters()
        groups: list[dict[str, Any]] = [
            {"params": trainable(self.actor_critic.policy), "name": "policy"},
            {"params": critic, "lr": self.settings.critic_learning_rate, "name": "critic"},
        ]
        optimizer = self.make_optimizer(groups, lr=self.settings.learning_rate)
        if self.settings.lr_schedule == "constant":
            return optimizer
        return scheduled(optimizer, linear_decay(self.total_steps))
