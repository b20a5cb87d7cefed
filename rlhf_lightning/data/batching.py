"""Batches from encoded records: assignment to optimizer steps weighted as a whole, and padded tensors with masks."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from rlhf_lightning.batches import DemonstrationBatch, PreferenceBatch, PromptBatch, right_padded, right_padding_mask
from rlhf_lightning.data.encoding import EncodedDemonstration, EncodedPreference, EncodedPrompt
from rlhf_lightning.errors import DataError


@dataclass(frozen=True, slots=True)
class Weight:
    """Weights of a record within an optimizer step.

    Attributes:
        loss: loss tokens, or 1 for a pair: what the step's loss is divided by.
        length: tokens in total; records of like length share a micro-batch, which saves padding.
    """

    loss: int
    length: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Records that go through the model together.

    Attributes:
        indices: the records.
        step_weight: the loss weight of all micro-batches of the same optimizer step, on all ranks.
    """

    indices: tuple[int, ...]
    step_weight: int


class StepSampler(DistributedSampler[MicroBatch]):
    """The micro-batches of an epoch, step by step; every optimizer step has exactly `batch_size` records.

    The order is redrawn each epoch from the seed and the epoch alone, so a resumed run sees what an uninterrupted one
    would have seen. Lightning counts an optimizer step in micro-batches, so all steps have the same number of them:
    the records left over at the end of an epoch are not used in it, and they are others in each epoch.

    Because it is a `DistributedSampler`, Lightning tells it the epoch (`set_epoch`) and leaves it in place when there
    are several ranks; each rank takes its share of every step's micro-batches.

    Args:
        weights: one a record.
        batch_size: records an optimizer step, over all ranks.
        micro_batch_size: records a micro-batch.
        seed: what the order is drawn from, with the epoch.
        ranks: how many processes train.
        rank: which of them this is.

    Attributes:
        position: micro-batches of the epoch that are done with: those before the one handed out last.

    Raises:
        DataError: there are fewer records than one step needs, or a step does not divide evenly among the ranks.
    """

    def __init__(
        self, weights: Sequence[Weight], *, batch_size: int, micro_batch_size: int, seed: int, ranks: int, rank: int
    ) -> None:
        if batch_size % (micro_batch_size * ranks):
            raise DataError(
                f"A batch of {batch_size} records does not divide into micro-batches of {micro_batch_size} on {ranks} "
                "processes.",
                fix="choose batch_size as a multiple of micro_batch_size times the number of processes",
            )
        if len(weights) < batch_size:
            raise DataError(
                f"There are {len(weights)} training records, which is less than one optimizer step of {batch_size}.",
                fix=f"add records, or lower batch_size to at most {len(weights)}"
                if weights
                else "add records; the log says what became of those that were read",
            )
        super().__init__(cast("Dataset[Any]", weights), num_replicas=ranks, rank=rank, seed=seed)
        self.weights = weights
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.position = 0
        self._begin_at = 0

    def begin_at(self, position: int) -> None:
        """Skip the first `position` micro-batches of the next pass only."""
        self._begin_at = position

    def __len__(self) -> int:
        steps = len(self.weights) // self.batch_size
        return steps * self.batch_size // self.micro_batch_size // self.num_replicas

    def __iter__(self) -> Iterator[MicroBatch]:
        self.position, self._begin_at = self._begin_at, 0
        for micro_batch in itertools.islice(self._epoch_from_the_start(), self.position, None):
            yield micro_batch
            self.position += 1

    def _epoch_from_the_start(self) -> Iterator[MicroBatch]:
        order = list(range(len(self.weights)))
        random.Random(f"{self.seed}:{self.epoch}").shuffle(order)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            parts = self.batch_size // self.micro_batch_size
            step = _micro_batches(order[start : start + self.batch_size], self.weights, parts)
            yield from step[self.rank :: self.num_replicas]


