"""Local causal LMs that write and judge: the next assistant turn of a conversation, and option probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.data.batching import collate_prompts
from rlhf_lightning.data.encoding import EncodedPrompt, Encoder
from rlhf_lightning.errors import ModelError
from rlhf_lightning.feedback.judge_model import Answer, Question
from rlhf_lightning.models.forward_pass import position_arguments
from rlhf_lightning.models.loading import readable_tokens, require_positions
from rlhf_lightning.records import Prompt, PromptText
from rlhf_lightning.rollouts.sampler import Sampler

NEXT_SPEAKER = "\n\nHuman:"
"""End of the turn of a model without a chat template, which would continue with both sides of the transcript."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One turn.

    Attributes:
        finished: whether the model ended it itself, rather than running into the length limit.
    """

    text: str
    finished: bool


class TextGenerator(Protocol):
    """Generates responses, critiques and revisions."""

    def generate(self, asked: Sequence[PromptText], draws: Sequence[int]) -> list[Generation]:
        """Sample one turn per conversation or plain text; the same draw of the same prompt gives the same turn."""
        ...


class SamplingGenerator:
    """A causal LM, sampled from its whole distribution.

    Args:
        model: in eval mode, on its device.
        encoder: of its tokenizer.
        temperature: divides the logits.
        max_new_tokens: of a turn.
        seed: decides, with a draw's number, what is said.
        is_plain: it has no chat template of its own, and its turn ends where it lets the other one speak.

    Raises:
        ModelError: a turn may be longer than the model reads.

    Attributes:
        truncated: conversations that were cut from the left, since the model does not read so many tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        is_plain: bool,
    ) -> None:
        self.truncated = 0
        self._encoder = encoder
        self._is_plain = is_plain
        self._sampler = Sampler(
            model, encoder.tokenizer, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
        )
        require_positions(model, max_new_tokens + 1, "critique_revision.max_new_tokens")
        limit = readable_tokens(model)
        self._longest = None if limit is None else limit - max_new_tokens

    def generate(self, asked: Sequence[PromptText], draws: Sequence[int]) -> list[Generation]:
        if not asked:
            return []
        prompts = [Prompt(text) for text in asked]
        encoded = [EncodedPrompt(prompt, self._ids(prompt)) for prompt in prompts]
        return [self._turn(done.text, done.finished) for done in self._sampler.sample(encoded, draws).responses]

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = self._encoder.prompt_ids(prompt)
        if self._longest is None or len(ids) <= self._longest:
            return tuple(ids)
        self.truncated += 1
        return tuple(ids[len(ids) - self._longest :])

    def _turn(self, text: str, finished: bool) -> Generation:
        if not self._is_plain:
            return Generation(text, finished)
        own, let_speak = own_turn(text)
        return Generation(own, finished or let_speak)


def own_turn(text: str) -> tuple[str, bool]:
    """The text up to the next speaker's turn, and True if that turn begins."""
    own, next_speaker, _ = text.partition(NEXT_SPEAKER)
    return own.strip(), bool(next_speaker)


LEADING = 16
"""Characters before an option that its tokens may depend on."""


