"""What the stages that train will hold in memory, from settings and the config files of models alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from rlhf_lightning.algorithms.optimization import OptimizerFactory
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reward_model import RewardModel
from rlhf_lightning.algorithms.sft import SupervisedFineTuning
from rlhf_lightning.experiment.memory.rehearsal import (
    RolloutShape,
    UpdateShape,
    rehearse_ppo,
    rehearse_reward_model,
    rehearse_sft,
)
from rlhf_lightning.experiment.memory.stand_ins import Plan, cast, tuned
from rlhf_lightning.models.activation_checkpointing import checkpoint_activations
from rlhf_lightning.models.adapters import POLICY, REWARD
from rlhf_lightning.models.footprint import Footprint, deeper
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.live_bytes import shapes_only, without_data
from rlhf_lightning.rollouts.kl_controller import KlController
from rlhf_lightning.settings.peft import QLora, TopLayers
from rlhf_lightning.settings.run import RunSettings
from rlhf_lightning.settings.stages import SftSettings

Module = TypeVar("Module", bound=nn.Module)

WHOLE_UP_TO = 12
"""Deeper models are rehearsed with fewer blocks, twice, and the rest is a straight line."""
SHALLOW, BETWEEN = 6, 2
"""With how many blocks, and how many more the second time."""


def sft_footprint(
    settings: RunSettings,
    own: SftSettings,
    source: ModelSource,
    optimizer: OptimizerFactory,
    shape: UpdateShape,
    length: int,
) -> Footprint:
    """Of stage `sft` or `revision_sft`.

    Args:
        own: the section of the stage.
        length: tokens of the longest demonstration.
    """

    def rehearse(plan: Plan) -> Footprint:
        with shapes_only():
            model = _checkpointed(settings, tuned(plan.policy(), settings.peft, POLICY))
            module = SupervisedFineTuning(model, own, optimizer, total_steps=1)
        with without_data([module], shape.device):
            return rehearse_sft(module, shape, length)

    return _at_depth(settings, [Plan.read(source)], lambda plans: rehearse(plans[0]))


def reward_model_footprint(
    settings: RunSettings, source: ModelSource, optimizer: OptimizerFactory, shape: UpdateShape, length: int
) -> Footprint:
    """Of stage `reward_model`.

    Args:
        shape: its micro-batch counts pairs.
        length: tokens of the longest prompt with a reply.
    """

    def rehearse(plan: Plan) -> Footprint:
        labels = 1 if settings.reward_model.head == "scalar" else 2
        with shapes_only():
            model = _checkpointed(settings, tuned(plan.classifier(labels), settings.peft, REWARD))
            module = RewardModel(model, labels - 1, settings.reward_model, optimizer, total_steps=1)
        with without_data([module], shape.device):
            return rehearse_reward_model(module, shape, length)

    return _at_depth(settings, [Plan.read(source)], lambda plans: rehearse(plans[0]))


def ppo_footprint(
    settings: RunSettings,
    policy: ModelSource,
    rewards: Sequence[ModelSource],
    optimizer: OptimizerFactory,
    shape: UpdateShape,
    rollout: RolloutShape,
) -> Footprint:
    """Of stage `ppo`."""

    def rehearse(plans: Sequence[Plan]) -> Footprint:
        with shapes_only():
            models = cast(settings, plans[0], plans[1:])
            _checkpointed(settings, models.actor_critic)
            kl = KlController(settings.kl)
            temperature = settings.rollout.temperature
            module = PPO(models.actor_critic, models.reference, kl, settings.ppo, temperature, optimizer)
        with without_data(models.models(), shape.device):
            models.branch()
            return rehearse_ppo(module, models.rewards, shape, rollout)

    return _at_depth(settings, [Plan.read(source) for source in (policy, *rewards)], rehearse)


def update_shape(settings: RunSettings, device: torch.device, size: int, micro_batch_size: int) -> UpdateShape:
    """How an optimizer step of `size` records is cut into micro-batches of a process."""
    share = max(1, size // settings.trainer.processes)
    micro_batch = min(share, micro_batch_size)
    return UpdateShape(
        micro_batch=micro_batch,
        accumulated=share // micro_batch,
        precision=settings.trainer.precision,
        device=device,
        copies_gradients=settings.trainer.strategy == "ddp",
    )


def _checkpointed(settings: RunSettings, module: Module) -> Module:
    if settings.model.gradient_checkpointing:
        checkpoint_activations(module)
    return module


def _at_depth(
    settings: RunSettings, plans: Sequence[Plan], rehearse: Callable[[Sequence[Plan]], Footprint]
) -> Footprint:
    """The footprint with all blocks; where they are many, from rehearsals with fewer."""
    if isinstance(settings.peft, QLora):
        raise ValueError("weights in 4 bits are made by CUDA kernels")
    depth = plans[0].depth
    trained = settings.peft.layers if isinstance(settings.peft, TopLayers) else 0
    depths = (max(SHALLOW, trained + BETWEEN), max(SHALLOW, trained + BETWEEN) + BETWEEN)
    if depth <= max(WHOLE_UP_TO, depths[1]) or any(plan.depth != depth for plan in plans):
        return rehearse(plans)
    measured = [rehearse([plan.cut(few) for plan in plans]) for few in depths]
    return deeper(*measured, depths=depths, depth=depth)
