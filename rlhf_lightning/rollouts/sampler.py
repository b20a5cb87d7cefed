"""Training prompts in their order, and responses sampled from a policy's full distribution by stateless noise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lightning.data.batching import collate_prompts
from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.forward_pass import is_sharded
from rlhf_lightning.models.loading import require_positions
from rlhf_lightning.records import Prompt


class PromptStream:
    """Prompts in an order that is redrawn each time all have been used, a function of the seed alone.

    Args:
        prompts: the pool.
        seed: decides the order.

    Raises:
        DataError: the pool is empty.
    """

    def __init__(self, prompts: Sequence[EncodedPrompt], seed: int) -> None:
        if not prompts:
            raise DataError("There are no prompts to sample from.", fix="check the data group and its length limits")
        self.prompts = tuple(prompts)
        self.seed = seed
        self.taken = 0
        self._lap = -1
        self._lap_order: list[int] = []

    def take(self, count: int) -> list[EncodedPrompt]:
        """The next `count` prompts."""
        batch = [self._at(self.taken + offset) for offset in range(count)]
        self.taken += count
        return batch

    def _at(self, position: int) -> EncodedPrompt:
        lap, place = divmod(position, len(self.prompts))
        return self.prompts[self._order(lap)[place]]

    def _order(self, lap: int) -> list[int]:
        if self._lap != lap:
            self._lap = lap
            self._lap_order = list(range(len(self.prompts)))
            random.Random(f"{self.seed}:{lap}").shuffle(self._lap_order)
        return self._lap_order


GOLDEN_RATIO = -7046029254386353131
"""2^64 divided by the golden ratio, as a signed number: the increment of SplitMix64."""
FIRST_FACTOR = -4658895280553007687
SECOND_FACTOR = -7723592293110705685
"""The multipliers of SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014)."""
BITS = 23
"""Random bits behind a uniform number. With its half bit it fills a float32; with one more the largest would be 1."""


class KeyedSampling(LogitsProcessor):
    """Turns greedy decoding into sampling, and remembers the log-probs of what was sampled.

    Args:
        seed: of all draws.
        draws: the number of each row's draw; a draw's noise is the same wherever it is drawn.
        temperature: divides the logits.
        prompt_length: tokens before the first sampled one.
        device: of the model.
    """

    def __init__(
        self, *, seed: int, draws: Sequence[int], temperature: float, prompt_length: int, device: torch.device
    ) -> None:
        self.temperature = temperature
        self.prompt_length = prompt_length
        numbers = torch.tensor(list(draws), dtype=torch.int64, device=device)
        self.keys = mixed(numbers * GOLDEN_RATIO + mixed(torch.tensor(seed, dtype=torch.int64, device=device)))
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scaled = scores.float() / self.temperature
        position = input_ids.shape[1] - self.prompt_length
        step = torch.tensor(position + 1) * GOLDEN_RATIO  # a tensor, whose product wraps around
        perturbed = scaled + gumbel_noise(mixed(self.keys + step), scaled.shape[1])
        chosen = perturbed.argmax(dim=-1, keepdim=True)
        self._logprobs.append(scaled.gather(1, chosen).squeeze(1) - torch.logsumexp(scaled, dim=-1))
        return perturbed

    @property
    def logprobs(self) -> Tensor:
        """(batch, R) float32, of each sampled token under the distribution that it was sampled from."""
        return torch.stack(self._logprobs, dim=1)


def gumbel_noise(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel variables.

    Args:
        keys: (batch,) int64; a row is a function of its key.
        count: variables a row.

    Returns:
        (batch, count) float32.
    """
    counters = torch.arange(1, count + 1, device=keys.device) * GOLDEN_RATIO
    bits = _shifted(mixed(keys[:, None] + counters), 64 - BITS)
    uniform = (bits.float() + 0.5) * 2.0**-BITS
    return -torch.log(-torch.log1p(-uniform))


def mixed(state: Tensor) -> Tensor:
    """SplitMix64's finalizer: int64 numbers in, as many that look random out."""
    state = (state ^ _shifted(state, 30)) * FIRST_FACTOR
    state = (state ^ _shifted(state, 27)) * SECOND_FACTOR
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own keeps the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


@dataclass(frozen=True, slots=True)
class SampledResponse:
    """One response, as tokens and as text.

    Attributes:
        response_ids: the sampled tokens up to and including the first stop token; never decoded and re-tokenized.
        text: without special tokens.
        finished: whether the policy ended the response itself.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Samples:
    """A batch of responses as tensors, and each as a response.

    Attributes:
        sequences: (batch, P + R) left-padded prompts, right-padded responses.
        attention_mask: (batch, P + R), 1 on real tokens.
        response_mask: (batch, R) bool, True up to and including the first stop token.
        logprobs: (batch, R), of the responses' tokens under the distribution they were sampled from; 0 on padding.
    """

    sequences: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    logprobs: Tensor
    responses: tuple[SampledResponse, ...]

    @property
    def response_ids(self) -> Tensor:
        """(batch, R) the responses' tokens, padded."""
        return self.sequences[:, -self.response_mask.shape[1] :]


