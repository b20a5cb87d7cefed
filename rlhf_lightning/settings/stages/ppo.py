"""Stage `ppo`: a policy and a reward in, a policy that earns more of it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from rlhf_lightning.settings.marks import NO_EFFECT, StageRef
from rlhf_lightning.settings.section import Count, Finite, NonNegative, Positive, Section
from rlhf_lightning.settings.stages.stage import BOTH, LENGTHS, MAX, MIN, Metric, Relief, Stage, TrainedModel
from rlhf_lightning.settings.stages.supervised import READ_BY_TRAINING

if TYPE_CHECKING:
    from rlhf_lightning.settings.run import RunSettings


class PpoSettings(Section):
    """Proximal policy optimisation."""

    policy_from: StageRef
    reward_from: StageRef
    critic: Literal["policy_trunk", "separate", "reward_model"]
    iterations: Count
    epochs: Count
    minibatches: Count
    micro_batch_size: Annotated[Count, NO_EFFECT]
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


def _unread(settings: RunSettings) -> frozenset[str]:
    return frozenset() if settings.reward.kind == "learned" else frozenset({"ppo.reward_from"})


PPO = Stage(
    name="ppo",
    settings=PpoSettings,
    module="ppo",
    reads=(
        *(*READ_BY_TRAINING, *LENGTHS, "data.kind", "kl", "reference", "advantage", "reward", "rollout"),
        *("model.share_backbone", "callbacks.diary_every", "callbacks.diary_samples", "callbacks.gold_monitor"),
        "callbacks.self_checks",
    ),
    unread=_unread,
    trained=TrainedModel("A language model that was optimised with PPO against a reward", started_from="policy_from"),
    rounds="iterations",
    metrics=(
        Metric("objective/score", MAX, "Proxy reward", "reward model"),
        Metric("objective/gold", MAX, "Gold reward", "the truth"),
        Metric("objective/reward", MAX),
        Metric("objective/kl", MAX, "KL to reference", "nats a reply", level=0.0),
        Metric("objective/entropy", MIN, "Entropy", "nats a token"),
        Metric("rollout/length", BOTH, "Reply length", "tokens"),
        Metric("rollout/eos_rate", MIN, "Replies ended", level=1.0),
        Metric("rollout/repetition", MAX, "Repetition", "repeated 3-grams"),
        Metric("rollout/top_opening_share", MAX, "Most frequent opening", "share of replies"),
        Metric("rollout/distinct_2", MIN, "Distinct 2-grams", "of all 2-grams"),
        Metric("policy/loss", MIN),
        Metric("policy/approx_kl", MAX, "Approximate KL", "within an update"),
        Metric("policy/clip_fraction", MAX, "Policy clip fraction"),
        Metric("policy/ratio", title="Probability ratio", level=1.0),
        Metric("value/loss", MIN, "Value loss"),
        Metric("value/clip_fraction", title="Value clip fraction"),
        Metric("value/explained_variance", MAX, "Explained variance", level=0.0),
        Metric("kl/coef", BOTH),
    ),
    by_episodes=True,
    relief=Relief(
        ("ppo.micro_batch_size", "rollout.chunk_size", "model.gradient_checkpointing=true"),
        (
            *("peft=lora", "rollout.max_new_tokens", "data.max_prompt_length"),
            *("ppo.critic=policy_trunk", "trainer.precision"),
        ),
    ),
)
