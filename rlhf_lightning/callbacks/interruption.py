"""Keep the program's own signal handlers while Lightning trains."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

import pytorch_lightning as pl

Handler = Callable[[int, FrameType | None], object] | int | None

OURS = (signal.SIGTERM, signal.SIGUSR1)


class OwnSignalHandlers(pl.Callback):
    """Restores the handlers of SIGTERM and SIGUSR1 that Lightning replaces when a training begins.

    Lightning's handler of SIGTERM exchanges a message among all processes, which hangs where they are not all at the
    same place; its handler of SIGUSR1 under SLURM saves a checkpoint in the middle of an iteration and prefers it when
    the job starts again. The program's own handlers interrupt the run, and what counts then is the last checkpoint
    between two steps.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        del trainer, pl_module, stage
        self._handlers = {number: signal.getsignal(number) for number in OURS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer, pl_module
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
