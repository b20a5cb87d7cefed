"""Callbacks of every training: gradient norm, stop on divergence, limit of optimizer steps, signal handlers."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.batches import TensorRecord
from rlhf_lightning.distributed import full_tensor
from rlhf_lightning.errors import DivergedError


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
    return full_tensor(torch.nn.utils.get_total_norm(gradients))


BATCH_FILE = "diverged_batch.safetensors"
LOSS_SCALED = "16-mixed"
"""In this precision gradients that overflow are normal: the loss scaler skips the step and lowers its scale."""


class DivergenceGuard(pl.Callback):
    """Stops the training when a loss or gradient is not finite, or when a weight is not finite at the end.

    It stops before the optimizer step, so that the weights are still those of the last good step, and saves the
    micro-batches of the step as `0.input_ids`, `1.input_ids`, ...

    Args:
        section: the config section whose learning rate the error names.
        directory: where the batch is saved.
    """

    def __init__(self, section: str, directory: Path) -> None:
        self.section = section
        self.directory = directory
        self._step: list[TensorRecord] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: TensorRecord, batch_idx: int
    ) -> None:
        del pl_module
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._step = []
        self._step.append(batch)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        del pl_module
        if not loss.isfinite():
            raise self._diverged(f"the loss is {float(loss.detach())}", trainer, self._save_batch(trainer))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        del pl_module
        norm = gradient_norm(optimizer)
        if trainer.precision != LOSS_SCALED and not norm.isfinite():
            raise self._diverged(f"the gradient's norm is {float(norm)}", trainer, self._save_batch(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise self._diverged(f"{name} is {float(value)}", trainer)
        if not all(bool(full_tensor(parameter.isfinite().all())) for parameter in pl_module.parameters()):
            raise self._diverged("some weights are not finite", trainer)

    def _save_batch(self, trainer: pl.Trainer) -> str:
        """Saves the micro-batches of the step under way, and says where and what is wrong with them."""
        rank = trainer.global_rank
        path = (self.directory / BATCH_FILE).with_suffix(f".rank{rank}.safetensors" if rank else ".safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{number}.{name}": tensor.detach().cpu().contiguous().clone()
            for number, batch in enumerate(self._step)
            for name, tensor in batch.tensors().items()
        }
        save_file(tensors, path, metadata={"stage": self.section, "optimizer_step": str(trainer.global_step)})
        broken = [
            name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()
        ]
        state = f"in it {', '.join(broken)} are not finite" if broken else "all of its figures are finite"
        return f"safetensors.torch.load_file({str(path)!r}) opens the batch that did it ({state})"

    def _diverged(self, what: str, trainer: pl.Trainer, batch: str | None = None) -> DivergedError:
        fix = f"lower {self.section}.learning_rate; optimizer/grad_norm in history.csv shows where it began"
        return DivergedError(
            f"Training diverged: at optimizer step {trainer.global_step} {what}.",
            where=f"{self.section}.learning_rate",
            fix=f"{fix}; {batch}" if batch else fix,
        )


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


Handler = Callable[[int, FrameType | None], object] | int | None

PROGRAM_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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
        self._handlers = {number: signal.getsignal(number) for number in PROGRAM_SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer, pl_module
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
