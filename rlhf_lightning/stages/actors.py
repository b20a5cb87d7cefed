"""Policy, reference and critic of PPO, on shared weights or separate ones, and reuse of the policy's frozen blocks."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from transformers import PreTrainedModel

from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.actor_critic import SeparateCritic, ValueHead
from rlhf_lightning.models.adapters import POLICY, REFERENCE, REWARD, adapter_names, copy_adapter
from rlhf_lightning.models.loading import load_classifier, load_policy, load_tokenizer
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.settings import NoPeft, PromptTuning, TopLayers
from rlhf_lightning.models.sharing import Branch
from rlhf_lightning.models.top_layers import count_blocks
from rlhf_lightning.models.tuning import tune
from rlhf_lightning.rollouts.scoring import same_tokenizer
from rlhf_lightning.stages.context import StageContext
from rlhf_lightning.stages.ppo import PpoSettings
from rlhf_lightning.stages.rewards import RewardStatistics
from rlhf_lightning.stages.run_settings import RunSettings

logger = logging.getLogger(__name__)


def branch_below_trained_layers(settings: RunSettings, policy: PreTrainedModel) -> Branch | None:
    """The branch point at the first trained block, if the blocks below it are computed once; None otherwise.

    Args:
        policy: whose lower blocks are frozen already.

    Raises:
        ModelError: its architecture does not allow it.
    """
    peft = settings.peft
    if not isinstance(peft, TopLayers) or not peft.reuse_trunk:
        return None
    depth = count_blocks(policy)
    if peft.layers == depth:
        logger.info("All %d blocks are trained, so there are no frozen ones to compute once.", depth)
        return None
    if settings.trainer.strategy == "fsdp":
        # FSDP gathers the weights of a model when that model is called, and no part of it can be called alone.
        logger.info("The frozen blocks are computed anew in every update: trainer=fsdp runs whole models only.")
        return None
    logger.info(
        "The %d frozen blocks are computed once a rollout: an update costs %d of %d blocks.",
        depth - peft.layers,
        peft.layers,
        depth,
    )
    return Branch.of(policy, peft.layers)


@dataclass(frozen=True, slots=True)
class Actors:
    """The initial policy of PPO and its reference.

    Attributes:
        branch: below the policy's trained blocks, if the output of the blocks below is computed once per rollout.
        reference_kind: kind of the reference, as in the config group.
    """

    policy: PreTrainedModel
    branch: Branch | None
    reference: FrozenReference
    reference_kind: str


def open_actors(context: StageContext, encoder: Encoder) -> Actors:
    """Policy and reference, as `peft`, `reference` and `model.share_backbone` say."""
    policy = load_policy(context.inputs.model(context.section(PpoSettings).policy_from), context.device)
    starts_from_adapter = POLICY in adapter_names(policy)
    tune(policy, context.settings.peft, POLICY, encoder.tokenizer, context.seed)
    branch = branch_below_trained_layers(context.settings, policy)
    kind, why = reference_kind(context.settings)
    logger.info("Reference: %s (%s).", kind, why)
    if kind == "shared_trunk":
        reference = FrozenReference.on_trunk_of(policy, branch)
    elif kind == "frozen_copy":
        reference = FrozenReference.copy_of(policy)
    elif starts_from_adapter or isinstance(context.settings.peft, PromptTuning):
        # Without the adapter the policy would not equal its initial model: other weights, or no virtual tokens.
        copy_adapter(policy, POLICY, REFERENCE)
        reference = FrozenReference.on_policy(policy, REFERENCE)
    else:
        reference = FrozenReference.on_policy(policy, None)
    return Actors(policy, branch, reference, kind)


def open_critic(
    context: StageContext, actors: Actors, encoder: Encoder, statistics: RewardStatistics
) -> SeparateCritic | None:
    """The critic that `ppo.critic` names; None for a value head on the policy's trunk.

    Args:
        statistics: of the reward, whose scale a critic made from the reward model takes over.
    """
    settings, policy = context.settings, actors.policy
    # FSDP gathers weights for a whole policy only, not for its trunk.
    shares = settings.model.share_backbone is not False and settings.trainer.strategy != "fsdp"
    ppo = context.section(PpoSettings)
    if ppo.critic == "policy_trunk":
        return None
    if ppo.critic == "separate":
        if shares and isinstance(settings.peft, TopLayers):
            return SeparateCritic.on_trunk_of(policy, settings.peft.layers if actors.branch is not None else None)
        if shares and not isinstance(settings.peft, NoPeft):
            return SeparateCritic.on_policy(policy, POLICY)
        return SeparateCritic.from_policy(policy)
    source = context.inputs.model(ppo.reward_from)
    tokenizer = load_tokenizer(source)
    if not same_tokenizer(tokenizer, encoder.tokenizer):
        raise DataError(
            "The reward model has another tokenizer than the policy, so it cannot become its critic.",
            where="ppo.critic=reward_model",
            fix="use ppo.critic=separate or policy_trunk",
        )
    classifier = load_classifier(source)
    scale = {"mean": statistics.mean, "std": statistics.std / settings.reward.scale}
    if REWARD in adapter_names(policy):
        return SeparateCritic.on_policy(policy, REWARD, ValueHead.from_reward_model(classifier, **scale))
    tune(classifier, settings.peft, REWARD, tokenizer, context.seed)
    return SeparateCritic.from_reward_model(classifier, **scale)


def reference_kind(settings: RunSettings) -> tuple[str, str]:
    """Kind of the reference (on the policy's weights or its own), and the reason for it."""
    peft, wanted = settings.peft, settings.reference.kind
    if wanted != "auto":
        return wanted, "as the config says"
    if isinstance(peft, NoPeft):
        return "frozen_copy", "all weights are trained, so it needs weights of its own"
    if settings.model.share_backbone is False:
        return "frozen_copy", "model.share_backbone=false"
    if isinstance(peft, TopLayers):
        return "shared_trunk", "only the top layers are trained, so it has a copy of those alone"
    return "adapter_off", "the policy's own weights are frozen, so it is the policy with its adapter switched"
