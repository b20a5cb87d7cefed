"""A batch of rollouts with all that the PPO update needs, and the buffer that is read in reshuffled minibatches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import IterableDataset

from rlhf_lightning.batches import TensorRecord
from rlhf_lightning.distributed import rank, world_size


@dataclass(frozen=True, eq=False)
class Rollout(TensorRecord):
    """B sequences of at most P prompt and R response tokens.

    Attributes:
        sequences: (B, P + R) left-padded prompts, right-padded responses.
        attention_mask: (B, P + R), 1 on real tokens.
        response_mask: (B, R) bool, True on response tokens, the stop token included.
        sampled_logprobs: (B, R) of the sampled tokens, as the sampler drew them.
        logprobs: (B, R) of the same tokens, as the forward pass of training gives them: what ratios are taken to.
        reference_logprobs: (B, R) under the frozen reference.
        kl: (B, R), the estimate of the per-token KL to the reference that is paid for.
        values: (B, R), the critic's estimate before each token.
        raw_scores: (B,), what the reward said of the whole response.
        scores: (B,), the same after shaping and the missing-EOS penalty.
        finished: (B,) bool, whether the response ended itself.
        rewards: (B, R), per-token reward: KL penalty, plus the score at the end.
        advantages: (B, R).
        returns: (B, R), what the critic should have said.
        trunk_states: (B, P + R, hidden), what reaches the first trained block, where the blocks below are frozen and
            computed once. They take B * (P + R) * hidden * 4 bytes in float32, in memory that the rollouts live in
            until the next ones; None elsewhere.
    """

    sequences: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    sampled_logprobs: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    kl: Tensor
    values: Tensor
    raw_scores: Tensor
    scores: Tensor
    finished: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    trunk_states: Tensor | None = None

    def __len__(self) -> int:
        return self.sequences.shape[0]

    @property
    def response_length(self) -> int:
        """R."""
        return self.response_mask.shape[1]

    def select(self, rows: Tensor) -> Rollout:
        """Some sequences, cut to the longest prompt and response among them (padding changes nothing but time)."""
        chosen = replace(self, **{name: tensor[rows] for name, tensor in self._tensors().items()})
        return chosen._trimmed()

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def _trimmed(self) -> Rollout:
        width = self.sequences.shape[1]
        prompt_width = width - self.response_length
        longest_prompt = int(self.attention_mask[:, :prompt_width].sum(dim=1).max())
        longest_response = max(1, int(self.response_mask.sum(dim=1).max()))
        whole = slice(prompt_width - longest_prompt, prompt_width + longest_response)
        cut = {
            name: tensor[:, whole] if tensor.shape[1] == width else tensor[:, :longest_response]
            for name, tensor in self._tensors().items()
            if tensor.dim() > 1
        }
        return replace(self, **cut)


def concatenate(rollouts: Sequence[Rollout], pad_id: int) -> Rollout:
    """One rollout batch from several, padded to common lengths.

    Args:
        rollouts: batches of any lengths.
        pad_id: fills the sequences; everything else is filled with 0.
    """
    prompt_width = max(rollout.sequences.shape[1] - rollout.response_length for rollout in rollouts)
    response_width = max(rollout.response_length for rollout in rollouts)
    parts = [_padded(rollout, prompt_width, response_width, pad_id) for rollout in rollouts]
    return replace(
        parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._tensors()}
    )


def _padded(rollout: Rollout, prompt_width: int, response_width: int, pad_id: int) -> Rollout:
    right = response_width - rollout.response_length
    left = prompt_width - (rollout.sequences.shape[1] - rollout.response_length)
    padded = {}
    for name, tensor in rollout._tensors().items():
        if tensor.dim() == 1:
            continue
        on_left = left if name in ("sequences", "attention_mask", "trunk_states") else 0
        beyond_time = (0, 0) * (tensor.dim() - 2)
        value = pad_id if name == "sequences" else 0
        padded[name] = functional.pad(tensor, (*beyond_time, on_left, right), value=value)
    return replace(rollout, **padded)


@dataclass(frozen=True, eq=False)
class Minibatch(TensorRecord):
    """A micro-batch of rollouts.

    Attributes:
        rollout: what goes through the model together.
        step_weight: the response tokens of the whole optimizer step that it belongs to. The step's loss is the sum of
            token losses over its micro-batches divided by this, whatever their number and size.
    """

    rollout: Rollout
    step_weight: int

    def to(self, device: torch.device | str) -> Minibatch:
        return Minibatch(self.rollout.to(device), self.step_weight)


class RolloutBuffer(IterableDataset[Minibatch]):
    """Iterates over the rollouts it holds: `epochs` passes, each in an order of its own, minibatch by minibatch.

    Every process holds all rollouts of an iteration, and gets its share of each minibatch's micro-batches.

    Its length is known before it is filled, since Lightning asks for it first: an iterable without a length is
    pre-fetched *before* the callback that fills it.

    Args:
        batch_size: rollouts an iteration.
        epochs: passes over them.
        minibatches: optimizer steps a pass.
        micro_batch_size: rollouts a forward pass of a process, at most: as many as its share of a minibatch.
        seed: decides the orders, with the iteration.
    """

    def __init__(self, *, batch_size: int, epochs: int, minibatches: int, micro_batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.epochs = epochs
        self.minibatch_size = batch_size // minibatches
        self.micro_batch_size = min(micro_batch_size, self.minibatch_size // world_size())
        self.seed = seed
        self._rollout: Rollout | None = None
        self._iteration = -1

    def fill(self, rollout: Rollout, iteration: int) -> None:
        """Put the next iteration's rollouts in the place of the last one's."""
        assert len(rollout) == self.batch_size
        self._rollout = rollout
        self._iteration = iteration

    @property
    def micro_batches_per_step(self) -> int:
        """Lightning's `accumulate_grad_batches` for one optimizer step."""
        return self.minibatch_size // self.micro_batch_size // world_size()

    def __len__(self) -> int:
        return self.epochs * (self.batch_size // self.minibatch_size) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[Minibatch]:
        assert self._rollout is not None, "the rollout buffer is read before the callback filled it"
        rollout = self._rollout
        for epoch in range(self.epochs):
            order = list(range(self.batch_size))
            random.Random(f"{self.seed}:{self._iteration}:{epoch}").shuffle(order)
            for start in range(0, self.batch_size, self.minibatch_size):
                yield from self._micro_batches(rollout, torch.tensor(order[start : start + self.minibatch_size]))

    def _micro_batches(self, rollout: Rollout, rows: torch.Tensor) -> Iterator[Minibatch]:
        rows = rows.to(rollout.response_mask.device)
        step_weight = int(rollout.response_mask[rows].sum())
        for part in rows.split(self.micro_batch_size)[rank() :: world_size()]:
            yield Minibatch(rollout.select(part), step_weight)
