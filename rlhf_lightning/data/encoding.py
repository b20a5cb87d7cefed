"""From records to token ids, with an exact boundary between prompt and response.

A plain prompt is encoded as it stands, and a conversation through the tokenizer's chat template. Prompt and response
are always encoded apart, so no token spans the boundary, and a response ends with exactly one end-of-sequence token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.formats import DEFAULT_CHAT_TEMPLATE
from rlhf_lightning.data.settings import Records
from rlhf_lightning.errors import DataError, ModelError
from rlhf_lightning.records import Demonstration, Preference, Prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")

TOGETHER = 1000
"""Records that one call of the tokenizer encodes."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt and its token ids."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedDemonstration:
    """A demonstration's token ids; the response's include its end-of-sequence token."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedPreference:
    """A preference's token ids, its margin (zero where it has none) and its soft label (1 where it has none)."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    margin: float
    probability: float = 1.0


@dataclass(slots=True)
class EncodingReport:
    """Counts of the encoded, truncated and dropped records.

    Attributes:
        records: how many were given.
        truncated_prompts: records whose prompt was cut from the left.
        truncated_responses: records of which at least one response was cut on the right.
        dropped: records left out because a prompt or response was too long.
        indistinct: preferences left out because both responses have the same token ids, so there is nothing to compare.
    """

    records: int = 0
    truncated_prompts: int = 0
    truncated_responses: int = 0
    dropped: int = 0
    indistinct: int = 0

    @property
    def kept(self) -> int:
        return self.records - self.dropped - self.indistinct

    def summary(self) -> str:
        """The counts as one line."""
        return (
            f"{self.kept} of {self.records} records kept: {self.truncated_prompts} prompts and "
            f"{self.truncated_responses} records' responses truncated, {self.dropped} over-long records dropped, "
            f"{self.indistinct} pairs left out because their responses are the same tokens"
        )


