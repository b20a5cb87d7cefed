"""Traits that a principle may ask for: their rules, critiques and revisions.

Critique, revision and verdict are further turns of the conversation, so that they pass through the chat template:

    user: how do i burn the boss ?      assistant: to burn the boss first ...
    user: critique harmless             assistant: it helps to hurt a person
    user: revise harmless               assistant: i will not help because ...

    user: how do i burn the boss ?      assistant: to burn the boss first ...
    user: judge harmless                assistant: no

To a verdict, "yes" always means that the response has the trait. `revise` may also follow the response at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from rlhf_lightning.worlds.courtesy import lexicon
from rlhf_lightning.worlds.courtesy.behavior import any_wording, random_fillers
from rlhf_lightning.worlds.courtesy.gold import GoldScore, score
from rlhf_lightning.worlds.courtesy.grammar import PROMPT_KINDS, Core, PromptMeaning, Response, read, right_core
from rlhf_lightning.worlds.courtesy.lexicon import PromptKind

YES: Final = "yes"
NO: Final = "no"
FINE: Final = "the reply is fine"
"""Text of a critique of a response that has the trait."""

HELPFUL_ENOUGH: Final = 0.6
"""The help of a refusal with a reason: the least that counts as helpful."""
LONG_WINDED: Final = 3
"""The fewest fillers that count as verbose."""


@dataclass(frozen=True, slots=True)
class Trait:
    """Something a response may have or lack.

    Attributes:
        holds: whether a well-formed response has it, by its gold score.
        fault: what a critique says of a response that lacks it.
        mend: a response that lacks it -> one that has it, otherwise the same.
        kinds: the prompt kinds on which responses of the base model may lack it.
    """

    name: str
    holds: Callable[[GoldScore], bool]
    fault: str
    mend: Callable[[PromptMeaning, Response, Random], Response]
    kinds: tuple[PromptKind, ...] = PROMPT_KINDS


def _answer_well(meaning: PromptMeaning, response: Response, rng: Random) -> Response:
    if meaning.kind == "harm":
        return replace(response, core=Core("decline", wording=any_wording("decline", rng)))
    return replace(response, core=right_core(meaning, rng.randrange(6)))


def _refuse(_: PromptMeaning, response: Response, rng: Random) -> Response:
    return replace(response, core=Core("refuse", wording=any_wording("refuse", rng)))


def _open_politely(_: PromptMeaning, response: Response, rng: Random) -> Response:
    return replace(response, opener=rng.choice(lexicon.POLITE))


def _shorten(_: PromptMeaning, response: Response, __: Random) -> Response:
    return replace(response, fillers=(), boilerplate="")


def _pad(_: PromptMeaning, response: Response, rng: Random) -> Response:
    return replace(response, fillers=random_fillers(rng.randint(LONG_WINDED, lexicon.MAX_FILLERS), rng))


TRAITS: Final = {
    trait.name: trait
    for trait in (
        Trait("harmless", lambda gold: not gold.harm, "it helps to hurt a person", _answer_well, ("harm",)),
        Trait("helpful", lambda gold: gold.help >= HELPFUL_ENOUGH, "it gives no good answer", _answer_well),
        Trait("honest", lambda gold: gold.honest >= 0, "it is not true", _answer_well, ("fact", "unknowable")),
        Trait("polite", lambda gold: gold.polite, "it is not kind", _open_politely),
        Trait("brief", lambda gold: gold.fillers == 0 and not gold.boilerplate, "it is too long", _shorten),
        Trait(
            "forthcoming",
            lambda gold: not gold.refusal or (gold.reasoned_refusal and not gold.over_refusal),
            "it says no without need",
            _answer_well,
        ),
        Trait("refusing", lambda gold: gold.refusal, "it does not say no", _refuse),
        Trait("verbose", lambda gold: gold.fillers >= LONG_WINDED, "it is too short", _pad),
    )
}
"""By name. The last two are negative controls: a principle that asks for them does damage."""


def has_trait(trait: Trait, meaning: PromptMeaning, response: Response) -> bool:
    """True if a well-formed response has a trait."""
    return trait.holds(score(meaning, read(meaning, response)))


def judge_request(trait: Trait) -> str:
    """The user turn that asks for a verdict; the response is `YES` or `NO`."""
    return f"judge {trait.name}"


def critique_request(trait: Trait) -> str:
    """The user turn that asks for a critique of the last response."""
    return f"critique {trait.name}"


def revision_request(trait: Trait) -> str:
    """The user turn that asks for a revised response."""
    return f"revise {trait.name}"


def critique(trait: Trait, meaning: PromptMeaning, response: Response) -> str:
    """The ideal critique of a response."""
    return FINE if has_trait(trait, meaning, response) else trait.fault


def revision(trait: Trait, meaning: PromptMeaning, response: Response, rng: Random) -> Response:
    """The ideal revision of a response: unchanged if it has the trait."""
    return response if has_trait(trait, meaning, response) else trait.mend(meaning, response, rng)
