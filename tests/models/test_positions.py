"""Positions count real tokens only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models.forward_pass import last_real_positions, position_arguments

MASK = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])


class WithoutPositions(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids * attention_mask


def test_left_padding_does_not_shift_positions(make_policy: Callable[..., PreTrainedModel]) -> None:
    arguments = position_arguments(make_policy(), MASK)
    assert arguments["attention_mask"] is MASK
    # Real tokens count 0, 1, 2, ...; what stands at padding is never read, but has to be a valid position.
    assert arguments["position_ids"].tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 3]]


def test_a_model_without_positions_gets_none() -> None:
    assert position_arguments(WithoutPositions(), MASK) == {"attention_mask": MASK}


def test_the_last_real_token_is_found_on_either_side_of_padding() -> None:
    masks = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert last_real_positions(masks).tolist() == [2, 2, 3, 3, 0]
