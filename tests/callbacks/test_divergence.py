"""A training whose figures stop being numbers ends in a typed error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks.divergence import DivergenceGuard
from rlhf_lightning.errors import DivergedError

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Weighted(pl.LightningModule):
    """Its loss is the weight times the batch, its validation loss the weight."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.learning_rate = learning_rate

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.weight * batch

    def validation_step(self, batch: Tensor, _: int) -> None:
        self.log("validation_loss", self.weight * batch, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


def loader(values: Sequence[float]) -> Any:
    tensors: Any = [torch.tensor(value) for value in values]
    return DataLoader(tensors, batch_size=None)


def fit(
    make_trainer: Callable[..., pl.Trainer],
    train: Sequence[float],
    validate: Sequence[float] = (),
    learning_rate: float = 0.1,
) -> None:
    trainer = make_trainer(DivergenceGuard("sft"), max_epochs=1)
    trainer.fit(Weighted(learning_rate), loader(train), loader(validate) if validate else None)


def test_a_training_of_numbers_runs_to_its_end(make_trainer: Callable[..., pl.Trainer]) -> None:
    fit(make_trainer, [1.0, 2.0], [1.0])


def test_the_first_loss_that_is_no_number_ends_it(make_trainer: Callable[..., pl.Trainer]) -> None:
    with pytest.raises(DivergedError, match="at optimizer step 2 the loss is inf") as caught:
        fit(make_trainer, [1.0, float("inf"), 1.0])
    assert caught.value.where == "sft.learning_rate"
    assert caught.value.fix is not None


def test_a_validation_loss_that_is_no_number_ends_it(make_trainer: Callable[..., pl.Trainer]) -> None:
    # The one step takes the weight to 1 - 1e30, which is a number; times 1e30 it is too large for one.
    with pytest.raises(DivergedError, match="validation_loss is -inf"):
        fit(make_trainer, [1.0], [1e30], learning_rate=1e30)


def test_weights_that_the_last_step_broke_are_not_passed_on(make_trainer: Callable[..., pl.Trainer]) -> None:
    with pytest.raises(DivergedError, match="at optimizer step 1 some weights"):
        fit(make_trainer, [1e30], learning_rate=1e30)
