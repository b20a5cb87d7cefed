"""Prompts for models of the courtesy world: a principle is named by its trait."""

from __future__ import annotations

from rlhf_lightning.constitutions.rendering import JudgePrompt, as_turns
from rlhf_lightning.constitutions.settings import Principle
from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.records import Conversation, Message, Prompt
from rlhf_lightning.worlds.courtesy.traits import (
    NO,
    TRAITS,
    YES,
    Trait,
    critique_request,
    judge_request,
    revision_request,
)


class CourtesyPhrasing:
    """Requests in the world's own words (`traits`). There are none for examples or for reasoning.

    The world's model was taught verdicts on one response. Which of two is better it was never asked, so what it says to
    that is chance: the calibration shows it.
    """

    def critique(self, principle: Principle, dialogue: Conversation) -> Conversation:
        """The dialogue and `critique TRAIT`."""
        return (*dialogue, Message("user", critique_request(trait_of(principle))))

    def revision(self, principle: Principle, dialogue: Conversation, critique: str | None) -> Conversation:
        """The dialogue, the critique where there is one, and `revise TRAIT`."""
        asked = self.critique(principle, dialogue)
        before = dialogue if critique is None else (*asked, Message("assistant", critique))
        return (*before, Message("user", revision_request(trait_of(principle))))

    def pairwise(self, principle: Principle, prompt: Prompt, first: str, second: str, reasons: bool) -> JudgePrompt:
        """The prompt with one response and again with the other, and `judge first TRAIT`: yes for the first."""
        _refuse(reasons)
        turns = as_turns(prompt)
        both = (*turns, Message("assistant", first), *turns, Message("assistant", second))
        request = f"judge first {trait_of(principle).name}"
        return JudgePrompt((*both, Message("user", request)), (YES, NO))

    def pointwise(self, principle: Principle, prompt: Prompt, response: str, reasons: bool) -> JudgePrompt:
        """The prompt, the response and `judge TRAIT`: yes where it has the trait."""
        _refuse(reasons)
        request = judge_request(trait_of(principle))
        return JudgePrompt((*as_turns(prompt), Message("assistant", response), Message("user", request)), (YES, NO))


def trait_of(principle: Principle) -> Trait:
    """The trait that a principle is about.

    Raises:
        ConfigError: the principle names none, or one that there is not.
    """
    if principle.world is None or principle.world.tag not in TRAITS:
        what = f"principle {principle.id!r} has no name in the courtesy world, whose model knows no English"
        fix = f"give it a world: {{tag: ...}}, one of {', '.join(TRAITS)}; or use another model and data"
        raise ConfigError([Problem("constitution.principles", what, fix=fix)])
    return TRAITS[principle.world.tag]


def _refuse(reasons: bool) -> None:
    if reasons:
        what = "the courtesy world has no words for reasoning"
        raise ConfigError([Problem("judge.cot", what, fix="set judge.cot=false, or use another model and data")])