class LocalJudgeModel:
    """Reads options as single next tokens; with reasoning, after what the model has sampled at temperature 1.

    Args:
        model: a causal LM in eval mode, on its device.
        encoder: of its tokenizer.
        name: as reports call it.
        batch_size: questions a forward pass.
        max_reasoning_tokens: after which reasoning is cut off.
        seed: of the reasoning.
        is_plain: it has no chat template of its own: a turn of the transcript begins after a space, and ends where the
            next one begins.

    Attributes:
        truncated: questions that were cut from the left, since the model does not read so many tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        *,
        name: str,
        batch_size: int,
        max_reasoning_tokens: int,
        seed: int,
        is_plain: bool,
    ) -> None:
        self.name = name
        self.truncated = 0
        self._model = model
        self._encoder = encoder
        self._batch_size = batch_size
        self._seed = seed
        self._is_plain = is_plain
        self._max_reasoning_tokens = max_reasoning_tokens
        self._option_ids: dict[tuple[tuple[str, str], str], tuple[list[int], list[int]]] = {}

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer to each question, in order; questions of like length are read together."""
        asked = [self._prompt_ids(question) for question in questions]
        reasoning = self._reasoning(questions, asked)
        whole = [
            [*prompt, *self._ids(self._said_so_far(question, text))]
            for question, prompt, text in zip(questions, asked, reasoning, strict=True)
        ]
        ids = [self._last(one, 0) for one in whole]
        self.truncated += sum(
            len(read) < len(one) or (question.reasons and len(self._to_reason(prompt)) < len(prompt))
            for read, one, question, prompt in zip(ids, whole, questions, asked, strict=True)
        )
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            probabilities = self._next_token([ids[row] for row in rows])
            for row, distribution in zip(rows, probabilities, strict=True):
                question = questions[row]
                first, second = self._options(question.options, self._said_so_far(question, reasoning[row]))
                mass = (float(distribution[first].sum()), float(distribution[second].sum()))
                written = len(self._ids(reasoning[row])) + 1
                found[row] = Answer(mass, reasoning[row], input_tokens=len(ids[row]), output_tokens=written)
        return [found[index] for index in range(len(questions))]

    def _said_so_far(self, question: Question, reasoning: str) -> str:
        """The judge's turn up to the option."""
        text = f"{reasoning}{question.conclusion}" if reasoning else question.opening
        return f" {text}" if text and self._is_plain else text

    def _prompt_ids(self, question: Question) -> list[int]:
        return self._encoder.prompt_ids(Prompt(question.turns))

    def _reasoning(self, questions: Sequence[Question], asked: Sequence[list[int]]) -> list[str]:
        """Sample the model's reasoning before its answer; empty where the question does not ask for any."""
        texts = [""] * len(questions)
        rows = [index for index, question in enumerate(questions) if question.reasons]
        if not rows:
            return texts
        sampler = Sampler(
            self._model,
            self._encoder.tokenizer,
            temperature=1.0,
            max_new_tokens=self._max_reasoning_tokens,
            seed=self._seed,
        )
        prompts = [EncodedPrompt(Prompt(questions[row].turns), tuple(self._to_reason(asked[row]))) for row in rows]
        for start in range(0, len(rows), self._batch_size):
            chunk = slice(start, start + self._batch_size)
            draws = [_draw(questions[row]) for row in rows[chunk]]
            for row, said in zip(rows[chunk], sampler.sample(prompts[chunk], draws).responses, strict=True):
                texts[row] = self._own_turn(said.text)
        return texts

    def _own_turn(self, text: str) -> str:
        return own_turn(text)[0] if self._is_plain else text

    @torch.no_grad()
    def _next_token(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(batch, vocabulary) float32 probabilities of the token that follows each sequence."""
        prompts = [EncodedPrompt(Prompt(""), tuple(row)) for row in ids]
        batch = collate_prompts(prompts, self._encoder.pad_id).to(self._model.device)
        logits = self._model(
            input_ids=batch.input_ids,
            **position_arguments(self._model, batch.attention_mask),
            logits_to_keep=1,
            use_cache=False,
        ).logits
        return torch.softmax(logits[:, -1].float(), dim=-1).cpu()

    def _options(self, options: tuple[str, str], said: str) -> tuple[list[int], list[int]]:
        """The tokens that each option may begin with after what the judge has said.

        Raises:
            ModelError: the tokenizer cannot tell the options apart.
        """
        end = said[-LEADING:]
        if (options, end) not in self._option_ids:
            first, second = (self._beginnings(option, end) for option in options)
            if not first - second or not second - first:
                raise ModelError(
                    f"The judge's tokenizer cannot tell the answers {options[0]!r} and {options[1]!r} apart.",
                    where=self.name,
                    fix="choose a judge whose tokenizer has these words",
                )
            self._option_ids[options, end] = (sorted(first - second), sorted(second - first))
        return self._option_ids[options, end]

    def _beginnings(self, option: str, end: str) -> set[int]:
        unknown = self._encoder.tokenizer.unk_token_id
        spellings = {text for word in {option, option.capitalize()} for text in (word, f" {word}")}
        # A space of its own says nothing about what comes after it.
        blank = {self._ids(" ")[0]} if self._ids(" ") else set()
        alone = {ids[0] for ids in map(self._ids, spellings) if ids}
        return (alone | self._after(end, spellings)) - {unknown} - blank

    def _after(self, end: str, spellings: set[str]) -> set[int]:
        """The first tokens of words where something stands before them: many tokenizers put a space before a text."""
        before = self._ids(end)
        encoded = [self._ids(f"{end}{text}") for text in spellings] if before else []
        return {ids[len(before)] for ids in encoded if ids[: len(before)] == before and len(ids) > len(before)}

    def _to_reason(self, prompt: list[int]) -> list[int]:
        return self._last(prompt, self._max_reasoning_tokens)

    def _last(self, ids: list[int], room: int) -> list[int]:
        """The last tokens that fit the model's context with room for that many new ones."""
        limit = readable_tokens(self._model)
        return ids if limit is None or len(ids) <= limit - room else ids[len(ids) - (limit - room) :]

    def _ids(self, text: str) -> list[int]:
        encoded: list[int] = self._encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return encoded


def _draw(question: Question) -> int:
    """Draw number of a question's reasoning: each vote's sample is independent of the rest of the batch."""
    content = "\0".join((*(turn.content for turn in question.turns), str(question.vote)))
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big")
