"""A limit on the optimizer steps of a training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class StepLimit(pl.Callback):
    """Ends the training after a number of optimizer steps, and validates then.

    Lightning's own `Trainer(max_steps=...)` ends inside an epoch without a validation.

    Args:
        max_steps: at most so many, over all epochs.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        if trainer.global_step >= self.max_steps:
            trainer.should_stop = True
