"""One iteration of PPO, top to bottom.

`RolloutBufferCallback.on_train_epoch_start` begins it: `RolloutCollector.collect` samples responses, evaluates them
under policy, critic and reference, scores them, makes rewards of scores and KL, and estimates advantages. The rollouts
fill the buffer, whose minibatches Lightning hands to `ppo.PPO.training_step`: phase two, the update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.distributed import all_gather_object, rank, world_size
from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.objectives.advantages import explained_variance, generalized_advantages, token_rewards
from rlhf_lightning.objectives.kl import estimate_kl, k1
from rlhf_lightning.objectives.logprobs import token_logprobs
from rlhf_lightning.objectives.masked_stats import correlation, masked_mean, masked_whiten, sequence_sums
from rlhf_lightning.rollouts.buffer import Rollout, RolloutBuffer, concatenate
from rlhf_lightning.rollouts.diversity import repetition
from rlhf_lightning.rollouts.reward_shaping import KlController, RewardShaper
from rlhf_lightning.rollouts.sampler import PromptStream, SampledResponse, Sampler, Samples
from rlhf_lightning.rollouts.scoring import Scorer
from rlhf_lightning.rollouts.settings import AdvantageSettings


@dataclass(frozen=True, slots=True)
class CollectedRollouts:
    """One iteration's rollouts.

    Attributes:
        metrics: masked, token-weighted figures under the field's usual names.
    """

    rollout: Rollout
    responses: tuple[SampledResponse, ...]
    metrics: dict[str, float]


Observer = Callable[[int, CollectedRollouts], dict[str, float]]
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
        observers: see each iteration's rollouts (a sample log, the gold reward of a synthetic world).

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


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's share of a rollout.

    Attributes:
        rollout: without rewards and advantages.
        generating: seconds.
        scoring: seconds.
    """

    rollout: Rollout
    responses: list[SampledResponse]
    generating: float
    scoring: float


