"""Stage `ppo`: a policy and a reward in, a policy that earns more of it out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.optimization import trainable
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.callbacks.collapse_monitor import collapse_monitor
from rlhf_lightning.callbacks.gold_monitor import gold_monitor
from rlhf_lightning.callbacks.kl_budget import KlBudget
from rlhf_lightning.callbacks.rollout_buffer import Observer, RolloutBufferCallback
from rlhf_lightning.callbacks.sample_diary import SampleDiary
from rlhf_lightning.callbacks.self_checks import SelfChecks, tolerance
from rlhf_lightning.distributed import rank
from rlhf_lightning.experiment.actors import open_actors, open_critic
from rlhf_lightning.experiment.rewards import combined, open_rewards, reward_statistics
from rlhf_lightning.experiment.stage import StageContext, StageResult
from rlhf_lightning.experiment.training import build_trainer, fit
from rlhf_lightning.models.activation_checkpointing import checkpoint_activations
from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.saving import save_policy
from rlhf_lightning.rewards.scorers import ModelScorer
from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.collector import RolloutCollector
from rlhf_lightning.rollouts.kl_controller import KlController
from rlhf_lightning.rollouts.prompts import PromptStream
from rlhf_lightning.rollouts.reward_shaping import RewardShaper
from rlhf_lightning.rollouts.sampler import Sampler
from rlhf_lightning.settings.data import CourtesyData

STATISTICS_FILE = "reward_statistics.json"


def run_ppo(context: StageContext) -> StageResult:
    """Optimise the policy against the reward and leave it, with its critic, as a Hugging Face directory."""
    settings, rollout = context.settings.ppo, context.settings.rollout
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
    rewards = open_rewards(context, encoder, policy)
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
        combined(context, rewards, statistics),
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
        "trainable_parameters": sum(parameter.numel() for parameter in trainable(module)),
        "reward_offset": statistics[0].offset,
        "reward_spread": statistics[0].spread,
    }
    return StageResult(metrics, objective=final["objective/score"])


def resident_models(
    actor_critic: ActorCritic, reference: FrozenReference, rewards: Sequence[ModelScorer]
) -> dict[str, nn.Module]:
    """All models of the stage, by name; weights in common are the policy's."""
    names = ["reward model", *(f"reward model {number}" for number in range(2, len(rewards) + 1))]
    scoring = {name: reward.classifier.model for name, reward in zip(names, rewards, strict=True)}
    return {"policy": actor_critic.policy, "reference": reference.model, **scoring, "critic": actor_critic}


def _observers(context: StageContext) -> list[Observer]:
    callbacks = context.settings.callbacks
    diary: Observer = SampleDiary(
        Path(context.directory) / "diary.jsonl",
        every=callbacks.diary_every,
        samples=callbacks.diary_samples,
        report=context.tracker.log_diary,
    )
    watched = callbacks.gold_monitor and isinstance(context.settings.data, CourtesyData)
    return [diary, collapse_monitor, *([gold_monitor] if watched else [])]
