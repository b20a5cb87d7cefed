"""While Lightning trains, signals do what the program wants of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.training_callbacks import OwnSignalHandlers


class Signaled(pl.LightningModule):
    """Its second step gets a signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.number = number
        self.steps = 0

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if index == 1:
            os.kill(os.getpid(), self.number)
        self.steps += 1
        return self.weight * batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals that the program's own handlers got; they are put back at the end."""
    numbers: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    for number in before:
        signal.signal(number, lambda got, _: numbers.append(got))
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(params=["anywhere", "under SLURM"])
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes itself to be in a SLURM job of one process, or not."""
    if request.param == "under SLURM":
        job = {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "4711", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
        for name, value in job.items():
            monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_program_and_nobody_else(
    number: signal.Signals, heard: list[int], make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)]
    module = Signaled(number)
    ones: Any = DataLoader([torch.tensor(1.0)] * 3, batch_size=None)  # type: ignore[arg-type]
    trainer = make_trainer(OwnSignalHandlers(), max_epochs=1)
    trainer.fit(module, ones)
    # Lightning's own handler would note the signal and end the training after the step.
    assert (heard, module.steps, trainer.received_sigterm) == ([number], 3, False)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert not list(tmp_path.rglob("hpc_ckpt*"))
