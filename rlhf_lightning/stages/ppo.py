"""Stage `ppo`: a policy and a reward in, a policy that earns more of it out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.errors import Problem
from rlhf_lightning.evaluation.metrics import BOTH, MAX, MIN, Metric
from rlhf_lightning.models.settings import NoPeft, TopLayers
from rlhf_lightning.sections import NO_EFFECT, Count, Finite, NonNegative, Positive, StageRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import (
    LENGTHS,
    ROLLOUT_METRICS,
    MemoryRelief,
    Stage,
    StageSection,
    TrainedModel,
    register,
)
from rlhf_lightning.stages.reward_kinds import REWARDS
from rlhf_lightning.stages.supervised import READ_BY_TRAINING

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import Callback
    from torch import nn

    from rlhf_lightning.algorithms.ppo_iteration import CollectedRollouts, Observer
    from rlhf_lightning.models.actor_critic import ActorCritic
    from rlhf_lightning.models.reference import FrozenReference
    from rlhf_lightning.rollouts.scoring import Scorer
    from rlhf_lightning.stages.run_settings import RunSettings

STATISTICS_FILE = "reward_statistics.json"


class PpoSettings(StageSection):
    """Proximal policy optimization."""

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
    value_clip_range: Positive | None
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


@register
class PpoStage(Stage):
    """Proximal policy optimization: a policy and a reward in, a policy that earns more of it out."""

    name = "ppo"
    Settings = PpoSettings
    reads = (
        *(*READ_BY_TRAINING, *LENGTHS, "data.kind", "kl", "reference", "advantage", "reward", "rollout"),
        *("model.share_backbone", "callbacks.sample_log_every", "callbacks.sample_log_size", "callbacks.gold_monitor"),
        "callbacks.self_checks",
    )
    trained = TrainedModel("A language model that was optimized with PPO against a reward", started_from="policy_from")
    rounds = "iterations"
    metrics = (
        Metric("objective/score", MAX, "Proxy reward", "reward model"),
        Metric("objective/gold", MAX, "Gold reward", "the truth"),
        Metric("objective/reward", MAX),
        Metric("objective/kl", MAX, "KL to reference", "nats a response", level=0.0),
        Metric("objective/entropy", MIN, "Entropy", "nats a token"),
        Metric("rollout/length", BOTH, "Response length", "tokens"),
        Metric("rollout/eos_rate", MIN, "Responses ended", level=1.0),
        Metric("rollout/repetition", MAX, "Repetition", "repeated 3-grams"),
        Metric("rollout/top_opening_share", MAX, "Most frequent opening", "of responses"),
        Metric("rollout/distinct_2", MIN, "Distinct 2-grams", "of all 2-grams"),
        Metric("policy/loss", MIN),
        Metric("policy/approx_kl", MAX, "Approximate KL", "within an update"),
        Metric("policy/clip_fraction", MAX, "Policy clip fraction"),
        Metric("policy/ratio", title="Probability ratio", level=1.0),
        Metric("value/loss", MIN, "Value loss"),
        Metric("value/clip_fraction", title="Value clip fraction"),
        Metric("value/explained_variance", MAX, "Explained variance", level=0.0),
        Metric("kl/coef", BOTH),
    )
    by_episodes = True
    relief = MemoryRelief(
        (".micro_batch_size", "rollout.chunk_size", "model.gradient_checkpointing=true"),
        (
            *("peft=lora", "rollout.max_new_tokens", "data.max_prompt_length"),
            *(".critic=policy_trunk", "trainer.precision"),
        ),
    )

    def unread(self, settings: RunSettings, name: str) -> frozenset[str]:
        return frozenset() if settings.reward.kind == "learned" else frozenset({f"{name}.reward_from"})

    def problems(self, settings: RunSettings, name: str) -> Iterator[Problem]:
        section = settings.section(name)
        assert isinstance(section, PpoSettings)
        yield from _minibatch_problems(settings, section, name)
        yield from _reference_problems(settings)
        if settings.trainer.strategy == "fsdp" and section.kl_budget is not None:
            what = "it keeps a copy of the weights to go back to, which trainer=fsdp holds in shards"
            yield Problem(f"{name}.kl_budget", what, fix=f"choose trainer=ddp, or {name}.target_kl, or kl=adaptive")
        if section.critic == "reward_model" and settings.reward.kind != "learned":
            scale = f"another scale than reward={settings.reward.kind}"
            what = f"a critic copied from {name}.reward_from would judge on {scale}"
            yield Problem(f"{name}.critic", what, fix=f"use {name}.critic=separate or policy_trunk, or reward=learned")

    def run(self, context: StageContext) -> StageResult:
        """Optimize the policy against the reward and leave it, with its critic, as a Hugging Face directory."""
        import torch
        from torch.utils.data import DataLoader

        from rlhf_lightning.algorithms.optimization import trainable_parameters
        from rlhf_lightning.algorithms.ppo import PPO
        from rlhf_lightning.algorithms.ppo_iteration import RolloutBufferCallback, RolloutCollector
        from rlhf_lightning.algorithms.rollout_callbacks import KlBudget
        from rlhf_lightning.algorithms.self_checks import SelfChecks, tolerance
        from rlhf_lightning.distributed import rank
        from rlhf_lightning.models.actor_critic import ActorCritic
        from rlhf_lightning.models.forward_pass import checkpoint_activations
        from rlhf_lightning.models.loading import save_policy
        from rlhf_lightning.rollouts.buffer import RolloutBuffer
        from rlhf_lightning.rollouts.reward_shaping import KlController, RewardShaper
        from rlhf_lightning.rollouts.sampler import PromptStream, Sampler
        from rlhf_lightning.stages.actors import open_actors, open_critic
        from rlhf_lightning.stages.rewards import reward_statistics, standardized
        from rlhf_lightning.stages.training import build_trainer, fit

        settings, rollout = context.section(PpoSettings), context.settings.rollout
        context.seed_everything()
        source = context.inputs.model(settings.policy_from)
        encoder = context.inputs.encoder(source)
        prompts, report = encoder.prompts(context.inputs.data.prompts())
        stream = PromptStream(prompts, context.seed)
        actors = open_actors(context, encoder)
        policy, reference = actors.policy, actors.reference
        sampler = Sampler(
            policy,
            encoder.tokenizer,
            temperature=rollout.temperature,
            max_new_tokens=rollout.max_new_tokens,
            seed=context.seed,
        )
        kind = REWARDS[context.settings.reward.kind]
        rewards = kind.open(context, encoder, policy)
        statistics = reward_statistics(context, sampler, rewards, prompts)
        actor_critic = ActorCritic(policy, open_critic(context, actors, encoder, statistics[0]), actors.branch)
        if context.settings.model.gradient_checkpointing:
            checkpoint_activations(actor_critic)
        kl = KlController(context.settings.kl)
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
            kind.combined(context.settings.reward, standardized(rewards, statistics)),
            shaper=RewardShaper(context.settings.reward, settings.missing_eos_penalty),
            kl=kl,
            advantage=context.settings.advantage,
            chunk_size=rollout.chunk_size,
            temperature=rollout.temperature,
        )
        tuned = settings.model_copy(update={"learning_rate": context.learning_rate(settings.learning_rate)})
        module = PPO(actor_critic, reference, kl, tuned, rollout.temperature, context.inputs.make_optimizer)
        rollouts = RolloutBufferCallback(collector, buffer, stream, _observers(context))
        callbacks: list[Callback] = [rollouts]
        if settings.kl_budget is not None:
            callbacks.append(KlBudget(settings.kl_budget, rollouts))
        if context.settings.callbacks.self_checks:
            allowed = tolerance(context.settings.model.dtype, context.settings.trainer.precision)
            callbacks.append(SelfChecks(rollouts, reference, allowed))
        trainer = build_trainer(
            context,
            max_epochs=settings.iterations,
            accumulate=buffer.micro_batches_per_step,
            max_grad_norm=settings.max_grad_norm,
            epoch_is_iteration=True,
            models=resident_models(actor_critic, reference, rewards),
            callbacks=callbacks,
        )
        fit(context, trainer, module, DataLoader(buffer, batch_size=None, generator=torch.Generator()))
        actor_critic.save_critic(context.directory)
        save_policy(policy, encoder.tokenizer, context.directory, context.trained_layers)
        if rank() == 0:
            (context.directory / STATISTICS_FILE).write_text(json.dumps([asdict(one) for one in statistics], indent=2))
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
            "kl_coef": kl.coef,
            "reference": actors.reference_kind,
            "trainable_parameters": sum(parameter.numel() for parameter in trainable_parameters(module)),
            "reward_mean": statistics[0].mean,
            "reward_std": statistics[0].std,
        }
        return StageResult(metrics, objective=final["objective/score"])


def _minibatch_problems(settings: RunSettings, ppo: PpoSettings, name: str) -> list[Problem]:
    rollout = settings.rollout
    if rollout.batch_size % ppo.minibatches:
        return [
            Problem(
                f"{name}.minibatches",
                f"{ppo.minibatches} minibatches do not divide rollout.batch_size={rollout.batch_size}",
                fix="choose a divisor, so that every minibatch has the same number of rollouts",
            )
        ]
    minibatch = rollout.batch_size // ppo.minibatches
    if minibatch % ppo.micro_batch_size:
        return [
            Problem(
                f"{name}.micro_batch_size",
                f"{ppo.micro_batch_size} does not divide the minibatch of {minibatch} rollouts "
                f"(rollout.batch_size / {name}.minibatches)",
                fix=f"choose a divisor of {minibatch}",
            )
        ]
    return []


def _reference_problems(settings: RunSettings) -> list[Problem]:
    """A kind of reference that the policy's `peft` does not support."""
    kind, peft = settings.reference.kind, settings.peft
    whole = "peft=none trains all weights, so without a copy the reference would change with them"
    fix = "use reference=auto, which finds the cheapest right one, or choose an adapter, e.g. peft=lora"
    if kind == "adapter_off" and isinstance(peft, NoPeft | TopLayers):
        what = whole if isinstance(peft, NoPeft) else "peft=top_layers has no adapter that could be switched off"
        return [Problem("reference", what, fix=fix)]
    if kind == "shared_trunk" and not isinstance(peft, TopLayers):
        what = whole if isinstance(peft, NoPeft) else f"peft={peft.kind} trains no layers that could be copied"
        return [Problem("reference", what, fix="use reference=auto, or peft=top_layers")]
    if kind in ("adapter_off", "shared_trunk") and settings.model.share_backbone is False:
        what = f"reference={kind} lives on the policy's own weights"
        return [Problem("model.share_backbone", what, fix="use reference=auto or frozen_copy, or drop share_backbone")]
    return []


