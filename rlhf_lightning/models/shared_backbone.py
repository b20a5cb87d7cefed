"""One copy of the frozen weights for all models of PPO: policy, reference, reward models and critic."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf_lightning.models.adapter_files import (
    AdapterFiles,
    put_adapter_on,
    put_layers_on,
)
from rlhf_lightning.models.adapters import POLICY, Role, active, adapter_config, adapter_names
from rlhf_lightning.models.base_identity import belongs_to, remembered_base
from rlhf_lightning.models.loading import disable_dropout
from rlhf_lightning.models.top_layers import shared_copy


def why_not_shared(policy: PreTrainedModel, files: AdapterFiles | None) -> str | None:
    """The reason why a reward model cannot share the policy's frozen weights; None if it can.

    Args:
        policy: tuned, so that what it trains is on it.
        files: of the reward model; None where it is a whole model.
    """
    remembered = remembered_base(policy)
    if remembered is None:
        return "the policy trains all its weights (peft=none)"
    if files is None:
        return "the reward model is a whole model, not an adapter"
    if not files.head:
        return "it is the adapter of a policy"
    if (files.layers or 0) != remembered.replaced:
        return "policy and reward model do not train the same part of the model"
    if files.layers is None and adapter_config(policy, POLICY).peft_type != files.config.peft_type:
        return "policy and reward model have adapters of different kinds"
    if files.identity is None or not belongs_to(files.identity, remembered.identity):
        return "policy and reward model start from different base models"
    return None


def classifier_on(policy: PreTrainedModel, files: AdapterFiles, name: str) -> tuple[PreTrainedModel, Role]:
    """A reward model on the policy's frozen weights, and what turns them into the reward model's for a while.

    Args:
        policy: tuned.
        files: of a reward model for which `why_not_shared` has no reason.
        name: of its adapter.
    """
    config = copy.deepcopy(policy.config)
    config.num_labels = len(files.labels)
    config.id2label = dict(enumerate(files.labels))
    config.label2id = {label: index for index, label in enumerate(files.labels)}
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    trunk = shared_copy(policy).base_model if files.layers is not None else policy.base_model
    setattr(classifier, classifier.base_model_prefix, trunk)
    head = classifier.get_submodule("score")
    assert isinstance(head, nn.Linear)
    head.to_empty(device=policy.device).to(policy.dtype)
    disable_dropout(classifier)
    if files.layers is not None:
        put_layers_on(classifier, files)
        classifier.requires_grad_(False)
        return classifier, nullcontext
    put_adapter_on(classifier, files, name)
    head.requires_grad_(False)
    assert name in adapter_names(policy)
    return classifier, partial(active, policy, name)
