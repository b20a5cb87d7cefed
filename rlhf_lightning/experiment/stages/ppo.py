"""Stage `ppo`: a policy and a reward in, a policy that earns more of it out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.callbacks.gold_monitor import gold_monitor
from rlhf_lightning.callbacks.rollout_buffer import Observer, RolloutBufferCallback
from rlhf_lightning.callbacks.sample_diary import SampleDiary
from rlhf_lightning.data.encoding import EncodedPrompt, Encoder
from rlhf_lightning.errors import DataError, DivergedError
from rlhf_lightning.experiment.stage import StageContext, StageResult
from rlhf_lightning.experiment.training import build_trainer
from rlhf_lightning.models.actor_critic import ActorCritic, SeparateCritic
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_classifier, load_policy, load_tokenizer
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.saving import save_policy
from rlhf_lightning.rewards.classifier import Classifier
from rlhf_lightning.rewards.scorers import RewardModelScorer, TextScorer, same_tokenizer
from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.collector import RolloutCollector
from rlhf_lightning.rollouts.prompts import PromptStream
from rlhf_lightning.rollouts.sampler import Sampler
from rlhf_lightning.rollouts.scorer import Scorer, StandardisedScorer
from rlhf_lightning.settings.data import CourtesyData
from rlhf_lightning.settings.reinforcement import LearnedReward

STATISTICS_FILE = "reward_statistics.json"


@dataclass(frozen=True, slots=True)
class RewardStatistics:
    """How raw scores become rewards: (raw - offset) / spread * scale."""

    offset: float
    spread: float
    scale: float


def run_ppo(context: StageContext) -> StageResult:
    """Optimise the policy against the reward and leave it, with its critic, as a Hugging Face directory."""
    settings, rollout = context.settings.ppo, context.settings.rollout
    context.seed_everything()
    source = context.inputs.model(settings.policy_from)
    encoder = context.inputs.encoder(source)
    prompts, report = encoder.prompts(context.inputs.data.prompts())
    stream = PromptStream(prompts, context.seed)
    policy = load_policy(source, context.device)
    reference = FrozenReference.copy_of(policy)
    fingerprint = reference.fingerprint()
    sampler = Sampler(policy, encoder.tokenizer, temperature=rollout.temperature, max_new_tokens=rollout.max_new_tokens)
    raw_scorer = open_scorer(context, encoder)
    statistics = reward_statistics(context, sampler, raw_scorer, prompts)
    scorer = StandardisedScorer(raw_scorer, **asdict(statistics))
    actor_critic = ActorCritic(policy, _critic(context, policy, encoder, statistics))
    buffer = RolloutBuffer(
        batch_size=rollout.batch_size,
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        micro_batch_size=settings.micro_batch_size,
        seed=context.seed,
    )
    collector = RolloutCollector(
        actor_critic,
        sampler,
        reference,
        scorer,
        chunk_size=rollout.chunk_size,
        temperature=rollout.temperature,
        kl_coef=context.settings.kl.coef if context.settings.kl.kind == "fixed" else 0.0,
        missing_eos_penalty=settings.missing_eos_penalty,
        advantage=context.settings.advantage,
    )
    module = PPO(
        actor_critic,
        settings,
        rollout.temperature,
        context.inputs.make_optimizer,
        settings.iterations * settings.epochs * settings.minibatches,
    )
    trainer = build_trainer(
        context,
        max_epochs=settings.iterations,
        accumulate=buffer.micro_batches_per_step,
        max_grad_norm=settings.max_grad_norm,
        epoch_is_iteration=True,
        callbacks=[RolloutBufferCallback(collector, buffer, stream, _observers(context))],
    )
    trainer.fit(module, DataLoader(buffer, batch_size=None))
    if reference.fingerprint() != fingerprint:
        raise DivergedError("The frozen reference changed during training.", fix="report this: it is a defect")
    actor_critic.save_critic(context.directory)
    save_policy(policy, encoder.tokenizer, context.directory)
    (context.directory / STATISTICS_FILE).write_text(json.dumps(asdict(statistics), indent=2))
    final = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics = {
        "iterations": trainer.current_epoch,
        "optimizer_steps": trainer.global_step,
        "episodes": stream.taken,
        "prompts": report.kept,
        "truncated_prompts": report.truncated_prompts,
        "dropped_prompts": report.dropped,
        "score": final["objective/score"],
        "kl": final["objective/kl"],
        "entropy": final["objective/entropy"],
        "length": final["rollout/length"],
        "eos_rate": final["rollout/eos_rate"],
        "reward_offset": statistics.offset,
        "reward_spread": statistics.spread,
    }
    return StageResult(metrics, objective=metrics["score"])


def open_scorer(context: StageContext, encoder: Encoder) -> Scorer:
    """The raw reward that the reward group names."""
    reward = context.settings.reward
    if isinstance(reward, LearnedReward):
        return open_reward_model(context, context.settings.ppo.reward_from, encoder)
    source = ModelSource(reward.name_or_path)
    classifier = Classifier.load(source, reward.positive_label)
    return TextScorer(classifier, include_prompt=reward.include_prompt).to(context.device)


def open_reward_model(context: StageContext, name: str, encoder: Encoder) -> RewardModelScorer:
    """A reward model as a scorer of what a policy with `encoder`'s tokenizer says."""
    source = context.inputs.model(name)
    classifier = Classifier.load(source, None)
    own = (
        None
        if same_tokenizer(classifier.tokenizer, encoder.tokenizer)
        else Encoder(classifier.tokenizer, context.settings.data)
    )
    return RewardModelScorer(classifier, own).to(context.device)


