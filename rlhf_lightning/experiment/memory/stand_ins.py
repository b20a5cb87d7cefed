"""The models of a stage as shapes, put together from settings and config files before any weight is read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PromptTuningConfig
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_lightning.experiment.actors import reference_kind
from rlhf_lightning.models.actor_critic import ActorCritic, SeparateCritic
from rlhf_lightning.models.adapter_files import is_adapter
from rlhf_lightning.models.adapters import (
    POLICY,
    REFERENCE,
    REWARD,
    active,
    add_adapter,
    copy_adapter,
    switch,
    train_adapter,
)
from rlhf_lightning.models.branching import Branch
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.top_layers import count_blocks, shared_copy, train_top_layers, trained_layers
from rlhf_lightning.models.tuning import new_config
from rlhf_lightning.rewards.classifier import classifier_logits
from rlhf_lightning.settings.peft import NoPeft, PeftSettings, PromptTuning, TopLayers
from rlhf_lightning.settings.run import RunSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """What a model's files say of its shape.

    Attributes:
        config: Transformers', of the whole model or of an adapter's base.
        base: the directory or hub id that the config was read from.
        adapter: PEFT's config, where an adapter lies there.
        dtype: of the weights.
    """

    config: Any
    base: str
    adapter: PeftConfig | None
    dtype: str

    @classmethod
    def read(cls, source: ModelSource) -> Plan:
        """From config files alone.

        Raises:
            OSError: they cannot be read.
            ModelError: there is no such model.
        """
        directory = Path(source.name_or_path)
        adapter = PeftConfig.from_pretrained(str(directory)) if is_adapter(directory) else None
        if adapter is not None:
            recorded = ModelSource(adapter.base_model_name_or_path or "", source.dtype, adapter.revision)
            source = recorded if recorded.is_local or source.base is None else source.base
        config = AutoConfig.from_pretrained(source.name_or_path, **source.loading_arguments())
        return cls(config, source.name_or_path, adapter, source.dtype)

    @property
    def depth(self) -> int:
        """How many blocks the model has."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def layers(self) -> int | None:
        """How many top layers the adapter replaces; None where it is an adapter proper, or none."""
        return trained_layers(self.adapter) if isinstance(self.adapter, LoraConfig) else None

    def cut(self, depth: int) -> Plan:
        """The same model with fewer blocks, of which the first are kept."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        for name, value in list(vars(text).items()):
            if isinstance(value, list) and len(value) == self.depth:
                setattr(text, name, value[:depth])  # a kind, a window or the like for each block
        text.num_hidden_layers = depth
        return Plan(config, self.base, self.adapter, self.dtype)

    def policy(self) -> PreTrainedModel:
        """A causal language model of that shape, without its adapter."""
        return self._made(AutoModelForCausalLM, self.config)

    def classifier(self, labels: int) -> PreTrainedModel:
        """A sequence classifier of that shape, without its adapter."""
        config = copy.deepcopy(self.config)
        config.num_labels = labels
        return self._made(AutoModelForSequenceClassification, config)

    def _made(self, kind: Any, config: Any) -> PreTrainedModel:
        model: PreTrainedModel = kind.from_config(config, dtype=getattr(torch, self.dtype))
        model.eval()
        return model


@dataclass(frozen=True, slots=True)
class Judge:
    """A reward model.

    Attributes:
        adapter: its trunk is the policy's, with this adapter at work; None for a trunk of its own.
    """

    model: PreTrainedModel
    adapter: str | None

    def score(self, ids: Tensor, mask: Tensor) -> None:
        """A forward pass, as `Classifier` runs it."""
        with nullcontext() if self.adapter is None else active(self.model, self.adapter):
            classifier_logits(self.model, ids, mask)


@dataclass(frozen=True, slots=True)
class Cast:
    """PPO's models.

    Attributes:
        rewards: the reward models.
        branching: how many top layers go on from states that are computed once; None computes all anew.
    """

    actor_critic: ActorCritic
    reference: FrozenReference
    rewards: Sequence[Judge]
    branching: int | None

    def models(self) -> list[torch.nn.Module]:
        """All of them."""
        return [self.actor_critic, self.reference.model, *(judge.model for judge in self.rewards)]

    def branch(self) -> None:
        """Lets all go on from the policy's states, as they do in a run. The models must be able to compute."""
        if self.branching is None:
            return
        branch = Branch.untried(self.actor_critic.policy, self.branching)
        self.actor_critic.branch = branch
        if _in_common(self.reference.model, self.actor_critic.policy):
            self.reference.branch = branch.on(self.reference.model)
        critic = self.actor_critic.critic
        if critic is not None and _in_common(critic.trunk, self.actor_critic.policy):
            critic.branch = Branch.untried(critic.trunk, self.branching)


