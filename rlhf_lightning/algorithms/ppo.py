"""Proximal policy optimization: phase two of an iteration, on the rollouts that phase one left in the buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.algorithms.optimization import OptimizerFactory, linear_decay, with_schedule
from rlhf_lightning.distributed import all_reduce_means, all_reduce_sum, world_size
from rlhf_lightning.models.actor_critic import ActorCritic, ResponseOutputs
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.objectives.kl import kl_loss
from rlhf_lightning.objectives.masked_stats import masked_mean, masked_sum
from rlhf_lightning.objectives.ppo import clipped_policy_loss, clipped_value_loss
from rlhf_lightning.rollouts.buffer import Minibatch, Rollout
from rlhf_lightning.rollouts.reward_shaping import KlController

if TYPE_CHECKING:
    from rlhf_lightning.stages.ppo import PpoSettings


class PPO(pl.LightningModule):
    """Maximize reward within a trust region around the policy that sampled.

    One Lightning epoch is one iteration: `RolloutBufferCallback` fills the buffer when it starts, the dataloader
    iterates over it, and `training_step` is a forward pass and the weighted sum of the losses.

    Args:
        actor_critic: policy and critic, without dropout.
        reference: the frozen policy; asked again only where the exact KL is part of the loss.
        kl: the KL penalty.
        settings: of the stage.
        temperature: that rollouts are sampled at.
        optimizer: makes the optimizer.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        reference: FrozenReference,
        kl: KlController,
        settings: PpoSettings,
        temperature: float,
        optimizer: OptimizerFactory,
    ) -> None:
        super().__init__()
        self.actor_critic = actor_critic
        self.reference = reference
        self.kl = kl
        self.settings = settings
        self.temperature = temperature
        self.make_optimizer = optimizer
        self.update_is_over = False
        """True after an early stop within an iteration: its remaining minibatches are skipped."""
        self._step_kl = torch.zeros(2)
        """Sums of approximate KL and of tokens in the current optimizer step."""

    def forward(self, rollout: Rollout) -> ResponseOutputs:
        inputs = rollout.sequences, rollout.attention_mask, rollout.response_length
        exact = self.kl.in_loss and self.kl.estimator is None
        outputs: ResponseOutputs = self.actor_critic(
            *inputs,
            self.temperature,
            with_entropy=self.settings.entropy_coef > 0,
            reference_logits=self.reference.logits(*inputs, rollout.trunk_states) if exact else None,
            trunk_states=rollout.trunk_states,
        )
        return outputs

    def training_step(self, batch: Minibatch, _: int) -> Tensor:
        rollout, mask, settings = batch.rollout, batch.rollout.response_mask, self.settings
        outputs = self(rollout)
        policy = clipped_policy_loss(outputs.logprobs, rollout.logprobs, rollout.advantages, settings.clip_range)
        value = clipped_value_loss(outputs.values, rollout.values, rollout.returns, settings.value_clip_range)
        losses = policy.loss + settings.value_coef * value.loss
        figures = {
            "policy/loss": policy.loss,
            "policy/ratio": policy.ratio,
            "policy/approx_kl": policy.approx_kl,
            "policy/clip_fraction": policy.clipped,
            "value/loss": value.loss,
            "value/clip_fraction": value.clipped,
        }
        if outputs.entropies is not None:
            losses = losses - settings.entropy_coef * outputs.entropies
            figures["policy/entropy"] = outputs.entropies
        if self.kl.in_loss:
            kl = self._kl_loss(outputs, rollout)
            losses = losses + self.kl.coef * kl
            figures["policy/kl_loss"] = kl
        self._log(figures, mask)
        if settings.target_kl is not None:
            measured = torch.stack([masked_sum(policy.approx_kl, mask), mask.sum()])
            self._step_kl = self._step_kl.to(measured.device) + measured
        # Tokens are weighted alike over the whole optimizer step; Lightning divides by the accumulated micro-batches,
        # and averages the gradients of the processes.
        return masked_sum(losses, mask) / batch.step_weight * self.trainer.accumulate_grad_batches * world_size()

    def _kl_loss(self, outputs: ResponseOutputs, rollout: Rollout) -> Tensor:
        if self.kl.estimator is None:
            assert outputs.kl is not None
            return outputs.kl
        return kl_loss(self.kl.estimator, outputs.logprobs, rollout.logprobs, rollout.reference_logprobs)

    def _log(self, per_token: dict[str, Tensor], mask: Tensor) -> None:
        means = {name: masked_mean(values.detach(), mask) for name, values in per_token.items()}
        figures, tokens = all_reduce_means(means, int(mask.sum()))
        # Weighted by tokens, so that the epoch's mean is the mean over tokens, not over micro-batches.
        self.log_dict(figures, on_step=False, on_epoch=True, batch_size=tokens)

    @property
    def warming_up(self) -> bool:
        """True while only the critic is trained."""
        return self.current_epoch < self.settings.critic_warmup

    def on_train_epoch_start(self) -> None:
        self._steps_before = self.trainer.global_step

    def on_train_batch_start(self, batch: Minibatch, _: int) -> int | None:
        """Return -1 to end the iteration's update."""
        del batch
        return -1 if self.update_is_over else None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.warming_up:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = None  # an optimizer leaves such a parameter alone, its moments included

    def on_train_batch_end(self, outputs: Any, batch: Minibatch, batch_idx: int) -> None:
        """Stop the update once an optimizer step exceeded the target KL: the rollouts are too off-policy then.

        Stable-Baselines3 skips that step, and measures at 1.5 times the target. Here the gradients of its micro-batches
        are accumulated when the KL of the whole step is known, so the step is taken and is the last.
        """
        del outputs, batch
        if self.settings.target_kl is None or (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        summed, tokens = all_reduce_sum(self._step_kl).tolist()
        self._step_kl = torch.zeros_like(self._step_kl)
        self.update_is_over = summed / tokens > self.settings.target_kl

    def on_train_epoch_end(self) -> None:
        self.update_is_over = False
        self.log("policy/optimizer_steps", float(self.trainer.global_step - self._steps_before), batch_size=1)

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            self.actor_critic.shard(self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [
            {"params": self.actor_critic.policy_parameters(), "name": "policy"},
            {
                "params": self.actor_critic.critic_parameters(),
                "lr": self.settings.critic_learning_rate,
                "name": "critic",
            },
        ]
        optimizer = self.make_optimizer(groups, lr=self.settings.learning_rate)
        if self.settings.lr_schedule == "constant":
            return optimizer
        return with_schedule(optimizer, linear_decay(self.settings.iterations), interval="epoch")
