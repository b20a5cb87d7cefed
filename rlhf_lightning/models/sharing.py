"""Sharing between the models of PPO: one copy of the frozen weights, and frozen blocks that are computed once."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf_lightning.errors import ModelError
from rlhf_lightning.models.adapter_files import AdapterFiles, belongs_to, put_adapter_on, put_layers_on, remembered_base
from rlhf_lightning.models.adapters import POLICY, Role, active, adapter_config, adapter_names
from rlhf_lightning.models.forward_pass import position_arguments
from rlhf_lightning.models.loading import disable_dropout
from rlhf_lightning.models.top_layers import blocks_name, count_blocks, shared_copy

PROBE = ((0, 3, 1, 4, 1, 5), (9, 2, 6, 5, 3, 5))
"""Two short sequences, the first one of them padded, to try the two parts on."""


class PlaceholderBlock(nn.Module):
    """Takes the place of a block, and passes on what reaches it, or what it was made with.

    Args:
        in_tuple: blocks of this model give a tuple.
        states: (batch, time, hidden) put in the place of what reaches it.
    """

    def __init__(self, in_tuple: bool, states: Tensor | None = None) -> None:
        super().__init__()
        self.in_tuple = in_tuple
        self.states = states
        self.reached_by: Tensor | None = None

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor, None]:
        self.reached_by = hidden_states
        passed_on = hidden_states if self.states is None else self.states
        return (passed_on, None) if self.in_tuple else passed_on


@dataclass(frozen=True, slots=True)
class Branch:
    """Boundary between the frozen and the trained blocks of a model.

    Made by `Branch.of`, which tries it.

    Attributes:
        model: a causal language model, or the trunk of one.
        path: of its list of blocks.
        point: the number of the first trained block; at least 1.
        in_tuple: its blocks give a tuple.
    """

    model: PreTrainedModel
    path: str
    point: int
    in_tuple: bool

    @classmethod
    def of(cls, model: PreTrainedModel, layers: int) -> Branch:
        """The branch below the last blocks of a model.

        Args:
            layers: how many blocks lie above it; fewer than the model has.

        Raises:
            ModelError: the two parts together do not give what the model gives.
        """
        path = blocks_name(model)
        point = count_blocks(model) - layers
        assert point > 0, "all blocks are trained: there is nothing to compute once"
        sequences, mask = _probe(model)
        branch = cls(model, path, point, _gives_tuples(model, path, sequences, mask))
        branch._try(sequences, mask)
        return branch

    def of_copy(self, copied: PreTrainedModel) -> Branch:
        """The same branch of a copy of the model."""
        return replace(self, model=copied)

    @torch.no_grad()
    def states(self, sequences: Tensor, attention_mask: Tensor) -> Tensor:
        """The hidden states that reach the first trained block: (batch, time, hidden), without a gradient.

        Args:
            sequences: (batch, time) token ids.
            attention_mask: (batch, time), 1 on real tokens.
        """
        end = PlaceholderBlock(self.in_tuple)
        blocks = self._blocks()
        above = [PlaceholderBlock(self.in_tuple) for _ in blocks[self.point + 1 :]]
        lower = self._with_blocks([*blocks[: self.point], end, *above]).base_model
        lower(input_ids=sequences, **position_arguments(self.model, attention_mask), use_cache=False)
        assert end.reached_by is not None
        return end.reached_by

    def run_from(self, states: Tensor) -> PreTrainedModel:
        """Run the model from the given hidden states; all other arguments are unchanged.

        Args:
            states: (batch, time, hidden) of the sequences that it will be called with.
        """
        below = [PlaceholderBlock(self.in_tuple) for _ in range(self.point - 1)]
        return self._with_blocks([*below, PlaceholderBlock(self.in_tuple, states), *self._blocks()[self.point :]])

    def _blocks(self) -> list[nn.Module]:
        return list(self.model.get_submodule(self.path).children())

    def _with_blocks(self, blocks: list[nn.Module]) -> PreTrainedModel:
        """The model with other blocks. Modules on the way to them are shallow copies, all others are the model's."""
        view: PreTrainedModel = _shallow(self.model)
        around: nn.Module = view
        *way, last = self.path.split(".")
        for name in way:
            inner = _shallow(around.get_submodule(name))
            around._modules[name] = inner
            around = inner
        around._modules[last] = nn.ModuleList(blocks)
        return view

    @torch.no_grad()
    def _try(self, sequences: Tensor, mask: Tensor) -> None:
        arguments = {"input_ids": sequences, "use_cache": False, **position_arguments(self.model, mask)}
        try:
            whole = self.model(**arguments)[0]
            parts = self.run_from(self.states(sequences, mask))(**arguments)[0]
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError) as error:
            raise self._cannot(f"running its parts failed: {error or type(error).__name__}") from error
        real = mask.bool()
        difference = float((whole[real].float() - parts[real].float()).abs().max())
        # In half precision a kernel may round otherwise from one call to the next; float32 is the same to the bit.
        allowed = 1e-5 if whole.dtype == torch.float32 else 0.1
        if not difference <= allowed * max(1.0, float(whole[real].abs().max())):
            raise self._cannot(f"its parts differ from the whole by {difference:.2g}")

    def _cannot(self, why: str) -> ModelError:
        return ModelError(
            f"{type(self.model).__name__} cannot be run in two parts: {why}.",
            where="peft=top_layers",
            fix="set peft.reuse_trunk=false: the frozen blocks are then computed anew in each update",
        )


def run_from_states(model: PreTrainedModel, branch: Branch | None, states: Tensor | None) -> PreTrainedModel:
    """Run the model from hidden states if it has a branch and they are given; else run all of it."""
    return model if branch is None or states is None else branch.run_from(states)


def _shallow(module: nn.Module) -> Any:
    """A module with children of its own to exchange, and everything else in common with the original."""
    view = copy.copy(module)
    view.__dict__["_modules"] = dict(module._modules)
    return view


def _probe(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    sequences = torch.tensor(PROBE, device=model.device) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(sequences)
    mask[0, 0] = 0
    return sequences, mask


@torch.no_grad()
def _gives_tuples(model: PreTrainedModel, path: str, sequences: Tensor, mask: Tensor) -> bool:
    given: list[Any] = []
    first = next(model.get_submodule(path).children())
    hook = first.register_forward_hook(lambda _, __, output: given.append(output))
    try:
        model.base_model(input_ids=sequences, **position_arguments(model.base_model, mask), use_cache=False)
    finally:
        hook.remove()
    return isinstance(given[0], tuple)


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