@torch.no_grad()
def reward_statistics(
    context: StageContext, sampler: Sampler, scorer: Scorer, prompts: list[EncodedPrompt]
) -> RewardStatistics:
    """Mean and standard deviation of the raw scores of the starting policy's finished replies.

    Raises:
        DataError: too few replies end themselves to measure a spread.
    """
    reward = context.settings.reward
    count = reward.standardise_on_reference
    if count is None:
        return RewardStatistics(offset=0.0, spread=1.0, scale=reward.scale)
    stream = PromptStream(prompts, context.seed + 1)
    drawn = sampler.sample_in_chunks(stream.take(count), context.settings.rollout.chunk_size)
    finished = [completion for samples in drawn for completion in samples.completions if completion.finished]
    if len(finished) < 2:
        raise DataError(
            f"Of {count} replies of the starting policy {len(finished)} end themselves: too few to standardise scores.",
            where="reward.standardise_on_reference",
            fix="raise rollout.max_new_tokens, train SFT for longer, or set reward.standardise_on_reference=null",
        )
    scores = scorer.score(finished)
    return RewardStatistics(offset=float(scores.mean()), spread=max(float(scores.std()), 1e-6), scale=reward.scale)


def _critic(
    context: StageContext, policy: PreTrainedModel, encoder: Encoder, statistics: RewardStatistics
) -> SeparateCritic | None:
    kind = context.settings.ppo.critic
    if kind == "policy_trunk":
        return None
    if kind == "separate":
        return SeparateCritic.from_policy(policy)
    source = context.inputs.model(context.settings.ppo.reward_from)
    if not same_tokenizer(load_tokenizer(source), encoder.tokenizer):
        raise DataError(
            "The reward model has another tokenizer than the policy, so it cannot become its critic.",
            where="ppo.critic=reward_model",
            fix="use ppo.critic=separate or policy_trunk",
        )
    return SeparateCritic.from_reward_model(
        load_classifier(source), offset=statistics.offset, spread=statistics.spread / statistics.scale
    )


def _observers(context: StageContext) -> list[Observer]:
    callbacks = context.settings.callbacks
    diary: Observer = SampleDiary(
        Path(context.directory) / "diary.jsonl", every=callbacks.diary_every, samples=callbacks.diary_samples
    )
    return [diary, gold_monitor] if isinstance(context.settings.data, CourtesyData) else [diary]
