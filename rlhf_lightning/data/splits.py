"""Train and held-out split by a hash of the prompt, so that no prompt is on both sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Protocol, TypeVar

from rlhf_lightning.records import Prompt


class HasPrompt(Protocol):
    @property
    def prompt(self) -> Prompt: ...


Record = TypeVar("Record", bound=HasPrompt)


def is_held_out(prompt: Prompt, fraction: float, purpose: str = "held_out") -> bool:
    """True if a prompt is held out.

    The answer depends on nothing but the arguments: not on the order of the records, the other records, the seed or
    the process. A larger fraction holds out the same prompts and more.

    Args:
        prompt: the prompt, plain or conversational.
        fraction: the expected share of the distinct prompts that is held out.
        purpose: splits for different purposes are independent of each other.
    """
    digest = hashlib.sha256(f"{purpose}\n{_identity(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_by_prompt(
    records: Iterable[Record], fraction: float, purpose: str = "held_out"
) -> tuple[list[Record], list[Record]]:
    """The records for training and the held-out ones, each in the order given."""
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        sides[is_held_out(record.prompt, fraction, purpose)].append(record)
    return sides


def _identity(prompt: Prompt) -> str:
    """The same for a plain prompt and for the conversation of that one user turn."""
    if isinstance(prompt.text, str):
        return json.dumps([["user", prompt.text]])
    return json.dumps([[turn.role, turn.content] for turn in prompt.text])