class RolloutCollector:
    """Samples the policy, scores the responses, measures the KL to the reference and estimates advantages.

    Args:
        actor_critic: sampled as it stands at each call.
        sampler: draws from `actor_critic.policy`.
        reference: the frozen policy that KL is measured to.
        scorer: the reward of a response.
        shaper: makes scores of rewards.
        kl: the KL penalty.
        advantage: how advantages are estimated.
        chunk_size: rollouts generated and scored together.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        sampler: Sampler,
        reference: FrozenReference,
        scorer: Scorer,
        *,
        shaper: RewardShaper,
        kl: KlController,
        advantage: AdvantageSettings,
        chunk_size: int,
        temperature: float,
    ) -> None:
        self.actor_critic = actor_critic
        self.sampler = sampler
        self.reference = reference
        self.scorer = scorer
        self.shaper = shaper
        self.kl = kl
        self.advantage = advantage
        self.chunk_size = chunk_size
        self.temperature = temperature

    def to(self, device: torch.device) -> None:
        """Move the frozen models; the policy's device is its trainer's business."""
        self.reference.to(device)
        self.scorer.to(device)

    @torch.no_grad()
    def collect(
        self,
        prompts: Sequence[EncodedPrompt],
        draws: Sequence[int],
        precision: AbstractContextManager[None] | None = None,
    ) -> CollectedRollouts:
        """One rollout batch. Each process samples its share, and gets all.

        Args:
            prompts: one rollout each, the same on all processes; as many as these divide.
            draws: the number of each rollout's draw.
            precision: the training's precision context, so that old and new log-probs come from the same arithmetic.
        """
        rollouts: list[Rollout] = []
        responses: list[SampledResponse] = []
        generating = scoring = 0.0
        share = slice(rank(), None, world_size())
        started = time.perf_counter()
        with precision or nullcontext(), evaluating(self.actor_critic):
            for samples in self.sampler.sample_in_chunks(prompts[share], draws[share], self.chunk_size):
                sampled = time.perf_counter()
                generating += sampled - started
                rollouts.append(self._evaluated(samples))
                responses.extend(samples.responses)
                scoring += (started := time.perf_counter()) - sampled
        own = Share(concatenate(rollouts, self.sampler.pad_id), responses, generating, scoring)
        everything = self._merged(own)
        rollout = self._with_advantages(self._with_rewards(everything.rollout))
        metrics = rollout_metrics(rollout)
        metrics |= {
            "rollout/repetition": sum(repetition(done.response_ids) for done in everything.responses) / len(rollout),
            "rollout/tokens_per_second": float(rollout.response_mask.sum()) / everything.generating,
            "time/generate": everything.generating,
            "time/score": everything.scoring,
            **self.kl.metrics(),
        }
        return CollectedRollouts(rollout, tuple(everything.responses), metrics)

    def _merged(self, own: Share) -> Share:
        """The shares of all processes as one, in the order of the prompts: the same, bit for bit, on each process."""
        if world_size() == 1:
            return own
        shares = all_gather_object(replace(own, rollout=own.rollout.to("cpu")))
        merged = concatenate([share.rollout for share in shares], self.sampler.pad_id)
        # Rank r has the prompts r, r + ranks, r + 2 * ranks, ...
        order = torch.arange(len(merged)).view(len(shares), -1).T.flatten()
        return Share(
            rollout=merged.select(order).to(own.rollout.sequences.device),
            responses=[done for row in zip(*(share.responses for share in shares), strict=True) for done in row],
            generating=max(share.generating for share in shares),
            scoring=max(share.scoring for share in shares),
        )

    def _evaluated(self, samples: Samples) -> Rollout:
        """Evaluate a chunk of samples: log-probs of both policies, KL, values and raw scores."""
        inputs = samples.sequences, samples.attention_mask, samples.response_mask.shape[1]
        estimator = self.kl.estimator
        states = self.actor_critic.trunk_states(samples.sequences, samples.attention_mask)
        logits = self.reference.logits(*inputs, states)
        reference = token_logprobs(logits, samples.response_ids, self.temperature)
        exact_to = logits if estimator is None else None
        del logits  # unless the exact KL needs them, they make room for the policy's
        policy = self.actor_critic(*inputs, self.temperature, reference_logits=exact_to, trunk_states=states)
        device = samples.sequences.device
        empty = torch.zeros_like(policy.logprobs)
        return Rollout(
            sequences=samples.sequences,
            attention_mask=samples.attention_mask,
            response_mask=samples.response_mask,
            sampled_logprobs=samples.logprobs,
            logprobs=policy.logprobs,
            reference_logprobs=reference,
            kl=policy.kl if estimator is None else estimate_kl(estimator, policy.logprobs, reference),
            values=policy.values,
            raw_scores=self.scorer.score(samples.responses).to(device),
            scores=torch.zeros(len(samples.responses), device=device),
            finished=torch.tensor([response.finished for response in samples.responses], device=device),
            rewards=empty,
            advantages=empty,
            returns=empty,
            trunk_states=states,
        )

    def _with_rewards(self, rollout: Rollout) -> Rollout:
        scores = self.shaper.shape(rollout.raw_scores, rollout.response_mask.sum(dim=1), rollout.finished)
        rewards = token_rewards(scores, rollout.kl, rollout.response_mask, self.kl.reward_coef)
        return replace(rollout, scores=scores, rewards=rewards)

    def _with_advantages(self, rollout: Rollout) -> Rollout:
        settings, mask = self.advantage, rollout.response_mask
        rewards = masked_whiten(rollout.rewards, mask, shift_mean=False) if settings.whiten_rewards else rollout.rewards
        advantages, returns = generalized_advantages(rewards, rollout.values, mask, settings.gamma, settings.gae_lambda)
        if settings.whiten:
            advantages = masked_whiten(advantages, mask)
        return replace(rollout, advantages=advantages, returns=returns)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """The module in evaluation mode: gradient checkpointing, which is training mode's, forbids a generation cache."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Metrics of a rollout batch. KL and reward are sums over a response, averaged over responses."""
    mask = rollout.response_mask
    lengths = mask.sum(dim=1).float()
    scores, raw_scores = rollout.scores.double(), rollout.raw_scores.double()  # a constant's mean is that constant
    kl = k1(rollout.logprobs, rollout.reference_logprobs)
    figures: dict[str, Tensor] = {
        "objective/score": scores.mean(),
        "objective/score_std": scores.std(correction=0),
        "objective/raw_score": raw_scores.mean(),
        "objective/kl": sequence_sums(kl, mask).mean(),
        "objective/kl_penalized": sequence_sums(rollout.kl, mask).mean(),
        "objective/reward": sequence_sums(rollout.rewards, mask).mean(),
        # The mean of -log pi over sampled tokens estimates the entropy without a (batch, time, vocab) tensor.
        "objective/entropy": masked_mean(-rollout.logprobs, mask),
        "rollout/length": lengths.mean(),
        "rollout/eos_rate": rollout.finished.float().mean(),
        "rollout/score_length_correlation": correlation(scores, lengths),
        "rollout/logprob_mismatch": masked_mean((rollout.sampled_logprobs - rollout.logprobs).abs(), mask),
        "value/mean": masked_mean(rollout.values, mask),
        "value/explained_variance": explained_variance(rollout.values, rollout.returns, mask),
    }
    return {name: float(value) for name, value in figures.items()}