def resident_models(
    actor_critic: ActorCritic, reference: FrozenReference, rewards: Sequence[Scorer]
) -> dict[str, nn.Module]:
    """All models of the stage, by name; weights in common are the policy's."""
    from rlhf_lightning.rollouts.scoring import RewardModelScorer, TextScorer

    models = [reward.classifier.model for reward in rewards if isinstance(reward, RewardModelScorer | TextScorer)]
    scoring = {f"reward model {number}" if number > 1 else "reward model": one for number, one in enumerate(models, 1)}
    return {"policy": actor_critic.policy, "reference": reference.model, **scoring, "critic": actor_critic}


def _observers(context: StageContext) -> list[Observer]:
    from rlhf_lightning.algorithms.rollout_callbacks import SampleLogger, collapse_monitor, gold_monitor

    callbacks = context.settings.callbacks
    sample_log: Observer = SampleLogger(
        Path(context.directory) / "sample_log.jsonl",
        every=callbacks.sample_log_every,
        samples=callbacks.sample_log_size,
        report=context.tracker.log_rollout_samples,
    )
    watched = callbacks.gold_monitor and isinstance(context.settings.data, CourtesyData)
    return [sample_log, collapse_monitor, _registered_metrics, *([gold_monitor] if watched else [])]


def _registered_metrics(_: int, collected: CollectedRollouts) -> dict[str, float]:
    return {metric.name: measure(collected.responses) for metric, measure in ROLLOUT_METRICS.items()}
