"""Reuse of the policy's frozen lower blocks in PPO: computed once per rollout."""

from __future__ import annotations

import logging

from transformers import PreTrainedModel

from rlhf_lightning.models.branching import Branch
from rlhf_lightning.models.top_layers import count_blocks
from rlhf_lightning.settings.peft import TopLayers
from rlhf_lightning.stages.run_settings import RunSettings

logger = logging.getLogger(__name__)


def reused_below(settings: RunSettings, policy: PreTrainedModel) -> Branch | None:
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
