"""Activation checkpointing: activations are recomputed in the backward pass to save memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import nn
from transformers import PreTrainedModel

from rlhf_lightning.models.adapters import active, at_work


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
    return nullcontext(), active(model, at_work(model))