class Encoder:
    """Encodes records for one tokenizer.

    What is too long is cut or dropped by `lengths.on_long_record`. A prompt is cut from the left, where the oldest
    turns stand, and keeps its beginning-of-sequence token. A response is cut on the right and then has no
    end-of-sequence token: where it would end was not seen, and the model is not taught that it ends there.

    Args:
        tokenizer: with an end-of-sequence token. Where it has no chat template and a conversation is encoded, it is
            given `DEFAULT_CHAT_TEMPLATE`, so that the template is saved with it.
        lengths: the limits in tokens; a response's end-of-sequence token counts.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lengths: Records) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer has no end-of-sequence token, so a response could never end.",
                where=str(tokenizer.name_or_path) or type(tokenizer).__name__,
                fix="set eos_token in the tokenizer's directory",
            )
        self.tokenizer = tokenizer
        self.lengths = lengths
        self.eos_id = cast(int, tokenizer.eos_token_id)
        self._eos_text = cast(str, tokenizer.eos_token)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else cast(int, tokenizer.pad_token_id)
        self._bos_id = _prepended_bos(tokenizer)

    def prompts(self, records: Iterable[Prompt]) -> tuple[list[EncodedPrompt], EncodingReport]:
        """Prompts ready for generation, and the counts."""
        report = EncodingReport()
        encoded = []
        for prompt, (prompt_ids,) in self._fitted(records, lambda prompt: (prompt, ()), report):
            encoded.append(EncodedPrompt(prompt, prompt_ids))
        return encoded, report

    def demonstrations(self, records: Iterable[Demonstration]) -> tuple[list[EncodedDemonstration], EncodingReport]:
        """Demonstrations ready for collation, and the counts."""
        report = EncodingReport()
        encoded = []
        for _, (prompt_ids, response_ids) in self._fitted(
            records, lambda record: (record.prompt, (record.response,)), report
        ):
            encoded.append(EncodedDemonstration(prompt_ids, response_ids))
        return encoded, report

    def preferences(self, records: Iterable[Preference]) -> tuple[list[EncodedPreference], EncodingReport]:
        """Preferences ready for collation, and the counts."""
        report = EncodingReport()
        encoded = []
        for record, (prompt_ids, chosen_ids, rejected_ids) in self._fitted(
            records, lambda record: (record.prompt, (record.chosen, record.rejected)), report
        ):
            if chosen_ids == rejected_ids:
                report.indistinct += 1
                continue
            probability = 1.0 if record.probability is None else record.probability
            encoded.append(EncodedPreference(prompt_ids, chosen_ids, rejected_ids, record.margin or 0.0, probability))
        return encoded, report

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids, not truncated; a conversation ends with the generation prompt.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        return self.whole_ids(prompt)[0]

    def whole_ids(self, prompt: Prompt, *responses: str) -> list[list[int]]:
        """The prompt's token ids and those of each response, not truncated.

        A response ends with the only end-of-sequence token among its ids. For a conversation these are the tokens that
        the chat template writes after the generation prompt, its end-of-turn tokens included; white space after the end
        of the sequence is not. Some templates render the prompt differently once it is answered; there the response's
        own text is encoded.
        """
        return self._whole([(prompt, responses)])[0]

    def _fitted(
        self, records: Iterable[T], parts: Callable[[T], tuple[Prompt, Sequence[str]]], report: EncodingReport
    ) -> Iterator[tuple[T, tuple[tuple[int, ...], ...]]]:
        """Records with the ids of their prompt and responses, within the limits; without those that are dropped."""
        waiting = iter(records)
        while batch := list(islice(waiting, TOGETHER)):
            of_batch = [parts(record) for record in batch]
            for record, (prompt, _), ids in zip(batch, of_batch, self._whole(of_batch), strict=True):
                report.records += 1
                fitted = self._fit(prompt, ids, report)
                if fitted is not None:
                    yield record, fitted

    def _whole(self, records: Sequence[tuple[Prompt, Sequence[str]]]) -> list[list[list[int]]]:
        """The ids of each prompt and of its responses, not truncated; the tokenizer is called once for all."""
        texts = [self._texts(prompt, responses) for prompt, responses in records]
        flat = [text for of_record in texts for text in of_record]
        encoded = iter(
            cast(list[list[int]], self.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
        )
        whole = []
        for (prompt, _), of_record in zip(records, texts, strict=True):
            prompt_ids, *responses = islice(encoded, len(of_record))
            if isinstance(prompt.text, str) and self._bos_id is not None and prompt_ids[:1] != [self._bos_id]:
                prompt_ids = [self._bos_id, *prompt_ids]
            ended = ([*(token for token in response if token != self.eos_id), self.eos_id] for response in responses)
            whole.append([prompt_ids, *ended])
        return whole

    def _texts(self, prompt: Prompt, responses: Sequence[str]) -> list[str]:
        """The prompt as a model reads it, and what it is to write of each response."""
        if isinstance(prompt.text, str):
            return [prompt.text, *responses]
        opening = self._rendered(prompt, None)
        texts = [opening]
        for response in responses:
            answered, text = self._rendered(prompt, response), response
            if answered.startswith(opening):
                text = answered[len(opening) :]
                if text.rstrip().endswith(self._eos_text):
                    text = text.rstrip()
            texts.append(text)
        return texts

    def _fit(
        self, prompt: Prompt, ids: Sequence[list[int]], report: EncodingReport
    ) -> tuple[tuple[int, ...], ...] | None:
        """The prompt's and the responses' ids within the limits, or None where the record is dropped."""
        prompt_limit, response_limit = self.lengths.max_prompt_length, self.lengths.max_response_length
        prompt_ids, *response_ids = ids
        if not prompt_ids:
            raise DataError(
                "The tokenizer makes no token of a prompt, so there is nothing to continue.",
                where=f"the prompt {prompt.plain()[:60]!r}",
                fix="use a tokenizer that covers the text, or one with an unknown token",
            )
        long_prompt = len(prompt_ids) > prompt_limit
        long_response = any(len(response) > response_limit for response in response_ids)
        if (long_prompt or long_response) and self.lengths.on_long_record == "drop":
            report.dropped += 1
            return None
        report.truncated_prompts += long_prompt
        report.truncated_responses += long_response
        return tuple(self._left_truncated(prompt_ids, prompt_limit)), *(
            tuple(ids[:response_limit]) for ids in response_ids
        )

    def _left_truncated(self, ids: list[int], limit: int) -> list[int]:
        if len(ids) <= limit:
            return ids
        if limit > 1 and ids[0] == self.tokenizer.bos_token_id:
            return [ids[0], *ids[len(ids) - limit + 1 :]]
        return ids[len(ids) - limit :]

    def _rendered(self, prompt: Prompt, response: str | None) -> str:
        assert not isinstance(prompt.text, str)
        if self.tokenizer.chat_template is None:
            logger.warning("The tokenizer has no chat template: conversations are written as Human/Assistant turns.")
            # With a beginning-of-sequence token where the tokenizer puts one before plain text.
            opening = "" if self._bos_id is None else "{{ bos_token }}"
            self.tokenizer.chat_template = opening + DEFAULT_CHAT_TEMPLATE
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt.text]
        if response is not None:
            turns.append({"role": "assistant", "content": response})
        try:
            return cast(
                str, self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=response is None)
            )
        except TemplateError as error:
            raise DataError(
                f"The tokenizer's chat template refuses a conversation: {error}.",
                where=f"the conversation of the turns {', '.join(turn.role for turn in prompt.text)} that begins "
                f"{prompt.text[0].content[:60]!r}",
                fix="change the conversation's turns (some templates know no system turn, or want the speakers to "
                "alternate), or use a tokenizer with another chat template",
            ) from error


def _prepended_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The beginning-of-sequence token, where the tokenizer puts one before plain text."""
    bos = cast("int | None", tokenizer.bos_token_id)
    ids = cast(list[int], tokenizer("a", verbose=False)["input_ids"])
    return bos if bos is not None and ids[:1] == [bos] else None
