"""Questions to a judge and its answers, independent of the model behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rlhf_lightning.records import Conversation


@dataclass(frozen=True, slots=True)
class Question:
    """A question with two options.

    Attributes:
        turns: what the judge reads; the last turn is the user's, and asks.
        options: the two words that it may answer.
        opening: what its answer begins with, before the option; empty: the option at once.
        reasons: whether it reasons first. Its answer is then its reasoning, `conclusion`, and the option.
        conclusion: what leads from the reasoning to the option.
        vote: tells apart several answers to the same question, whose reasoning is sampled.
    """

    turns: Conversation
    options: tuple[str, str]
    opening: str = ""
    reasons: bool = False
    conclusion: str = ""
    vote: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of a judge.

    Attributes:
        mass: the probability of each option as the next words; what is left is that of everything else. Of a judge
            that gives text alone: 1 for the option that it named, (0, 0) where it named none.
        text: its reasoning, or all that it said, where it said something; else empty.
        input_tokens, output_tokens: read and written for this answer; 0 where it came from a cache.
        cached: whether it came from a cache.
    """

    mass: tuple[float, float]
    text: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached: bool = False

    @property
    def total_mass(self) -> float:
        """The probability that the judge answers one of the options at all."""
        return self.mass[0] + self.mass[1]


class JudgeModel(Protocol):
    """A model that answers questions."""

    name: str
    """As reports call it."""

    def answers(self, questions: list[Question]) -> list[Answer]:
        """An answer to each question, in order."""
        ...
