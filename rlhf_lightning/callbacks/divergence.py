"""Training that has come apart ends in an error that says so, instead of leaving a model of NaNs."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch

from rlhf_lightning.errors import DivergedError


class DivergenceGuard(pl.Callback):
    """Ends the training when a loss is not finite, or at its end a weight.

    Args:
        section: the config section whose learning rate the error names.
    """

    def __init__(self, section: str) -> None:
        self.section = section

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, batch, batch_idx
        if not torch.isfinite(outputs["loss"]):
            raise self._diverged(f"the loss is {float(outputs['loss'])}", trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise self._diverged(f"{name} is {float(value)}", trainer)
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            raise self._diverged("some weights are not finite", trainer)

    def _diverged(self, what: str, trainer: pl.Trainer) -> DivergedError:
        return DivergedError(
            f"Training diverged: at optimizer step {trainer.global_step} {what}.",
            where=f"{self.section}.learning_rate",
            fix=f"lower {self.section}.learning_rate; optimizer/grad_norm in history.csv shows where it began",
        )
