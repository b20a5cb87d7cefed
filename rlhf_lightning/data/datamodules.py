"""Loaders of demonstrations and preferences for Lightning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from rlhf_lightning.batches import DemonstrationBatch, PreferenceBatch
from rlhf_lightning.data.batching import (
    MicroBatch,
    PassSampler,
    StepSampler,
    Weight,
    collate_demonstrations,
    collate_preferences,
)
from rlhf_lightning.data.encoding import EncodedDemonstration, EncodedPreference, Encoder, EncodingReport
from rlhf_lightning.data.splits import split_by_prompt
from rlhf_lightning.distributed import rank, world_size
from rlhf_lightning.records import Demonstration, Preference

logger = logging.getLogger(__name__)

Encoded = TypeVar("Encoded")
Batch = TypeVar("Batch")
Collate = Callable[[Sequence[Encoded], int, int], Batch]


class EncodedRecords(Dataset[Batch], Generic[Encoded, Batch]):
    """Encoded records, which a micro-batch turns into a batch.

    Args:
        records: what the micro-batches' indices point to.
        collate: makes a batch of records, the padding token and the step's weight.
        pad_id: the padding token.
    """

    def __init__(self, records: Sequence[Encoded], collate: Collate[Encoded, Batch], pad_id: int) -> None:
        self.records = records
        self.collate = collate
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        return self.collate(
            [self.records[index] for index in micro_batch.indices], self.pad_id, micro_batch.step_weight
        )


class StepLoader(DataLoader[Batch]):
    """A loader that can begin in the middle of an epoch; Lightning saves its state with a checkpoint and restores it.

    Args:
        records: encoded.
        sampler: knows the position.
        generator: that the loader draws from.
    """

    def __init__(
        self, records: EncodedRecords[Encoded, Batch], sampler: StepSampler, generator: torch.Generator
    ) -> None:
        super().__init__(records, batch_size=None, sampler=sampler, num_workers=0, generator=generator)

    def state_dict(self) -> dict[str, int]:
        return {"position": cast("StepSampler", self.sampler).position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        cast("StepSampler", self.sampler).begin_at(state["position"])


class StepDataModule(LightningDataModule, Generic[Encoded, Batch]):
    """Micro-batches in steps of `batch_size` records (see `StepSampler`), and the held-out records in one pass.

    A trainer that uses it has `accumulate_grad_batches=micro_batches_per_step`, and the loss of a micro-batch is
    `losses.sum() / batch.step_weight * micro_batches_per_step * world_size()`, since Lightning divides by the first
    number and averages the processes' gradients. So it is the same loss, whatever the number of processes.

    Args:
        train: encoded records to train on.
        held_out: encoded records to validate on; with none there is no validation.
        collate: makes a batch of records, the padding token and the step's weight.
        weigh: a record's loss weight and length.
        pad_id: the padding token.
        batch_size: records an optimizer step, over all processes.
        micro_batch_size: records a micro-batch, at most: as many as a process's share of a step, where that is less.
        seed: what each epoch's order is drawn from.
    """

    def __init__(
        self,
        train: Sequence[Encoded],
        held_out: Sequence[Encoded],
        *,
        collate: Collate[Encoded, Batch],
        weigh: Callable[[Encoded], Weight],
        pad_id: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train = EncodedRecords(train, collate, pad_id)
        self.held_out = EncodedRecords(held_out, collate, pad_id)
        self.train_weights = [weigh(record) for record in train]
        self.held_out_weights = [weigh(record) for record in held_out]
        self.batch_size = batch_size
        self.micro_batch_size = min(micro_batch_size, batch_size // world_size())
        self.seed = seed
        if left_over := len(train) % batch_size:
            logger.info(
                "%d of %d training records do not fill an optimizer step of %d: each epoch leaves out as many, others "
                "each time.",
                left_over,
                len(train),
                batch_size,
            )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of an optimizer step on one process."""
        return self.batch_size // self.micro_batch_size // world_size()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.train) // self.batch_size

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, trained on or held out."""
        return max((weight.length for weight in self.train_weights + self.held_out_weights), default=0)

    def train_dataloader(self) -> StepLoader[Batch]:
        """The training micro-batches.

        Raises:
            DataError: there are fewer records than one step needs.
        """
        sampler = StepSampler(
            self.train_weights,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            ranks=world_size(),
            rank=rank(),
        )
        return StepLoader(self.train, sampler, self._generator())

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The held-out records, each once; no loader where there are none."""
        if not self.held_out_weights:
            return []
        sampler = PassSampler(
            self.held_out_weights, micro_batch_size=self.micro_batch_size, ranks=world_size(), rank=rank()
        )
        generator = self._generator()
        return DataLoader(self.held_out, batch_size=None, sampler=sampler, num_workers=0, generator=generator)

    def _generator(self) -> torch.Generator:
        # Without a generator of its own a loader draws from the global one, and so would change what is sampled later.
        return torch.Generator().manual_seed(self.seed)


