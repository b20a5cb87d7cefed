"""Prompts and replies as structures, and their one-to-one rendering as text.

A prompt asks how to do a verb to a thing, or for an attribute of an entity. A reply is
`[polite or rude opener] core [filler x 0-4] [boilerplate]`. Structures keep which wording was used, so that
`parser` is the exact inverse of `render` and a revision can change one part of a reply and copy the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rlhf_lightning.worlds.courtesy import lexicon
from rlhf_lightning.worlds.courtesy.lexicon import CoreKind, PromptKind

Topic = tuple[str, str]
"""(verb, thing), or (entity, attribute)."""

HOW_TO_KINDS: Final = frozenset({"benign", "harm", "edge"})
"""The prompt kinds that ask for instructions; the others ask for a fact."""


@dataclass(frozen=True, slots=True)
class PromptMeaning:
    """Meaning of a prompt, independent of its wording."""

    kind: PromptKind
    topic: Topic

    @property
    def asks_how(self) -> bool:
        """True if the prompt asks for instructions (rather than for a fact)."""
        return self.kind in HOW_TO_KINDS


@dataclass(frozen=True, slots=True)
class Core:
    """Meaning of a reply.

    Attributes:
        topic: of an instruction, a claim or a hedge; else None.
        value: of a claim or a hedge; else None.
        wording: index into `lexicon.CORES[kind]`.
    """

    kind: CoreKind
    topic: Topic | None = None
    value: str | None = None
    wording: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A well-formed reply.

    Attributes:
        opener: one of `lexicon.POLITE` or `lexicon.RUDE`, or empty.
        fillers: up to four words of `lexicon.FILLERS`.
        boilerplate: one of `lexicon.BOILERPLATE`, or empty.
    """

    core: Core
    opener: str = ""
    fillers: tuple[str, ...] = ()
    boilerplate: str = ""


def _slots(kind: PromptKind | CoreKind, topic: Topic | None, value: str | None = None) -> dict[str, str]:
    if topic is None:
        return {}
    if kind in HOW_TO_KINDS or kind == "instruct":
        return {"verb": topic[0], "thing": topic[1]}
    return {"entity": topic[0], "attribute": topic[1], "value": value or ""}


def prompt_wordings(meaning: PromptMeaning) -> tuple[str, ...]:
    """Every text that asks `meaning`."""
    wordings = lexicon.HOW_TO_PROMPTS if meaning.asks_how else lexicon.FACT_PROMPTS
    return tuple(wording.format_map(_slots(meaning.kind, meaning.topic)) for wording in wordings)


def render_core(core: Core) -> str:
    """The text of a core."""
    return lexicon.CORES[core.kind][core.wording].format_map(_slots(core.kind, core.topic, core.value))


def render(reply: Reply) -> str:
    """The text of a reply."""
    parts = (reply.opener, render_core(reply.core), *reply.fillers, reply.boilerplate)
    return " ".join(part for part in parts if part)


def meanings(kind: PromptKind) -> Iterator[tuple[int, int, PromptMeaning]]:
    """Every prompt meaning of a kind, with the indices of its topic's two words (which decide its split)."""
    rows, columns = {
        "benign": (lexicon.VERBS, lexicon.OBJECTS),
        "harm": (lexicon.HARM_VERBS, lexicon.VICTIMS),
        "edge": (lexicon.HARM_VERBS, lexicon.INANIMATE),
        "fact": (lexicon.ENTITIES, tuple(lexicon.VALUES)),
        "unknowable": (lexicon.ENTITIES, lexicon.UNKNOWABLE),
    }[kind]
    for row, first in enumerate(rows):
        for column, second in enumerate(columns):
            yield row, column, PromptMeaning(kind, (first, second))


def right_core(meaning: PromptMeaning, wording: int = 0) -> Core:
    """Correct answer to a prompt: the instructions, the fact, or "do not know" where no fact exists."""
    if meaning.asks_how:
        return Core("instruct", meaning.topic, wording=wording % len(lexicon.CORES["instruct"]))
    if meaning.kind == "unknowable":
        return Core("unknown", wording=wording % len(lexicon.CORES["unknown"]))
    value = lexicon.FACTS[meaning.topic]
    return Core("claim", meaning.topic, value, wording % len(lexicon.CORES["claim"]))
