"""Text-level records: prompts, responses and preferences before tokenization.

A prompt is plain text, or a conversation that ends with a user turn; a response is always the text of the one
assistant turn that answers it. How a file spells these is the business of `data.formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Conversation: TypeAlias = tuple[Message, ...]
PromptText: TypeAlias = str | Conversation


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt of a policy.

    Attributes:
        text: plain text, or the turns up to and including the last user turn.
    """

    text: PromptText

    @property
    def last_turn(self) -> str:
        """The text of the last turn (all of it when the prompt is plain text)."""
        return self.text if isinstance(self.text, str) else self.text[-1].content

    def plain(self) -> str:
        """The prompt as readable text: a single user turn as it is, a longer conversation one turn a line."""
        if isinstance(self.text, str) or len(self.text) == 1:
            return self.last_turn
        return "\n".join(f"{message.role}: {message.content}" for message in self.text)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response to imitate."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Of two responses, the one that was preferred.

    Attributes:
        margin: by how much (any unit; scaled by `reward_model.margin_coef`), or None if not annotated.
        probability: that `chosen` is the better one (a soft label, at least one half), or None where it is taken as
            certain.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """K responses and their ranks.

    Attributes:
        ranks: one a response, the lower the better; equal ranks are a tie.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """Response of a policy, and its reward."""

    prompt: Prompt
    response: str
    reward: float
    finished: bool
    """True if the response ends with a stop token; False if it hit the length limit."""