class DemonstrationDataModule(StepDataModule[EncodedDemonstration, DemonstrationBatch]):
    """Demonstrations for supervised fine-tuning; a step weighs as much as it has response tokens.

    Args:
        encoder: for the policy's tokenizer.
        demonstrations: the records to train on and validate on.
        batch_size: records an optimizer step.
        micro_batch_size: records a micro-batch.
        validation_fraction: the expected share of the prompts that is kept for validation; 0 for none.
        seed: what each epoch's order is drawn from.

    Attributes:
        train_report: what became of the training demonstrations when they were encoded.
        held_out_report: the same for validation.
    """

    def __init__(
        self,
        encoder: Encoder,
        demonstrations: Sequence[Demonstration],
        *,
        batch_size: int,
        micro_batch_size: int,
        validation_fraction: float,
        seed: int,
    ) -> None:
        train, held_out = split_by_prompt(demonstrations, validation_fraction, "validation")
        train_encoded, self.train_report = encoder.demonstrations(train)
        held_out_encoded, self.held_out_report = encoder.demonstrations(held_out)
        _log_reports("demonstrations", self.train_report, self.held_out_report)
        super().__init__(
            train_encoded,
            held_out_encoded,
            collate=collate_demonstrations,
            weigh=_demonstration_weight,
            pad_id=encoder.pad_id,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            seed=seed,
        )


class PreferenceDataModule(StepDataModule[EncodedPreference, PreferenceBatch]):
    """Pairs for a reward model (or any preference loss); a step weighs as much as it has pairs.

    Args:
        encoder: for the model's tokenizer.
        train: the pairs to train on.
        held_out: the pairs to measure accuracy on, whose prompts are not among the training pairs' prompts.
        batch_size: pairs an optimizer step.
        micro_batch_size: pairs a micro-batch.
        seed: what each epoch's order is drawn from.

    Attributes:
        train_report: what became of the training pairs when they were encoded.
        held_out_report: the same for the held-out pairs.
    """

    def __init__(
        self,
        encoder: Encoder,
        train: Sequence[Preference],
        held_out: Sequence[Preference],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
    ) -> None:
        train_encoded, self.train_report = encoder.preferences(train)
        held_out_encoded, self.held_out_report = encoder.preferences(held_out)
        _log_reports("preferences", self.train_report, self.held_out_report)
        super().__init__(
            train_encoded,
            held_out_encoded,
            collate=collate_preferences,
            weigh=_preference_weight,
            pad_id=encoder.pad_id,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            seed=seed,
        )


def _demonstration_weight(record: EncodedDemonstration) -> Weight:
    return Weight(loss=len(record.response_ids), length=len(record.prompt_ids) + len(record.response_ids))


def _preference_weight(record: EncodedPreference) -> Weight:
    return Weight(loss=1, length=len(record.prompt_ids) + max(len(record.chosen_ids), len(record.rejected_ids)))


def _log_reports(name: str, train: EncodingReport, held_out: EncodingReport) -> None:
    logger.info("Training %s: %s.", name, train.summary())
    if held_out.records:
        logger.info("Held-out %s: %s.", name, held_out.summary())
