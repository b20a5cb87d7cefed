"""What each stage of a pipeline may be told. A section's name is its stage's name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf_lightning.settings.section import Count, Finite, Name, NonNegative, OpenFraction, Positive, Section


class SupervisedLoop(Section):
    """One supervised training loop: epochs over shuffled batches, linear warm-up, linear decay to zero."""

    epochs: Count
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


class SftSettings(SupervisedLoop):
    """Supervised fine-tuning on demonstrations."""

    policy_from: Name
    held_out_fraction: OpenFraction


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
    head: Literal["scalar", "classifier"]
    pairing: Literal["all", "adjacent", "best_versus_rest"]
    margin_coef: NonNegative
    centring_coef: NonNegative


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
