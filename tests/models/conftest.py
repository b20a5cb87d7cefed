"""Sequences whose padding is chosen by the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

Reply = tuple[Sequence[int], Sequence[int]]


@pytest.fixture(scope="session")
def padded() -> Callable[..., tuple[Tensor, Tensor]]:
    """Builds sequences and attention mask of (prompt, reply) rows, prompts padded on the left, replies on the right."""

    def build(rows: Sequence[Reply], prompt_width: int, reply_width: int, pad: int) -> tuple[Tensor, Tensor]:
        sequences, masks = [], []
        for prompt, reply in rows:
            left, right = prompt_width - len(prompt), reply_width - len(reply)
            sequences.append([pad] * left + [*prompt, *reply] + [pad] * right)
            masks.append([0] * left + [1] * (len(prompt) + len(reply)) + [0] * right)
        return torch.tensor(sequences), torch.tensor(masks)

    return build
