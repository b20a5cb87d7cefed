"""A training whose figures stop being numbers ends in a typed error, before the step that would break the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.training_callbacks import DivergenceGuard
from rlhf_lightning.batches import TensorRecord
from rlhf_lightning.errors import DivergedError

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


@dataclass(frozen=True, eq=False)
class Inner(TensorRecord):
    factor: Tensor


@dataclass(frozen=True, eq=False)
class Batch(TensorRecord):
    inner: Inner
    count: int

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.inner.to(device), self.count)


class Weighted(pl.LightningModule):
    """Its loss is the weight times the batch's factor, its validation loss the same."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.learning_rate = learning_rate

    def training_step(self, batch: Batch, _: int) -> Tensor:
        return self.weight * batch.inner.factor

    def validation_step(self, batch: Batch, _: int) -> None:
        self.log("validation_loss", self.weight * batch.inner.factor, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class RootLoss(Weighted):
    """Its loss is the root of the weight less 1: 0 at a weight of 1, where the slope is infinite."""

    def training_step(self, batch: Batch, _: int) -> Tensor:
        return torch.sqrt(self.weight - 1 + 0 * batch.inner.factor)


def loader(values: Sequence[float]) -> Any:
    batches: Any = [Batch(Inner(torch.tensor(value)), 1) for value in values]
    return DataLoader(batches, batch_size=None)


def fit(
    make_trainer: Callable[..., pl.Trainer],
    directory: Path,
    module: pl.LightningModule,
    train: Sequence[float],
    validate: Sequence[float] = (),
    **arguments: Any,
) -> None:
    trainer = make_trainer(DivergenceGuard("sft", directory), max_epochs=1, **arguments)
    trainer.fit(module, loader(train), loader(validate) if validate else None)


def test_a_training_of_numbers_runs_to_its_end(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    fit(make_trainer, tmp_path / "kept", Weighted(0.1), [1.0, 2.0], [1.0])
    assert not (tmp_path / "kept").exists()


def test_the_first_loss_that_is_no_number_ends_it_before_the_step(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    module = Weighted(0.1)
    with pytest.raises(DivergedError, match="at optimizer step 1 the loss is inf") as caught:
        fit(make_trainer, tmp_path, module, [1.0, float("inf"), 1.0])
    assert caught.value.where == "sft.learning_rate"
    # One step of 0.1 times a gradient of 1 was taken, and none after it.
    assert module.weight.item() == pytest.approx(0.9)


def test_the_batch_that_did_it_is_saved_and_named(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    # Two micro-batches a step: the second step holds 3 and nan.
    with pytest.raises(DivergedError) as caught:
        fit(make_trainer, tmp_path, Weighted(0.1), [1.0, 2.0, 3.0, float("nan")], accumulate_grad_batches=2)
    path = tmp_path / "diverged_batch.safetensors"
    assert str(path) in str(caught.value.fix)
    assert "in it 1.inner.factor are not finite" in str(caught.value.fix)
    tensors = load_file(path)
    assert set(tensors) == {"0.inner.factor", "1.inner.factor"}
    assert float(tensors["0.inner.factor"]) == 3.0
    assert tensors["1.inner.factor"].isnan()
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"stage": "sft", "optimizer_step": "1"}


def test_a_gradient_that_is_no_number_ends_it_before_the_step(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    module = RootLoss(0.1)
    with pytest.raises(DivergedError, match="at optimizer step 0 the gradient's norm is inf") as caught:
        fit(make_trainer, tmp_path, module, [1.0])
    assert module.weight.item() == 1.0
    assert "all of its figures are finite" in str(caught.value.fix)
    assert (tmp_path / "diverged_batch.safetensors").exists()


def test_a_validation_loss_that_is_no_number_ends_it(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    # The one step takes the weight to 1 - 1e30, which is a number; times 1e30 it is too large for one.
    with pytest.raises(DivergedError, match="validation_loss is -inf"):
        fit(make_trainer, tmp_path, Weighted(1e30), [1.0], [1e30])


def test_weights_that_the_last_step_broke_are_not_passed_on(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="at optimizer step 1 some weights"):
        fit(make_trainer, tmp_path, Weighted(1e30), [1e30])
