"""Open the rewards that a config names, standardize them, and combine them into one scorer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel

from rlhf_lightning.data.encoding import EncodedPrompt, Encoder
from rlhf_lightning.errors import ArtifactError, DataError
from rlhf_lightning.models.classifier import Classifier, positive_index
from rlhf_lightning.models.loading import adapter_at, load_tokenizer
from rlhf_lightning.models.sharing import classifier_on, why_not_shared
from rlhf_lightning.rollouts.sampler import PromptStream, Sampler
from rlhf_lightning.rollouts.scoring import RewardModelScorer, Scorer, StandardizedScorer, same_tokenizer
from rlhf_lightning.stages.context import StageContext

logger = logging.getLogger(__name__)

SMALLEST_STD = 0.05
"""Log-odds. A reward model with a smaller one carries almost no signal (it may have learned from ties), and division
by it would amplify its noise."""


@dataclass(frozen=True, slots=True)
class RewardStatistics:
    """Mean and standard deviation that standardize a reward: (raw - mean) / std."""

    mean: float
    std: float


def standardized(rewards: Sequence[Scorer], statistics: Sequence[RewardStatistics]) -> list[Scorer]:
    """The rewards, each with mean 0 and standard deviation 1 on the samples that it was measured on."""
    return [StandardizedScorer(one, **asdict(scale)) for one, scale in zip(rewards, statistics, strict=True)]


def open_reward_model(context: StageContext, name: str, encoder: Encoder) -> RewardModelScorer:
    """A separate reward model, as a scorer of responses of a policy with `encoder`'s tokenizer."""
    return _as_scorer(context, Classifier.load(context.inputs.model(name), None), encoder)


def reward_on_policy(
    context: StageContext, name: str, encoder: Encoder, policy: PreTrainedModel, adapter: str
) -> RewardModelScorer:
    """A reward model on the policy's frozen weights, or a separate one if that is not possible or not configured.

    Raises:
        ArtifactError: `model.share_backbone=true`, and it is not possible.
    """
    share = context.settings.model.share_backbone
    source = context.inputs.model(name)
    files = adapter_at(source)
    if share is False:
        reason: str | None = "model.share_backbone=false"
    elif context.settings.trainer.strategy == "fsdp":
        reason = "trainer=fsdp puts weights together for a whole policy only"
    else:
        reason = why_not_shared(policy, files)
    if reason is not None or files is None:
        if share is True:
            raise ArtifactError(
                f"The reward model cannot share the policy's weights: {reason}.",
                where=f"model.share_backbone=true, {source.name_or_path}",
                fix="train both with the same peft from the same base, or set model.share_backbone=auto",
            )
        logger.info("Reward model %s: a model of its own (%s).", name, reason)
        return open_reward_model(context, name, encoder)
    model, role = classifier_on(policy, files, adapter)
    logger.info("Reward model %s: on the policy's frozen weights.", name)
    positive = positive_index(model, None, source.name_or_path)
    return _as_scorer(context, Classifier(model, load_tokenizer(source), positive, role), encoder)


def _as_scorer(context: StageContext, classifier: Classifier, encoder: Encoder) -> RewardModelScorer:
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
    """Mean and standard deviation of each raw reward on the starting policy's finished responses.

    Raises:
        DataError: too few responses end with an end token to measure a std.
    """
    count = context.settings.reward.standardize_on_reference
    if count is None:
        return [RewardStatistics(mean=0.0, std=1.0) for _ in rewards]
    stream = PromptStream(prompts, context.seed + 1)
    # Draws below 0 are not used by any rollout.
    drawn = sampler.sample_in_chunks(stream.take(count), range(-count, 0), context.settings.rollout.chunk_size)
    finished = [response for samples in drawn for response in samples.responses if response.finished]
    if len(finished) < 2:
        raise DataError(
            f"Of {count} responses of the starting policy {len(finished)} end themselves: too few to standardize by.",
            where="reward.standardize_on_reference",
            fix="raise rollout.max_new_tokens, train SFT for longer, or set reward.standardize_on_reference=null",
        )
    size = context.settings.rollout.chunk_size
    chunks = [finished[start : start + size] for start in range(0, len(finished), size)]
    scored = [torch.cat([reward.score(chunk) for chunk in chunks]) for reward in rewards]
    if any(float(scores.std()) < SMALLEST_STD for scores in scored):
        logger.warning("A reward hardly tells the starting policy's responses apart: it is not stretched to full size.")
    return [RewardStatistics(float(scores.mean()), max(float(scores.std()), SMALLEST_STD)) for scores in scored]
