"""A checkpoint when training is cut short."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl


class InterruptionCheckpoint(pl.Callback):
    """Saves a Lightning checkpoint when an exception or Ctrl-C ends the training.

    Args:
        path: of the checkpoint; replaced if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        del pl_module, exception
        trainer.save_checkpoint(self.path)
