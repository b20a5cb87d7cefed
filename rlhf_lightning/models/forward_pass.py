"""Variants of a forward pass: positions independent of padding, FSDP2-sharded weights, recomputed activations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from rlhf_lightning.models.adapters import active, active_adapter


def position_arguments(model: nn.Module, attention_mask: Tensor) -> dict[str, Tensor]:
    """`attention_mask`, and `position_ids` that count real tokens only, for models that take them.

    Without them a left-padded sequence starts at position P instead of 0 in many models.

    Args:
        attention_mask: (batch, time), 1 on real tokens.
    """
    arguments = {"attention_mask": attention_mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        arguments["position_ids"] = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return arguments


def last_real_positions(attention_mask: Tensor) -> Tensor:
    """(batch,) index of each row's last real token, from the mask alone (pad may equal EOS)."""
    steps = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (steps * attention_mask.long()).argmax(dim=1)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a model in place (FSDP2), layer by layer where Transformers says what a layer is.

    Afterwards all processes run its forward together, or none.

    Args:
        mesh: the processes that share it.
    """
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in reversed(list(model.modules())):  # the innermost first
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # Also after the forward of the outermost part: rollouts are not followed by a backward that would do it.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """True if `shard` was applied to a model."""
    return isinstance(model, FSDPModule)


def checkpoint_activations(module: nn.Module) -> None:
    """Let every Transformers model in a module keep one activation a layer and recompute the rest.

    Layers do so in training mode only, so the module is put into it: it must be free of dropout.

    Args:
        module: a model, or what holds models.
    """
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing:
            _enable(part)
    module.train()


def _enable(model: PreTrainedModel) -> None:
    # Transformers renamed the method; the older name warns where the newer one is known.
    newer: Callable[..., None] | None = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)(
        {"use_reentrant": False, "context_fn": partial(_as_in_the_forward_pass, model)}
    )


def _as_in_the_forward_pass(
    model: PreTrainedModel,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's forward and of its recomputation, when another adapter may be active."""
    return nullcontext(), active(model, active_adapter(model))
