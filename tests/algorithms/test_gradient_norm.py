"""The norm that is logged is the whole step's, before clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.training_callbacks import GradientNorm


class Sloped(pl.LightningModule):
    """Its loss is a times 3 plus b times the batch: the gradient is (3, mean of the micro-batches)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.idle = (nn.Parameter(torch.zeros(())) for _ in range(3))

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.a * 3.0 + self.b * batch.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def trained(make_trainer: Callable[..., pl.Trainer], batches: list[float], *, on_step: bool) -> tuple[Sloped, float]:
    module = Sloped()
    trainer = make_trainer(
        GradientNorm(on_step=on_step), max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.5
    )
    tensors: Any = [torch.tensor(batch) for batch in batches]
    trainer.fit(module, DataLoader(tensors, batch_size=None))
    return module, float(trainer.callback_metrics["optimizer/grad_norm"])


def test_the_norm_is_that_of_the_whole_step_before_clipping(make_trainer: Callable[..., pl.Trainer]) -> None:
    module, norm = trained(make_trainer, [2.0, 6.0], on_step=True)
    # Two micro-batches make one step: the gradient is (3, 4), and a parameter without gradient adds nothing.
    assert norm == pytest.approx(5.0)
    # The step itself has norm 0.5: a tenth of the gradient.
    assert (module.a.item(), module.b.item()) == pytest.approx((-0.3, -0.4), abs=1e-5)


def test_over_an_epoch_the_mean_of_the_steps_is_logged(make_trainer: Callable[..., pl.Trainer]) -> None:
    # Gradients (3, 4) and (3, 0): norms 5 and 3.
    _, norm = trained(make_trainer, [2.0, 6.0, 1.0, -1.0], on_step=False)
    assert norm == pytest.approx(4.0)