class PassSampler(DistributedSampler[MicroBatch]):
    """One pass over all records for evaluation, each exactly once; the whole pass counts as one step.

    Every rank gets the same number of micro-batches: processes that hold one model in shards run it together. Where
    there are fewer records than ranks, each rank gets all of them, which leaves means over the ranks as they are.

    Args:
        weights: one a record.
        micro_batch_size: records a micro-batch, about; they are of like size.
        ranks: how many processes evaluate.
        rank: which of them this is.
    """

    def __init__(self, weights: Sequence[Weight], *, micro_batch_size: int, ranks: int, rank: int) -> None:
        super().__init__(cast("Dataset[Any]", weights), num_replicas=ranks, rank=rank, shuffle=False)
        sharing = ranks if len(weights) >= ranks else 1
        even = math.ceil(len(weights) / (micro_batch_size * sharing)) * sharing
        parts = _micro_batches(range(len(weights)), weights, min(even, len(weights) // sharing * sharing))
        self.micro_batches = parts[rank % sharing :: sharing]

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.micro_batches)


def _micro_batches(indices: Sequence[int], weights: Sequence[Weight], parts: int) -> list[MicroBatch]:
    """Records of like length in `parts` micro-batches whose sizes differ by one at most."""
    by_length = sorted(indices, key=lambda index: weights[index].length)
    total = sum(weights[index].loss for index in indices)
    bounds = [math.ceil(len(by_length) * part / parts) for part in range(parts + 1)]
    return [MicroBatch(tuple(by_length[start:end]), total) for start, end in itertools.pairwise(bounds)]


def collate_prompts(prompts: Sequence[EncodedPrompt], pad_id: int) -> PromptBatch:
    """Left-padded prompts."""
    width = max(len(prompt.prompt_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt.prompt_ids)
        input_ids[row, start:] = torch.tensor(prompt.prompt_ids, dtype=torch.long)
        attention_mask[row, start:] = 1
    return PromptBatch(input_ids, attention_mask, tuple(prompt.prompt for prompt in prompts))


def collate_demonstrations(
    demonstrations: Sequence[EncodedDemonstration], pad_id: int, step_weight: int
) -> DemonstrationBatch:
    """Right-padded demonstrations, the loss on the response's tokens.

    Args:
        demonstrations: one micro-batch.
        pad_id: token id of the padding.
        step_weight: the loss tokens of the whole optimizer step that the micro-batch belongs to.
    """
    input_ids, attention_mask = _with_mask(
        [record.prompt_ids + record.response_ids for record in demonstrations], pad_id
    )
    loss_mask = attention_mask.bool()
    for row, record in enumerate(demonstrations):
        loss_mask[row, : len(record.prompt_ids)] = False
    return DemonstrationBatch(input_ids, attention_mask, loss_mask, step_weight)


def collate_preferences(preferences: Sequence[EncodedPreference], pad_id: int, step_weight: int) -> PreferenceBatch:
    """Right-padded pairs.

    Args:
        preferences: one micro-batch.
        pad_id: token id of the padding.
        step_weight: the pairs of the whole optimizer step that the micro-batch belongs to.
    """
    chosen_ids, chosen_mask = _with_mask([pair.prompt_ids + pair.chosen_ids for pair in preferences], pad_id)
    rejected_ids, rejected_mask = _with_mask([pair.prompt_ids + pair.rejected_ids for pair in preferences], pad_id)
    margin = torch.tensor([pair.margin for pair in preferences], dtype=torch.float32)
    probability = torch.tensor([pair.probability for pair in preferences], dtype=torch.float32)
    return PreferenceBatch(chosen_ids, chosen_mask, rejected_ids, rejected_mask, margin, probability, step_weight)


def _with_mask(sequences: Sequence[tuple[int, ...]], pad_id: int) -> tuple[Tensor, Tensor]:
    return right_padded(sequences, pad_id), right_padding_mask(sequences)
