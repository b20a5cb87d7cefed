"""What each stage of a pipeline may be told. A section's name is its stage's name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf_lightning.settings.section import Count, Finite, Name, NonNegative, OpenFraction, Positive, Section

Kinds = Annotated[list[Name], Field(min_length=1)] | None
"""Kinds of prompts; None: all of them."""


class SupervisedLoop(Section):
    """One supervised training loop: epochs over shuffled batches, linear warm-up, linear decay to zero."""

    epochs: Count
    max_steps: Count | None
    batch_size: Count
    micro_batch_size: Count
    learning_rate: Positive
    warmup_fraction: OpenFraction
    max_grad_norm: Positive

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> SupervisedLoop:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


class SftSettings(SupervisedLoop):
    """Supervised fine-tuning on demonstrations."""

    policy_from: Name
    demonstrations_from: Name
    held_out_fraction: OpenFraction


class CritiqueRevisionSettings(Section):
    """Replies to red-team prompts, critiqued and revised by the principles of the constitution."""

    policy_from: Name
    reviser_from: Name
    prompts: Count
    kinds: Kinds
    prompts_from: Name | None
    last_turn_only: bool
    helpful_kinds: Kinds
    helpful_prompts_from: Name | None
    fewshots: Literal["auto", "always", "never"]
    batch_size: Count
    temperature: Positive
    max_new_tokens: Count
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


class JudgeCalibrationSettings(Section):
    """How often the judge is right where people have judged before."""

    pairs: Annotated[int, Field(ge=20)]
    data: Name | None
    bootstrap_samples: Annotated[int, Field(ge=100)]


class AiFeedbackSettings(Section):
    """Comparisons by a judge under the constitution."""

    policy_from: Name
    calibration_from: Name | None
    on_failed_calibration: Literal["refuse", "warn"]
    prompts: Count
    replies: Annotated[int, Field(ge=2)]
    kinds: Kinds
    batch_size: Count
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


class ComparisonsSettings(Section):
    """Gathering the comparisons that the reward model learns from."""

    policy_from: Name
    prompts: Count
    replies: Annotated[int, Field(ge=2)]
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


class RewardModelSettings(SupervisedLoop):
    """Bradley-Terry on pairs."""

    backbone_from: Name
    comparisons_from: Name
    mix_from: Name | None
    mix_ratio: NonNegative
    head: Literal["scalar", "classifier"]
    pairing: Literal["all", "adjacent", "best_versus_rest"]
    margin_coef: NonNegative
    centring_coef: NonNegative

    @model_validator(mode="after")
    def _mixes(self) -> RewardModelSettings:
        if (self.mix_from is None) != (self.mix_ratio == 0.0):
            raise ValueError("mix_from and mix_ratio go together: give both, or mix_from=null and mix_ratio=0")
        return self


class PpoSettings(Section):
    """Proximal policy optimisation."""

    policy_from: Name
    reward_from: Name
    critic: Literal["policy_trunk", "separate", "reward_model"]
    iterations: Count
    epochs: Count
    minibatches: Count
    micro_batch_size: Count
    learning_rate: Positive
    critic_learning_rate: Positive
    lr_schedule: Literal["linear", "constant"]
    clip_range: Positive
    value_clip_range: Positive
    value_coef: NonNegative
    entropy_coef: NonNegative
    missing_eos_penalty: Finite | None
    max_grad_norm: Positive
    target_kl: Positive | None
    kl_budget: Positive | None
    critic_warmup: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _policy_trains(self) -> PpoSettings:
        if self.critic_warmup >= self.iterations:
            raise ValueError(f"critic_warmup {self.critic_warmup} leaves none of {self.iterations} iterations")
        return self


class EvaluateSettings(Section):
    """The starting policy and the trained ones on the same fixed prompts."""

    policies: Annotated[list[Name], Field(min_length=1)]
    reference_from: Name
    reward_from: Name | None
    splits: Annotated[list[Name], Field(min_length=1)] | None
    prompts: Annotated[int, Field(ge=2)]
    batch_size: Count
    temperature: Positive
    bootstrap_samples: Annotated[int, Field(ge=100)]
    sample_table: Count
    seed: Annotated[int, Field(ge=0)]
    satisfaction: Count | None