class Sampler:
    """Samples responses with `temperature` and nothing else: no top-k, no top-p, no penalties.

    Whatever a model's own generation config says (many hub models set top-k or a repetition penalty) is set aside
    while sampling: the log-probs that PPO compares are those of the distribution that was sampled.

    Args:
        model: the policy, on any device.
        tokenizer: decodes the responses.
        temperature: divides the logits.
        max_new_tokens: after which a response counts as unfinished.
        seed: decides, with the number of a draw, what is sampled.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.seed = seed
        self.max_new_tokens = max_new_tokens
        self.stop_ids = stop_tokens(model, tokenizer)
        self.pad_id = tokenizer.pad_token_id
        self._generate: Any = model.generate
        self._config = GenerationConfig(
            do_sample=False,  # the noise in `KeyedSampling` is what samples
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=list(self.stop_ids),
        )

    def sample(self, prompts: Sequence[EncodedPrompt], draws: Sequence[int]) -> Samples:
        """One response per prompt.

        Args:
            draws: the number of each draw: the same number, prompt and policy give the same response.

        Raises:
            ModelError: prompt and response together are longer than the model reads.
        """
        batch = collate_prompts(prompts, self.pad_id).to(self.model.device)
        prompt_length = batch.input_ids.shape[1]
        require_positions(
            self.model, prompt_length + self.max_new_tokens, "data.max_prompt_length and rollout.max_new_tokens"
        )
        chance = KeyedSampling(
            seed=self.seed,
            draws=draws,
            temperature=self.temperature,
            prompt_length=prompt_length,
            device=self.model.device,
        )
        with torch.no_grad(), own_generation_config(self.model, self._config):
            sequences = self._generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                logits_processor=LogitsProcessorList([chance]),
                synced_gpus=is_sharded(self.model),  # then no process stops before the others have finished
            )
        response_ids = sequences[:, prompt_length:]
        lengths, finished = response_lengths(response_ids, self.stop_ids)
        response_mask = torch.arange(response_ids.shape[1], device=response_ids.device) < lengths[:, None]
        sequences = torch.cat([batch.input_ids, torch.where(response_mask, response_ids, self.pad_id)], dim=1)
        return Samples(
            sequences=sequences,
            attention_mask=torch.cat([batch.attention_mask, response_mask.long()], dim=1),
            response_mask=response_mask,
            # On a GPU, or beside other processes, generate() may step more often than it keeps.
            logprobs=torch.where(response_mask, chance.logprobs[:, : response_ids.shape[1]], 0.0),
            responses=self._sampled_responses(prompts, response_ids, lengths, finished),
        )

    def sample_in_chunks(
        self, prompts: Sequence[EncodedPrompt], draws: Sequence[int], chunk_size: int
    ) -> Iterator[Samples]:
        """`sample` on at most `chunk_size` prompts at a time."""
        for start in range(0, len(prompts), chunk_size):
            chunk = slice(start, start + chunk_size)
            yield self.sample(prompts[chunk], draws[chunk])

    def sample_groups(
        self,
        prompts: Sequence[EncodedPrompt],
        size: int,
        *,
        first_draw: int,
        chunk_size: int,
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> list[list[SampledResponse]]:
        """`size` responses to each prompt.

        Args:
            first_draw: number of the first draw; the others follow.
            chunk_size: responses that are sampled together.
            track: shows a progress bar for the starts of the chunks.
        """
        repeated = [prompt for prompt in prompts for _ in range(size)]
        draws = range(first_draw, first_draw + len(repeated))
        responses: list[SampledResponse] = []
        for start in track(range(0, len(repeated), chunk_size)):
            chunk = slice(start, start + chunk_size)
            responses.extend(self.sample(repeated[chunk], draws[chunk]).responses)
        return [responses[start : start + size] for start in range(0, len(responses), size)]

    def _sampled_responses(
        self, prompts: Sequence[EncodedPrompt], response_ids: Tensor, lengths: Tensor, finished: Tensor
    ) -> tuple[SampledResponse, ...]:
        rows = [tuple(ids[:length]) for ids, length in zip(response_ids.tolist(), lengths.tolist(), strict=True)]
        texts = self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
        return tuple(
            SampledResponse(prompt.prompt, prompt.prompt_ids, row, text, done)
            for prompt, row, text, done in zip(prompts, rows, texts, finished.tolist(), strict=True)
        )


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokenizer's EOS and every EOS that the model's generation config names (chat models have several)."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(token for token in [tokenizer.eos_token_id, *named] if token is not None))


def response_lengths(responses: Tensor, stop_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Length of each response.

    Args:
        responses: (batch, R) token ids as generated.

    Returns:
        (batch,) number of tokens up to and including the first stop token (R without one), and (batch,) bool whether
        there was one.
    """
    stops = torch.isin(responses, torch.tensor(list(stop_ids), device=responses.device))
    finished = stops.any(dim=1)
    first = stops.int().argmax(dim=1)
    return torch.where(finished, first + 1, responses.shape[1]), finished


@contextmanager
def own_generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Generate with `config` alone: generate() would fill what it leaves open from the model's own."""
    original = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = original
