"""The config groups of PPO: rollouts, KL penalty, advantages, reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf_lightning.sections import (
    NO_EFFECT,
    Count,
    Finite,
    Fraction,
    ModelRef,
    Name,
    NonNegative,
    Positive,
    Section,
    StageRef,
)


class RolloutSettings(Section):
    """Sampling of the policy: prompts per iteration, and the sampling distribution that all log-probs refer to."""

    batch_size: Count
    chunk_size: Annotated[Count, NO_EFFECT]
    max_new_tokens: Count
    temperature: Positive


class KlPenalty(Section):
    """Fields of every KL penalty: the estimator of the KL to the reference, and where the penalty is applied."""

    estimator: Literal["k1", "k2", "k3", "exact"]
    apply_to: Literal["reward", "loss"]
    coef: NonNegative


class FixedKl(KlPenalty):
    """Per-token penalty with a constant coefficient."""

    kind: Literal["fixed"]


class AdaptiveKl(KlPenalty):
    """Per-token penalty whose coefficient adapts to keep the KL of a response at a target (arXiv 1909.08593)."""

    kind: Literal["adaptive"]
    coef: Positive
    target: Positive
    horizon: Count


class NoKl(Section):
    """No penalty; the KL is still measured."""

    kind: Literal["none"]


KlSettings = Annotated[FixedKl | AdaptiveKl | NoKl, Field(discriminator="kind")]


class GaeSettings(Section):
    """Generalized advantage estimation (arXiv 1506.02438)."""

    kind: Literal["gae"]
    gamma: Fraction
    gae_lambda: Fraction
    whiten: bool
    whiten_rewards: bool


AdvantageSettings = GaeSettings


class RewardSection(Section):
    """Transformation of a raw score to the reward of PPO.

    The score is standardized on samples of the reference, or by its own running mean and deviation, or neither; then
    scaled, clipped, and reduced by a length penalty.
    """

    kind: str
    standardize_on_reference: Annotated[int, Field(ge=8)] | None
    running_normalization: bool
    scale: Positive
    clip: Positive | None
    length_penalty: Finite

    @model_validator(mode="after")
    def _one_standard(self) -> RewardSection:
        if self.running_normalization and self.standardize_on_reference is not None:
            raise ValueError(
                "running_normalization and standardize_on_reference exclude each other: "
                "set standardize_on_reference=null"
            )
        return self


class LearnedReward(RewardSection):
    """The reward model of this pipeline (or any artifact or directory: `ppo.reward_from`)."""

    kind: Literal["learned"]


class EnsembleReward(RewardSection):
    """Ensemble of reward models, each standardized by itself, against overoptimization (arXiv 2310.02743)."""

    kind: Literal["ensemble"]
    models: Annotated[list[StageRef], Field(min_length=2)]
    combine: Literal["mean_minus_std", "min"]
    disagreement_coef: NonNegative

    @model_validator(mode="after")
    def _coefficient_counts(self) -> EnsembleReward:
        if self.combine == "min" and self.disagreement_coef > 0:
            raise ValueError("disagreement_coef has no effect with combine=min: set it to 0")
        return self


class ClassifierReward(RewardSection):
    """Any Transformers sequence classifier: the reward is the logit of one label, chosen by name."""

    kind: Literal["classifier"]
    name_or_path: ModelRef
    positive_label: Name
    include_prompt: bool
