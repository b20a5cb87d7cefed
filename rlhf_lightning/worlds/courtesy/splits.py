"""Assignment of prompts to splits. Words are never held out: every word of the world occurs in `train`.

* `ood`: combinations of words that no other split holds, in all their wordings: one eighth of verb x object,
  harm verb x victim, harm verb x inanimate and entity x attribute. The base model has read the *facts* of held-out
  entity x attribute combinations (a fact that was never stated cannot be known), nothing else of this split.
* `train`: three of the four wordings of every other combination.
* `validation` and `iid`: the fourth wording, of every second combination each. So their texts are new, but the same
  combination was seen in other words. Tune on `validation`, report on `iid`.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import Final, Literal

from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Message, Prompt
from rlhf_lightning.worlds.courtesy.grammar import PROMPT_KINDS, PromptMeaning, meanings, prompt_wordings

Split = Literal["train", "validation", "iid", "ood"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "iid", "ood")


def _is_held_out(row: int, column: int) -> bool:
    # A diagonal pattern: every row and every column keeps most of its cells, so no word is held out.
    return (row + 3 * column) % 8 == 0


def _split_of(row: int, column: int, wording: int, wordings: int) -> Split:
    if _is_held_out(row, column):
        return "ood"
    if wording != (row + column) % wordings:
        return "train"
    return "validation" if (row // 2 + column) % 2 else "iid"


@cache
def split_table() -> dict[Split, tuple[tuple[str, PromptMeaning], ...]]:
    """The (text, meaning) of every prompt by split, in a fixed order that mixes the kinds."""
    table: dict[Split, list[tuple[str, PromptMeaning]]] = {split: [] for split in SPLITS}
    for kind in PROMPT_KINDS:
        for row, column, meaning in meanings(kind):
            texts = prompt_wordings(meaning)
            for wording, text in enumerate(texts):
                table[_split_of(row, column, wording, len(texts))].append((text, meaning))
    return {
        split: tuple(sorted(entries, key=lambda entry: sha256(entry[0].encode()).digest()))
        for split, entries in table.items()
    }


def as_prompt(text: str) -> Prompt:
    """A prompt of the world as a conversation of one user turn."""
    return Prompt(text=(Message("user", text),))


def prompts(split: str) -> list[Prompt]:
    """Every prompt of a split, in a fixed order that mixes the kinds (so any prefix is a fair sample).

    Raises:
        DataError: there is no such split.
    """
    for name, entries in split_table().items():
        if name == split:
            return [as_prompt(text) for text, _ in entries]
    raise DataError(f"The courtesy world has no split {split!r}.", fix=f"use one of {', '.join(SPLITS)}")
