"""The size of each optimizer step's gradient, before it is clipped."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.distributed import whole


class GradientNorm(pl.Callback):
    """Logs the global L2 norm of the gradients as `optimizer/grad_norm`.

    Lightning calls this hook after the backward pass and before clipping.

    Args:
        on_step: log each step; else the mean over an epoch.
    """

    def __init__(self, *, on_step: bool) -> None:
        self.on_step = on_step

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        del trainer
        norm = gradient_norm(optimizer)
        pl_module.log("optimizer/grad_norm", norm, on_step=self.on_step, on_epoch=not self.on_step, batch_size=1)


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """(), the L2 norm of all gradients that an optimizer is about to use. All processes must ask."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return whole(torch.nn.utils.get_total_norm(gradients))
