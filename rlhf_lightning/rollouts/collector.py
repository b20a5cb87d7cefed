"""Phase one of PPO: prompts in, a scored rollout batch with advantages out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.objectives.advantages import explained_variance, generalised_advantages
from rlhf_lightning.objectives.kl import k1
from rlhf_lightning.objectives.masked_stats import masked_mean, masked_whiten, sequence_sums
from rlhf_lightning.objectives.rewards import replace_unfinished, token_rewards
from rlhf_lightning.rollouts.repetition import repetition
from rlhf_lightning.rollouts.rollout import Rollout, concatenate
from rlhf_lightning.rollouts.sampler import Completion, Sampler, Samples
from rlhf_lightning.rollouts.scorer import Scorer
from rlhf_lightning.settings.reinforcement import AdvantageSettings


@dataclass(frozen=True, slots=True)
class Collected:
    """One iteration's rollouts.

    Attributes:
        metrics: masked, token-weighted figures under the field's usual names.
    """

    rollout: Rollout
    completions: tuple[Completion, ...]
    metrics: dict[str, float]


class RolloutCollector:
    """Samples the policy, scores the replies, measures the KL to the reference and estimates advantages.

    Args:
        actor_critic: sampled as it stands at each call.
        sampler: draws from `actor_critic.policy`.
        reference: the frozen policy that KL is measured to.
        scorer: the (shaped) reward.
        chunk_size: rollouts generated and scored together.
        kl_coef: of the per-token KL penalty; 0 measures it only.
        missing_eos_penalty: the score of an unfinished reply; None leaves its own.
        advantage: how advantages are estimated.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        sampler: Sampler,
        reference: FrozenReference,
        scorer: Scorer,
        *,
        chunk_size: int,
        temperature: float,
        kl_coef: float,
        missing_eos_penalty: float | None,
        advantage: AdvantageSettings,
    ) -> None:
        self.actor_critic = actor_critic
        self.sampler = sampler
        self.reference = reference
        self.scorer = scorer
        self.chunk_size = chunk_size
        self.temperature = temperature
        self.kl_coef = kl_coef
        self.missing_eos_penalty = missing_eos_penalty
        self.advantage = advantage

    def to(self, device: torch.device) -> None:
        """Move the frozen models; the policy's device is its trainer's business."""
        self.reference.to(device)
        self.scorer.to(device)

    @torch.no_grad()
    def collect(
        self, prompts: Sequence[EncodedPrompt], precision: AbstractContextManager[None] | None = None
    ) -> Collected:
        """One rollout batch.

        Args:
            prompts: one rollout each.
            precision: the training's precision context, so that old and new log-probs come from the same arithmetic.
        """
        rollouts: list[Rollout] = []
        completions: list[Completion] = []
        generating = scoring = 0.0
        started = time.perf_counter()
        with precision or nullcontext():
            for samples in self.sampler.sample_in_chunks(prompts, self.chunk_size):
                sampled = time.perf_counter()
                generating += sampled - started
                rollouts.append(self._evaluated(samples))
                completions.extend(samples.completions)
                scoring += (started := time.perf_counter()) - sampled
        rollout = self._with_advantages(concatenate(rollouts, self.sampler.pad_id))
        metrics = rollout_metrics(rollout)
        metrics |= {
            "rollout/repetition": sum(repetition(done.reply_ids) for done in completions) / len(completions),
            "rollout/tokens_per_second": float(rollout.reply_mask.sum()) / generating,
            "time/generate": generating,
            "time/score": scoring,
            "kl/coef": self.kl_coef,
        }
        return Collected(rollout, tuple(completions), metrics)

    def _evaluated(self, samples: Samples) -> Rollout:
        """Scores, log-probs of both policies, values and per-token rewards; advantages still empty."""
        reply_length = samples.reply_mask.shape[1]
        policy = self.actor_critic(samples.sequences, samples.attention_mask, reply_length, self.temperature)
        reference = self.reference.logprobs(samples.sequences, samples.attention_mask, reply_length, self.temperature)
        device = samples.sequences.device
        finished = torch.tensor([completion.finished for completion in samples.completions], device=device)
        scores = self.scorer.score(samples.completions).to(device)
        scores = replace_unfinished(scores, finished, self.missing_eos_penalty)
        empty = torch.zeros_like(policy.logprobs)
        return Rollout(
            sequences=samples.sequences,
            attention_mask=samples.attention_mask,
            reply_mask=samples.reply_mask,
            logprobs=policy.logprobs,
            reference_logprobs=reference,
            values=policy.values,
            scores=scores,
            finished=finished,
            rewards=token_rewards(scores, k1(policy.logprobs, reference), samples.reply_mask, self.kl_coef),
            advantages=empty,
            returns=empty,
        )

    def _with_advantages(self, rollout: Rollout) -> Rollout:
        advantages, returns = generalised_advantages(
            rollout.rewards, rollout.values, rollout.reply_mask, self.advantage.gamma, self.advantage.lam
        )
        if self.advantage.whiten:
            advantages = masked_whiten(advantages, rollout.reply_mask)
        return replace(rollout, advantages=advantages, returns=returns)


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """What a rollout batch looks like, in figures. KL and reward are sums over a reply, averaged over replies."""
    mask = rollout.reply_mask
    kl = k1(rollout.logprobs, rollout.reference_logprobs)
    figures: dict[str, Tensor] = {
        "objective/score": rollout.scores.mean(),
        "objective/kl": sequence_sums(kl, mask).mean(),
        "objective/reward": sequence_sums(rollout.rewards, mask).mean(),
        # The mean of -log pi over sampled tokens estimates the entropy without a (batch, time, vocab) tensor.
        "objective/entropy": masked_mean(-rollout.logprobs, mask),
        "rollout/length": mask.sum(dim=1).float().mean(),
        "rollout/eos_rate": rollout.finished.float().mean(),
        "value/mean": masked_mean(rollout.values, mask),
        "value/explained_variance": explained_variance(rollout.values, rollout.returns, mask),
    }
    return {name: float(value) for name, value in figures.items()}
