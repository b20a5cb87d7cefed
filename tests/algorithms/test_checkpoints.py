"""A training that goes on from any of its checkpoints ends as the one that was never interrupted."""

from __future__ import annotations

import random
import resource
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from rlhf_lightning.algorithms.checkpoints import (
    AppendedFiles,
    AtomicCheckpointIO,
    Checkpoints,
    checkpoints_in,
    random_states,
    restore_random_states,
)
from rlhf_lightning.batches import TensorRecord
from rlhf_lightning.data.batching import Weight
from rlhf_lightning.data.datamodules import StepDataModule
from rlhf_lightning.tracking.history import HistoryLogger
from rlhf_lightning.tracking.history_file import read_history

RECORDS = [float(index) for index in range(26)]


@dataclass(frozen=True, eq=False)
class Numbers(TensorRecord):
    """Records as a batch."""

    values: Tensor
    step_weight: int


def collate(records: Any, _: int, step_weight: int) -> Numbers:
    return Numbers(torch.tensor(list(records)), step_weight)


def data_module(micro_batch_size: int = 2) -> StepDataModule[float, Numbers]:
    """Six optimizer steps of four records an epoch; two records are left over."""
    return StepDataModule(
        RECORDS,
        RECORDS[:3],
        collate=collate,
        weigh=lambda record: Weight(1, int(record)),
        pad_id=0,
        batch_size=4,
        micro_batch_size=micro_batch_size,
        seed=3,
    )


class Noisy(pl.LightningModule):
    """Its loss depends on every random number generator, on the learning rate's schedule and on each batch."""

    def __init__(self, interval: str, *, noisy: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.interval = interval
        self.noisy = noisy

    def training_step(self, batch: Numbers | Tensor, _: int) -> Tensor:
        values = batch.values if isinstance(batch, Numbers) else batch
        noise = torch.rand(()) + random.random() + float(np.random.rand()) if self.noisy else 1.0
        # Lightning divides by the accumulated micro-batches; the loss is the sum over the step.
        loss = ((self.weight - values / 10) ** 2).sum() * noise * self.trainer.accumulate_grad_batches
        self.log("loss", loss.detach(), on_step=self.interval == "step", on_epoch=self.interval == "epoch")
        return loss

    def validation_step(self, batch: Numbers, _: int) -> None:
        self.log("validation_loss", ((self.weight - batch.values) ** 2).mean(), batch_size=len(batch.values))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: 1 / (1 + count))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


class Iterations(IterableDataset[Tensor]):
    """Four numbers an epoch, which a callback puts there when it begins."""

    def __init__(self) -> None:
        self.numbers: list[float] = []

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.tensor(self.numbers)


class Filler(pl.Callback):
    """Fills the buffer and writes a sample log; its cursor is its state."""

    def __init__(self, buffer: Iterations, sample_log: Path) -> None:
        self.buffer = buffer
        self.sample_log = sample_log
        self.cursor = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.buffer.numbers = [float(self.cursor + index) for index in range(4)]
        self.cursor += 4
        with self.sample_log.open("a") as file:
            file.write(f"{trainer.current_epoch} {self.cursor}\n")
        pl_module.log("cursor", float(self.cursor), on_step=False, on_epoch=True)

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1, "cursor": self.cursor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cursor = state_dict["cursor"]