def tuned(model: PreTrainedModel, peft: PeftSettings, name: str) -> PreTrainedModel:
    """What `tuning.tune` makes of a model, as far as shapes go."""
    if isinstance(peft, NoPeft):
        return model
    if isinstance(peft, TopLayers):
        train_top_layers(model, peft.layers)
        return model
    width = model.config.get_text_config().hidden_size
    vectors = torch.zeros(peft.virtual_tokens, width) if isinstance(peft, PromptTuning) else None
    add_adapter(model, new_config(model, peft), name, vectors)
    train_adapter(model, name)
    for head in model.children():
        if head is not model.base_model:
            head.requires_grad_(head is not model.get_output_embeddings())
    return model


def cast(settings: RunSettings, policy: Plan, rewards: Sequence[Plan]) -> Cast:
    """PPO's models, put together as the stage does."""
    peft = settings.peft
    model = tuned(policy.policy(), peft, POLICY)
    kind, _ = reference_kind(settings)
    if kind == "shared_trunk":
        reference = FrozenReference.on_trunk_of(model)
    elif kind == "frozen_copy":
        reference = FrozenReference.copy_of(model)
    elif policy.adapter is not None or isinstance(peft, PromptTuning):
        copy_adapter(model, POLICY, REFERENCE)
        reference = FrozenReference.on_policy(model, REFERENCE)
    else:
        reference = FrozenReference.on_policy(model, None)
    names = [REWARD, *(f"{REWARD}_{number}" for number in range(2, len(rewards) + 1))]
    judges = [_judge(settings, model, policy, plan, name) for plan, name in zip(rewards, names, strict=False)]
    return Cast(ActorCritic(model, _critic(settings, model, judges)), reference, judges, _branching(settings, model))


def _judge(settings: RunSettings, model: PreTrainedModel, policy: Plan, plan: Plan, name: str) -> Judge:
    """A reward model, on the policy's weights where both were trained in the same way beside the same base."""
    classifier = plan.classifier(labels=1)
    apart = settings.model.share_backbone is False or plan.base != policy.base
    if apart or plan.adapter is None or isinstance(settings.peft, NoPeft):
        if plan.adapter is not None and plan.layers is None:
            add_adapter(classifier, plan.adapter, name, _vectors(plan))
            switch(classifier, name)
        return Judge(classifier.requires_grad_(False), None)
    if plan.layers is not None:
        setattr(classifier, classifier.base_model_prefix, shared_copy(model).base_model)
        return Judge(classifier.requires_grad_(False), None)
    setattr(classifier, classifier.base_model_prefix, model.base_model)
    add_adapter(classifier, plan.adapter, name, _vectors(plan))
    return Judge(classifier, name)


def _critic(settings: RunSettings, model: PreTrainedModel, judges: Sequence[Judge]) -> SeparateCritic | None:
    shares, peft = settings.model.share_backbone is not False, settings.peft
    if settings.ppo.critic == "policy_trunk":
        return None
    if settings.ppo.critic == "reward_model" and judges[0].adapter is not None:
        return SeparateCritic.on_policy(model, judges[0].adapter)
    if settings.ppo.critic == "separate" and shares and isinstance(peft, TopLayers):
        return SeparateCritic.on_trunk_of(model, None)
    if settings.ppo.critic == "separate" and shares and not isinstance(peft, NoPeft):
        return SeparateCritic.on_policy(model, POLICY)
    return SeparateCritic.from_policy(model)


def _branching(settings: RunSettings, model: PreTrainedModel) -> int | None:
    peft = settings.peft
    if not isinstance(peft, TopLayers) or not peft.reuse_trunk or settings.trainer.strategy == "fsdp":
        return None
    return peft.layers if peft.layers < count_blocks(model) else None


def _vectors(plan: Plan) -> Tensor | None:
    if not isinstance(plan.adapter, PromptTuningConfig):
        return None
    return torch.zeros(plan.adapter.num_virtual_tokens or 0, plan.config.get_text_config().hidden_size)


def _in_common(model: torch.nn.Module, policy: torch.nn.Module) -> bool:
    """Whether a model has frozen weights of the policy's."""
    own = {id(parameter) for parameter in policy.parameters()}
    return any(id(parameter) in own for parameter in model.parameters())
