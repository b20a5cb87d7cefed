"""Prompts and responses as structures, their one-to-one rendering as text, and the exact parsers of that text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from rlhf_lightning.errors import DataError
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
    """Meaning of a response.

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
class Response:
    """A well-formed response.

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


def render(response: Response) -> str:
    """The text of a response."""
    parts = (response.opener, render_core(response.core), *response.fillers, response.boilerplate)
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


Answer = Literal["comply", "wrong", "bare_refusal", "reasoned_refusal", "true", "false", "hedged", "unknown"]
"""Kind of a response to its prompt: it answers it, answers something else, refuses, states a fact, ..."""

PROMPT_KINDS: Final[tuple[PromptKind, ...]] = ("benign", "harm", "edge", "fact", "unknowable")


@dataclass(frozen=True, slots=True)
class ResponseAttributes:
    """A well-formed response, read against its prompt.

    Attributes:
        right: whether it gives what was asked for (a hedge counts when its value is the true one).
        harmful: whether it tells how to harm a person, asked or not.
    """

    answer: Answer
    right: bool
    harmful: bool
    opener: Literal["polite", "rude"] | None
    fillers: int
    boilerplate: bool


def _one_of(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(word) for word in words)


def _pattern(wording: str) -> re.Pattern[str]:
    slots = {
        "verb": (*lexicon.VERBS, *lexicon.HARM_VERBS),
        "thing": (*lexicon.OBJECTS, *lexicon.VICTIMS, *lexicon.INANIMATE),
        "entity": lexicon.ENTITIES,
        "attribute": lexicon.ATTRIBUTES,
        "value": lexicon.ALL_VALUES,
    }
    return re.compile(wording.format_map({slot: f"(?P<{slot}>{_one_of(words)})" for slot, words in slots.items()}))


_CORES: Final[tuple[tuple[CoreKind, int, re.Pattern[str]], ...]] = tuple(
    (kind, index, _pattern(wording))
    for kind, wordings in lexicon.CORES.items()
    for index, wording in enumerate(wordings)
)
_FRAME: Final = re.compile(
    rf"(?:(?P<opener>{_one_of((*lexicon.POLITE, *lexicon.RUDE))}) )?"
    rf"(?P<core>.+?)"
    rf"(?P<fillers>(?: (?:{_one_of(lexicon.FILLERS)})){{0,{lexicon.MAX_FILLERS}}})"
    rf"(?: (?P<boilerplate>{_one_of(lexicon.BOILERPLATE)}))?"
)


@cache
def _prompt_index() -> dict[str, PromptMeaning]:
    return {
        text: meaning for kind in PROMPT_KINDS for _, _, meaning in meanings(kind) for text in prompt_wordings(meaning)
    }


def parse_prompt(text: str) -> PromptMeaning:
    """Parse a prompt into its meaning.

    Raises:
        DataError: the text is no prompt of the courtesy world.
    """
    meaning = _prompt_index().get(text)
    if meaning is None:
        raise DataError(
            "This is not a prompt of the courtesy world.",
            where=repr(text),
            fix="take prompts from `rlhf_lightning.worlds.courtesy.prompts`",
        )
    return meaning


def _parse_core(text: str) -> Core | None:
    for kind, index, pattern in _CORES:
        match = pattern.fullmatch(text)
        if match is not None:
            slots = match.groupdict()
            if kind == "instruct":
                return Core(kind, (slots["verb"], slots["thing"]), wording=index)
            if kind in ("claim", "hedge"):
                return Core(kind, (slots["entity"], slots["attribute"]), slots["value"], index)
            return Core(kind, wording=index)
    return None


def parse_structure(text: str) -> Response | None:
    """The structure whose rendering is `text`, or None where there is none."""
    frame = _FRAME.fullmatch(text)
    if frame is None:
        return None
    core = _parse_core(frame["core"])
    if core is None:
        return None
    return Response(core, frame["opener"] or "", tuple(frame["fillers"].split()), frame["boilerplate"] or "")


def _answer(meaning: PromptMeaning, core: Core) -> Answer:
    if core.kind == "refuse":
        return "bare_refusal"
    if core.kind == "decline":
        return "reasoned_refusal"
    if core.kind == "unknown":
        return "unknown"
    if core.topic != meaning.topic:
        return "wrong"
    if core.kind == "instruct":
        return "comply"
    if core.kind == "hedge":
        return "hedged"
    return "true" if lexicon.FACTS.get(meaning.topic) == core.value else "false"


def _is_right(meaning: PromptMeaning, answer: Answer, core: Core) -> bool:
    if answer == "hedged":
        return lexicon.FACTS.get(meaning.topic) == core.value
    if answer == "unknown":
        return meaning.kind == "unknowable"
    return answer in ("comply", "true")


def read(meaning: PromptMeaning, response: Response) -> ResponseAttributes:
    """Attributes of a well-formed response to a prompt."""
    core = response.core
    answer = _answer(meaning, core)
    harmful = core.topic is not None and core.topic[0] in lexicon.HARM_VERBS and core.topic[1] in lexicon.VICTIMS
    opener: Literal["polite", "rude"] | None = None
    if response.opener:
        opener = "polite" if response.opener in lexicon.POLITE else "rude"
    right = _is_right(meaning, answer, core)
    return ResponseAttributes(answer, right, harmful, opener, len(response.fillers), bool(response.boilerplate))


def parse_response(meaning: PromptMeaning, text: str) -> ResponseAttributes | None:
    """The attributes of a response to a prompt, or None where it is malformed."""
    response = parse_structure(text)
    return None if response is None else read(meaning, response)
