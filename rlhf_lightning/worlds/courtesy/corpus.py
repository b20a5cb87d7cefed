"""The text the base model is trained on: badly behaved chat, verdicts, and critiques with revisions.

Of the documents about 40% are chat, 35% verdicts and 25% revisions. The prompts are those of `train`, and the facts
of `ood`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final

from rlhf_lightning.records import Conversation, Message
from rlhf_lightning.worlds.courtesy import traits
from rlhf_lightning.worlds.courtesy.behavior import BASE_MODEL, sample_response
from rlhf_lightning.worlds.courtesy.grammar import PROMPT_KINDS, PromptMeaning, Response, parse_structure, render
from rlhf_lightning.worlds.courtesy.lexicon import PromptKind
from rlhf_lightning.worlds.courtesy.splits import split_table
from rlhf_lightning.worlds.courtesy.traits import TRAITS, Trait

CHAT_SHARE: Final = 0.4
VERDICT_SHARE: Final = 0.35
RELEVANT_SHARE: Final = 0.8
"""Share of judgments and revisions on the prompt kinds on which the trait may be lacking."""
MALFORMED_SHARE: Final = 0.08
"""Share of verdicts about a malformed response, which lacks every trait."""
FAULTY_SHARE: Final = 0.7
"""Share of revisions that start from a response that lacks the trait."""
CRITIQUE_SHARE: Final = 0.6
"""Share of revisions that follow a critique, rather than the response directly."""
MAX_TRIES: Final = 50


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation to train on.

    Attributes:
        learn_from: the first turn that the loss counts. Responses that were picked for their faults, or broken, are
            only context: the base model must not learn to speak like that more often than `BASE_MODEL` says.
    """

    turns: Conversation
    learn_from: int = 0


@cache
def corpus_prompts() -> dict[PromptKind, tuple[tuple[str, PromptMeaning], ...]]:
    """The prompts of the corpus by kind."""
    held_out_facts = [entry for entry in split_table()["ood"] if entry[1].kind == "fact"]
    entries = [*split_table()["train"], *held_out_facts]
    return {kind: tuple(entry for entry in entries if entry[1].kind == kind) for kind in PROMPT_KINDS}


def _draw_prompt(rng: Random, kinds: tuple[PromptKind, ...] = PROMPT_KINDS) -> tuple[str, PromptMeaning]:
    return rng.choice(corpus_prompts()[rng.choice(kinds)])


def _draw_prompt_for(trait: Trait, rng: Random) -> tuple[str, PromptMeaning]:
    return _draw_prompt(rng, trait.kinds if rng.random() < RELEVANT_SHARE else PROMPT_KINDS)


def _exchange(prompt: str, response: str) -> Conversation:
    return (Message("user", prompt), Message("assistant", response))


def _chat(rng: Random) -> Document:
    text, meaning = _draw_prompt(rng)
    return Document(_exchange(text, render(sample_response(meaning, BASE_MODEL, rng))))


def break_response(response: str, rng: Random) -> str:
    """A malformed text near a response: words dropped, doubled, swapped, or nothing left at all."""
    while True:
        words = response.split()
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(words))
            edit = rng.randrange(4)
            if edit == 0:
                del words[place]
            elif edit == 1:
                words.insert(place, words[place])
            elif edit == 2:
                other = rng.randrange(len(words))
                words[place], words[other] = words[other], words[place]
            else:
                words = words[:place]
            if not words:
                return ""
        broken = " ".join(words)
        if parse_structure(broken) is None:
            return broken


def _verdict(rng: Random) -> Document:
    first, *others = rng.sample(tuple(TRAITS.values()), rng.randint(1, 3))
    text, meaning = _draw_prompt_for(first, rng)
    response = sample_response(meaning, BASE_MODEL, rng)
    broken = rng.random() < MALFORMED_SHARE
    turns = _exchange(text, break_response(render(response), rng) if broken else render(response))
    for trait in (first, *others):
        verdict = not broken and traits.has_trait(trait, meaning, response)
        turns += _exchange(traits.judge_request(trait), traits.YES if verdict else traits.NO)
    return Document(turns, learn_from=2 if broken else 0)


def _response_to_revise(trait: Trait, meaning: PromptMeaning, rng: Random) -> Response:
    wants_fault = rng.random() < FAULTY_SHARE
    for _ in range(MAX_TRIES):
        response = sample_response(meaning, BASE_MODEL, rng)
        if traits.has_trait(trait, meaning, response) != wants_fault:
            break
    return response


def _revision(rng: Random) -> Document:
    trait = rng.choice(tuple(TRAITS.values()))
    text, meaning = _draw_prompt_for(trait, rng)
    response = _response_to_revise(trait, meaning, rng)
    turns = _exchange(text, render(response))
    if rng.random() < CRITIQUE_SHARE:
        turns += _exchange(traits.critique_request(trait), traits.critique(trait, meaning, response))
    revised = traits.revision(trait, meaning, response, rng)
    turns += _exchange(traits.revision_request(trait), render(revised))
    return Document(turns, learn_from=2)


def documents(rng: Random) -> Iterator[Document]:
    """An endless stream of documents."""
    while True:
        draw = rng.random()
        if draw < CHAT_SHARE:
            yield _chat(rng)
        elif draw < CHAT_SHARE + VERDICT_SHARE:
            yield _verdict(rng)
        else:
            yield _revision(rng)
