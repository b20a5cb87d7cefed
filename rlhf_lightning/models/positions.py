"""Forward passes that do not depend on padding."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn


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
