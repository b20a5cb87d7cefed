"""A training ends after exactly the steps that it is allowed, with a validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.training_callbacks import StepLimit


class Climbing(pl.LightningModule):
    """Its weight grows by 1 each optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.validated_at: list[float] = []

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return -self.weight * batch

    def validation_step(self, batch: Tensor, _: int) -> None:
        del batch
        self.validated_at.append(self.weight.item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize(
    ("limit", "validated_at"),
    [
        (2, [2.0]),  # inside the first epoch
        (3, [3.0]),  # where it ends
        (4, [3.0, 4.0]),  # inside the second
        (9, [3.0, 6.0]),  # after all of them
    ],
)
def test_the_last_step_is_validated(
    make_trainer: Callable[..., pl.Trainer], limit: int, validated_at: list[float]
) -> None:
    module = Climbing()
    trainer = make_trainer(StepLimit(limit), max_epochs=2, accumulate_grad_batches=2)
    # Two epochs of three steps, each of two micro-batches.
    micro_batches: Any = [torch.tensor(1.0)] * 6
    trainer.fit(module, DataLoader(micro_batches, batch_size=None), DataLoader(micro_batches[:1], batch_size=None))
    assert trainer.global_step == min(limit, 6) == module.weight.item()
    assert module.validated_at == validated_at
