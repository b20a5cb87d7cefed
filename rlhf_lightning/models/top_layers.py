"""Training the last blocks of a model: which modules those are, and their weights in PEFT's format.

A model of L blocks trains its last k, the norm after them and, where it is a classifier, its head. Embeddings, lower
blocks and the LM head are frozen: the trunk.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from rlhf_lightning.distributed import full_tensor
from rlhf_lightning.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

PEFT_PREFIX = "base_model.model."
"""PEFT's prefix of weight names."""


def blocks_name(model: PreTrainedModel) -> str:
    """The name of a model's list of blocks: `model.layers` of a Llama, `transformer.h` of a GPT-2.

    Raises:
        ModelError: it says of none of its lists that they are blocks.
    """
    kinds = set(model._no_split_modules or ())
    lists: dict[str, int] = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(_is_one_of(kinds, block) for block in module)
    }
    if not lists:
        raise ModelError(
            f"{type(model).__name__} has no list of blocks, so its last ones cannot be told from the others.",
            where="peft=top_layers",
            fix="use peft=lora, which needs to know linear layers only",
        )
    return max(lists, key=lambda name: lists[name])


def count_blocks(model: PreTrainedModel) -> int:
    """L."""
    return len(_blocks(model))


def train_top_layers(model: PreTrainedModel, layers: int) -> None:
    """Freezes all of a model but its top layers.

    Args:
        layers: how many blocks are trained.

    Raises:
        ModelError: it has fewer.
    """
    model.requires_grad_(False)
    for name in top_layers(model, layers):
        model.get_submodule(name).requires_grad_(True)


def top_layers(model: PreTrainedModel, layers: int) -> list[str]:
    """The names of the modules that are trained: the last blocks, the norm after them, a classifier's head.

    Args:
        layers: how many blocks are trained.

    Raises:
        ModelError: it has fewer, or no blocks.
    """
    path, depth = blocks_name(model), count_blocks(model)
    if layers > depth:
        raise ModelError(
            f"{type(model).__name__} has {depth} blocks, and {layers} are to be trained.",
            where="peft.layers",
            fix=f"choose peft.layers from 1 to {depth}, or peft=none",
        )
    around = path.rpartition(".")[0]
    norms = [name for name, module in model.get_submodule(around).named_children() if _is_final_norm(name, module)]
    heads = [
        name
        for name, module in model.named_children()
        if model is not model.base_model
        and module not in (model.base_model, model.get_output_embeddings())
        and any(True for _ in module.parameters())
    ]
    return [
        *(f"{path}.{index}" for index in range(depth - layers, depth)),
        *(f"{around}.{name}" if around else name for name in norms),
        *heads,
    ]


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model that has its own trained weights, and the frozen ones in common with it."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, frozen)


def trained_state(model: PreTrainedModel, layers: int) -> dict[str, Tensor]:
    """The weights of the top layers under PEFT's names. Under FSDP all processes must ask."""
    return {
        f"{PEFT_PREFIX}{module}.{name}": full_tensor(weight.detach())
        for module in top_layers(model, layers)
        for name, weight in model.get_submodule(module).state_dict().items()
    }


def load_trained_state(model: PreTrainedModel, layers: int, tensors: Mapping[str, Tensor]) -> None:
    """Puts weights that `trained_state` gave in the place of a model's.

    Raises:
        ArtifactError: these are not the weights of that model's top layers.
    """
    expected = {f"{PEFT_PREFIX}{module}.": model.get_submodule(module) for module in top_layers(model, layers)}
    for prefix, module in expected.items():
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        shapes = {name: weight.shape for name, weight in module.state_dict().items()}
        if {name: tensor.shape for name, tensor in own.items()} != shapes:
            raise ArtifactError(
                f"The weights of {prefix.removeprefix(PEFT_PREFIX)[:-1]} are missing or of other shapes than in "
                f"{type(model).__name__}.",
                where="adapter_model.safetensors",
                fix="name the base that the top layers were trained on",
            )
        module.load_state_dict(own)


def top_layers_config(model: PreTrainedModel, layers: int) -> LoraConfig:
    """PEFT config of a top-layers artifact: a LoRA without low-rank updates, whose saved modules are the layers."""
    from peft import LoraConfig, TaskType
    from peft.utils.constants import DUMMY_TARGET_MODULES

    is_policy = model.get_output_embeddings() is not None
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM if is_policy else TaskType.SEQ_CLS,
        target_modules=DUMMY_TARGET_MODULES,
        modules_to_save=top_layers(model, layers),
        inference_mode=True,
    )


def trained_layers(config: LoraConfig) -> int | None:
    """Number of blocks in an artifact with that config; None for an ordinary LoRA."""
    from peft.utils.constants import DUMMY_TARGET_MODULES

    if config.target_modules != DUMMY_TARGET_MODULES:
        return None
    return sum(name.rpartition(".")[2].isdigit() for name in config.modules_to_save or ())


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    blocks = model.get_submodule(blocks_name(model))
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _is_one_of(kinds: set[str], block: nn.Module) -> bool:
    """By the names of its classes: FSDP makes a class of its own of each."""
    return not kinds.isdisjoint(kind.__name__ for kind in type(block).__mro__)


def _is_final_norm(name: str, module: nn.Module) -> bool:
    """Beside the blocks there may also be a norm of the embeddings."""
    return "norm" in type(module).__name__.lower() and "embed" not in name
