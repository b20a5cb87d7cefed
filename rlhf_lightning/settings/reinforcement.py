"""The groups that PPO is put together from: rollouts, KL penalty, advantages, reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_lightning.settings.section import Count, Fraction, Name, NonNegative, Positive, Section


class RolloutSettings(Section):
    """How the policy is sampled: prompts an iteration, and the sampling distribution that all log-probs share."""

    batch_size: Count
    chunk_size: Count
    max_new_tokens: Count
    temperature: Positive


class FixedKl(Section):
    """Per-token penalty with a constant coefficient."""

    kind: Literal["fixed"]
    coef: NonNegative


class NoKl(Section):
    """No penalty; the KL is still measured."""

    kind: Literal["none"]


KlSettings = Annotated[FixedKl | NoKl, Field(discriminator="kind")]


class GaeSettings(Section):
    """Generalised advantage estimation (arXiv 1506.02438)."""

    kind: Literal["gae"]
    gamma: Fraction
    lam: Fraction
    whiten: bool


AdvantageSettings = GaeSettings


class RewardShaping(Section):
    """From a raw score to the reward that PPO sees: (raw - offset) / spread * scale."""

    standardise_on_reference: Annotated[int, Field(ge=8)] | None
    scale: Positive


class LearnedReward(RewardShaping):
    """The reward model of this pipeline (or any artifact or directory: `ppo.reward_from`)."""

    kind: Literal["learned"]


class ClassifierReward(RewardShaping):
    """Any Transformers sequence classifier: the reward is the logit of one label, chosen by name."""

    kind: Literal["classifier"]
    name_or_path: Name
    positive_label: Name
    include_prompt: bool


RewardSettings = Annotated[LearnedReward | ClassifierReward, Field(discriminator="kind")]