class Place:
    """A run directory with one stage, and trainings in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stage_dir = path / "stage"
        self.stage_dir.mkdir(parents=True)
        self.journals = AppendedFiles(path / "history.csv", self.stage_dir)
        self.checkpoints = path / "checkpoints" / "stage"

    def trainer(self, unit: Any, *, epochs: int, accumulate: int, callbacks: Any = (), keep_last: int = 99) -> Any:
        watching = Checkpoints(self.checkpoints, self.journals, unit=unit, every=1, keep_last=keep_last)
        return pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            accumulate_grad_batches=accumulate,
            callbacks=[watching, LearningRateMonitor(unit if unit == "step" else "epoch"), *callbacks],
            plugins=[AtomicCheckpointIO()],
            logger=HistoryLogger(self.path, "stage"),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=self.path,
        )

    def by_steps(self, checkpoint: Path | None = None, micro_batch_size: int = 2, *, noisy: bool = True) -> float:
        """Trains on the data module for two epochs; the weight at the end."""
        data, module = data_module(micro_batch_size), Noisy("step", noisy=noisy)
        trainer = self.trainer("step", epochs=2, accumulate=data.micro_batches_per_step)
        return self.fit(trainer, module, checkpoint, datamodule=data)

    def by_iterations(self, checkpoint: Path | None = None) -> float:
        """Trains on what a callback provides for four epochs; the weight at the end."""
        buffer, module = Iterations(), Noisy("epoch")
        filler = Filler(buffer, self.stage_dir / "sample_log.jsonl")
        trainer = self.trainer("iteration", epochs=4, accumulate=2, callbacks=[filler])
        loader = DataLoader(buffer, batch_size=None, generator=torch.Generator())
        warnings.filterwarnings("ignore", message=r".*You defined a `validation_step` but have no.*")
        return self.fit(trainer, module, checkpoint, train_dataloaders=loader)

    def fit(self, trainer: pl.Trainer, module: Noisy, checkpoint: Path | None, **data: Any) -> float:
        for message in (r".*does not have many workers.*", r".*`IterableDataset` has `__len__`.*", r".*treespec.*"):
            warnings.filterwarnings("ignore", message=message)
        warnings.filterwarnings("error", message=r".*dataloader is not resumable.*")
        pl.seed_everything(5 if checkpoint is None else 6, verbose=False)
        if checkpoint is not None:
            kept = torch.load(checkpoint, weights_only=True)["resume"]["journals"]
            self.journals.truncate(kept)
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None, **data)
        return module.weight.item()

    def written(self) -> dict[str, str]:
        return {name: (self.path / name).read_text() for name in self.journals.lengths()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_from_any_step_on_the_training_is_the_same(place: Place, micro_batch_size: int) -> None:
    final = place.by_steps(micro_batch_size=micro_batch_size)
    written = place.written()
    found = checkpoints_in(place.checkpoints)
    # 2 epochs of 26 // 4 = 6 steps, and a checkpoint before each but the first.
    assert [path.name for path in reversed(found)] == [f"step={step:06d}.ckpt" for step in range(1, 12)]
    for checkpoint in found:
        assert place.by_steps(checkpoint, micro_batch_size) == final
        assert place.written() == written


def test_from_any_iteration_on_the_training_is_the_same(place: Place) -> None:
    final = place.by_iterations()
    written = place.written()
    found = checkpoints_in(place.checkpoints)
    assert [path.name for path in reversed(found)] == [f"iteration={number:06d}.ckpt" for number in (1, 2, 3)]
    for checkpoint in found:
        assert place.by_iterations(checkpoint) == final
        assert place.written() == written
    assert written["stage/sample_log.jsonl"] == "0 4\n1 8\n2 12\n3 16\n"


def test_a_full_disk_is_said_as_such_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "step=000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"count": 1}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1 << 20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.load(path, weights_only=True) == {"count": 1}


def test_what_a_killed_writer_left_is_removed_and_the_newest_are_kept(place: Place) -> None:
    place.checkpoints.mkdir(parents=True)
    (place.checkpoints / ".step=000009.ckpt.part").write_text("half")
    data, module = data_module(), Noisy("step")
    trainer = place.trainer("step", epochs=2, accumulate=2, keep_last=3)
    place.fit(trainer, module, None, datamodule=data)
    names = sorted(path.name for path in place.checkpoints.iterdir())
    assert names == ["step=000009.ckpt", "step=000010.ckpt", "step=000011.ckpt"]


def test_a_checkpoint_holds_no_code_and_lightnings_own_keys(place: Place) -> None:
    place.by_iterations()
    content = torch.load(checkpoints_in(place.checkpoints)[0], weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"} <= content.keys()
    assert content["resume"].keys() == {"count", "micro_batches_per_step", "journals", "random_states"}
    assert content["resume"]["journals"].keys() == {"history.csv", "stage/sample_log.jsonl"}


def test_micro_batches_of_another_size_go_on_at_the_same_step(place: Place) -> None:
    """The loss here does not depend on how a step is divided: only the noise does, so none is drawn."""
    final = place.by_steps(micro_batch_size=4, noisy=False)
    middle = place.checkpoints / "step=000008.ckpt"
    logged = steps_logged(place)
    assert place.by_steps(middle, micro_batch_size=1, noisy=False) == pytest.approx(final, rel=1e-5)
    assert place.by_steps(middle, micro_batch_size=2, noisy=False) == pytest.approx(final, rel=1e-5)
    assert steps_logged(place) == logged == list(range(12))


def steps_logged(place: Place) -> list[int]:
    """The steps at which the training loss stands in the history."""
    return [row.step for row in read_history(place.path) if row.name == "loss"]


def test_random_states_are_restored_to_the_number() -> None:
    states = random_states()
    random.gauss(0, 1)  # leaves half a pair behind, which is part of the state
    states = random_states()

    def drawn() -> list[float]:
        return [random.gauss(0, 1), random.random(), float(np.random.normal()), float(torch.randn(()))]

    first = drawn()
    assert drawn() != first
    restore_random_states(states)
    assert drawn() == first
