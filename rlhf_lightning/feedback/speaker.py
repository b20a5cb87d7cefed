"""Text generation from a model: conversations (or plain text) in, the next assistant turn of each out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from rlhf_lightning.data.encoding import EncodedPrompt, Encoder
from rlhf_lightning.models.loading import readable_tokens, require_positions
from rlhf_lightning.records import Prompt, PromptText
from rlhf_lightning.rollouts.sampler import Sampler

NEXT_SPEAKER = "\n\nHuman:"
"""End of the turn of a model without a chat template, which would continue with both sides of the transcript."""


@dataclass(frozen=True, slots=True)
class Said:
    """One turn.

    Attributes:
        finished: whether the model ended it itself, rather than running into the length limit.
    """

    text: str
    finished: bool


class Speaker(Protocol):
    """Generates replies, critiques and revisions."""

    def say(self, asked: Sequence[PromptText], draws: Sequence[int]) -> list[Said]:
        """Sample one turn per conversation or plain text; the same draw of the same prompt gives the same turn."""
        ...


class SampledSpeaker:
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

    def say(self, asked: Sequence[PromptText], draws: Sequence[int]) -> list[Said]:
        if not asked:
            return []
        prompts = [Prompt(text) for text in asked]
        encoded = [EncodedPrompt(prompt, self._ids(prompt)) for prompt in prompts]
        return [self._turn(done.reply, done.finished) for done in self._sampler.sample(encoded, draws).completions]

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = self._encoder.prompt_ids(prompt)
        if self._longest is None or len(ids) <= self._longest:
            return tuple(ids)
        self.truncated += 1
        return tuple(ids[len(ids) - self._longest :])

    def _turn(self, text: str, finished: bool) -> Said:
        if not self._is_plain:
            return Said(text, finished)
        own, let_speak = own_turn(text)
        return Said(own, finished or let_speak)


def own_turn(text: str) -> tuple[str, bool]:
    """The text up to the next speaker's turn, and True if that turn begins."""
    own, next_speaker, _ = text.partition(NEXT_SPEAKER)
    return own.strip(), bool(next_speaker)
