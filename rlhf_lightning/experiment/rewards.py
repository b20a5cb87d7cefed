"""The rewards that a config names, opened, put on a common scale and combined into one scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from rlhf_lightning.data.encoding import EncodedPrompt, Encoder
from rlhf_lightning.errors import DataError
from rlhf_lightning.experiment.stage import StageContext
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.rewards.classifier import Classifier
from rlhf_lightning.rewards.scorers import RewardModelScorer, TextScorer, same_tokenizer
from rlhf_lightning.rollouts.prompts import PromptStream
from rlhf_lightning.rollouts.sampler import Sampler
from rlhf_lightning.rollouts.scorer import EnsembleScorer, Scorer, StandardisedScorer
from rlhf_lightning.settings.reinforcement import EnsembleReward, LearnedReward


@dataclass(frozen=True, slots=True)
class RewardStatistics:
    """How a reward is put on a common scale: (raw - offset) / spread."""

    offset: float
    spread: float


def open_rewards(context: StageContext, encoder: Encoder) -> list[Scorer]:
    """The raw rewards that the reward group names; more than one for an ensemble."""
    reward = context.settings.reward
    if isinstance(reward, LearnedReward):
        return [open_reward_model(context, context.settings.ppo.reward_from, encoder)]
    if isinstance(reward, EnsembleReward):
        return [open_reward_model(context, name, encoder) for name in reward.models]
    classifier = Classifier.load(ModelSource(reward.name_or_path), reward.positive_label)
    return [TextScorer(classifier, include_prompt=reward.include_prompt).to(context.device)]


def combined(context: StageContext, rewards: Sequence[Scorer], statistics: Sequence[RewardStatistics]) -> Scorer:
    """One scorer of the standardised rewards."""
    members = [StandardisedScorer(one, **asdict(scale)) for one, scale in zip(rewards, statistics, strict=True)]
    reward = context.settings.reward
    if isinstance(reward, EnsembleReward):
        return EnsembleScorer(members, combine=reward.combine, disagreement_coef=reward.disagreement_coef)
    return members[0]


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
    context: StageContext, sampler: Sampler, rewards: Sequence[Scorer], prompts: list[EncodedPrompt]
) -> list[RewardStatistics]:
    """Mean and standard deviation of each raw reward on the starting policy's finished replies.

    Raises:
        DataError: too few replies end themselves to measure a spread.
    """
    count = context.settings.reward.standardise_on_reference
    if count is None:
        return [RewardStatistics(offset=0.0, spread=1.0) for _ in rewards]
    stream = PromptStream(prompts, context.seed + 1)
    # Draws below 0 are no rollout's.
    drawn = sampler.sample_in_chunks(stream.take(count), range(-count, 0), context.settings.rollout.chunk_size)
    finished = [completion for samples in drawn for completion in samples.completions if completion.finished]
    if len(finished) < 2:
        raise DataError(
            f"Of {count} replies of the starting policy {len(finished)} end themselves: too few to standardise scores.",
            where="reward.standardise_on_reference",
            fix="raise rollout.max_new_tokens, train SFT for longer, or set reward.standardise_on_reference=null",
        )
    scored = [reward.score(finished) for reward in rewards]
    return [RewardStatistics(float(scores.mean()), max(float(scores.std()), 1e-6)) for scores in scored]
