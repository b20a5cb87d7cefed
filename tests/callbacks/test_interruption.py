"""When training is cut short, a checkpoint remains."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks.interruption import InterruptionCheckpoint


class CutShort(pl.LightningModule):
    """Its third step raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.error = error

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if index == 2:
            raise self.error
        return self.weight * batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """Lightning leaves Ctrl-C ignored once it was pressed."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def ones(count: int) -> Any:
    return DataLoader([torch.tensor(1.0)] * count, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_interrupted_training_leaves_its_weights(
    error: BaseException, make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints" / "interrupted.ckpt"
    path.parent.mkdir()
    path.write_text("an older one")
    trainer = make_trainer(InterruptionCheckpoint(path), max_epochs=1)
    # Lightning turns Ctrl-C into an exit of its own.
    with pytest.raises((SystemExit, KeyboardInterrupt, RuntimeError)):
        trainer.fit(CutShort(error), ones(5))
    checkpoint = torch.load(path, weights_only=True)
    # Two steps of -1 were taken before the third was cut short.
    assert checkpoint["state_dict"]["weight"].item() == -2.0
    assert checkpoint["global_step"] == 2


def test_a_training_that_ends_leaves_none(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    path = tmp_path / "interrupted.ckpt"
    trainer = make_trainer(InterruptionCheckpoint(path), max_epochs=1)
    trainer.fit(CutShort(RuntimeError()), ones(2))
    assert not path.exists()
