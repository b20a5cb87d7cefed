"""Tensor-level records: what a training step receives.

Padding is described by masks that were made from lengths. Token ids say nothing about padding, because the padding
token may be the end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from rlhf_lightning.records import Prompt


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A record whose tensors move between devices together."""

    def to(self, device: torch.device | str) -> Self:
        """The same record with every tensor on `device` (Lightning moves any batch that has this method)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)})

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name; those of a record inside it as `record.name`."""
        found: dict[str, Tensor] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                found[field.name] = value
            elif isinstance(value, TensorRecord):
                found |= {f"{field.name}.{name}": tensor for name, tensor in value.tensors().items()}
        return found


@dataclass(frozen=True, eq=False)
class PromptBatch(TensorRecord):
    """Prompts for generation, padded on the left so that every prompt ends at the last position.

    Attributes:
        input_ids: (batch, prompt_time) int64.
        attention_mask: (batch, prompt_time) int64, 1 on prompt tokens and 0 on padding.
        prompts: the text behind each row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, eq=False)
class DemonstrationBatch(TensorRecord):
    """Prompts with the response to imitate, padded on the right.

    Attributes:
        input_ids: (batch, time) int64, prompt then response.
        attention_mask: (batch, time) int64, 1 on prompt and response tokens.
        loss_mask: (batch, time) bool, True on the response's tokens, its end-of-sequence token included.
        step_weight: how many loss tokens the whole optimizer step has, over all of its micro-batches and ranks.
            The step's loss is the sum of token losses over all of them divided by this number.
    """

    input_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    step_weight: int

    def __len__(self) -> int:
        return self.input_ids.shape[0]


@dataclass(frozen=True, eq=False)
class PreferenceBatch(TensorRecord):
    """Pairs of responses to the same prompts, each side a whole sequence padded on the right.

    Attributes:
        chosen_ids: (batch, chosen_time) int64, prompt then the preferred response.
        chosen_mask: (batch, chosen_time) int64, 1 on prompt and response tokens.
        rejected_ids: (batch, rejected_time) int64.
        rejected_mask: (batch, rejected_time) int64.
        margin: (batch,) float32, zero where there is none.
        probability: (batch,) float32, that the preferred response is the better one; 1 where that is taken as certain.
        step_weight: how many pairs the whole optimizer step has, over all of its micro-batches and ranks.
    """

    chosen_ids: Tensor
    chosen_mask: Tensor
    rejected_ids: Tensor
    rejected_mask: Tensor
    margin: Tensor
    probability: Tensor
    step_weight: int

    def __len__(self) -> int:
        return self.chosen_ids.shape[0]


def right_padded(sequences: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Sequences of several lengths as one tensor (batch, time) int64, at least one wide."""
    padded = torch.full((len(sequences), max(1, *map(len, sequences))), fill, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return padded


def right_padding_mask(sequences: Sequence[Sequence[int]]) -> Tensor:
    """The attention mask of `right_padded`, (batch, time) int64: 1 where there is a token."""
    return right_padded([[1] * len(sequence) for sequence in sequences], 0)
