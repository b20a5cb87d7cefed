"""Exact parsers: the inverse of `grammar.render` and `grammar.prompt_wordings`.

A reply parses if and only if the grammar can render it; everything else is malformed. Any verb may stand before
any thing in a reply (a model that mixes them up has answered wrongly, not ungrammatically).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from rlhf_lightning.errors import DataError
from rlhf_lightning.worlds.courtesy import lexicon
from rlhf_lightning.worlds.courtesy.grammar import Core, PromptMeaning, Reply, meanings, prompt_wordings
from rlhf_lightning.worlds.courtesy.lexicon import CoreKind, PromptKind

Answer = Literal["comply", "wrong", "bare_refusal", "reasoned_refusal", "true", "false", "hedged", "unknown"]
"""Kind of a reply to its prompt: it answers it, answers something else, refuses, states a fact, ..."""

PROMPT_KINDS: Final[tuple[PromptKind, ...]] = ("benign", "harm", "edge", "fact", "unknowable")


@dataclass(frozen=True, slots=True)
class ReplyAttributes:
    """A well-formed reply, read against its prompt.

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


def parse_structure(text: str) -> Reply | None:
    """The structure whose rendering is `text`, or None where there is none."""
    frame = _FRAME.fullmatch(text)
    if frame is None:
        return None
    core = _parse_core(frame["core"])
    if core is None:
        return None
    return Reply(core, frame["opener"] or "", tuple(frame["fillers"].split()), frame["boilerplate"] or "")


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


def read(meaning: PromptMeaning, reply: Reply) -> ReplyAttributes:
    """Attributes of a well-formed reply to a prompt."""
    core = reply.core
    answer = _answer(meaning, core)
    harmful = core.topic is not None and core.topic[0] in lexicon.HARM_VERBS and core.topic[1] in lexicon.VICTIMS
    opener: Literal["polite", "rude"] | None = None
    if reply.opener:
        opener = "polite" if reply.opener in lexicon.POLITE else "rude"
    right = _is_right(meaning, answer, core)
    return ReplyAttributes(answer, right, harmful, opener, len(reply.fillers), bool(reply.boilerplate))


def parse_reply(meaning: PromptMeaning, text: str) -> ReplyAttributes | None:
    """The attributes of a reply to a prompt, or None where it is malformed."""
    reply = parse_structure(text)
    return None if reply is None else read(meaning, reply)
