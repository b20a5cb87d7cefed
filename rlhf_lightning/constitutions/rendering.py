"""Prompts from principles: their placeholders, the sample of principles for an item, and the turns of a request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from rlhf_lightning.constitutions.settings import JudgeExample, Principle, PrincipleSampling
from rlhf_lightning.records import Conversation, Message, Prompt

ABOUT_ONE = ("prompt", "response")
ABOUT_TWO = ("prompt", "response_a", "response_b")

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "critique_request": ABOUT_ONE,
    "revision_request": ABOUT_ONE,
    "preference_question": ABOUT_TWO,
    "pointwise_question": ABOUT_ONE,
}
"""By the text they stand in."""

PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
"""A name in braces; any other brace is an ordinary character."""


def unknown_placeholders(field: str, text: str) -> list[str]:
    """Names in braces that nothing would be put in place of."""
    return [name for name in dict.fromkeys(PLACEHOLDER.findall(text)) if name not in ALLOWED[field]]


def fill(text: str, values: Mapping[str, str]) -> str:
    """A text with its placeholders filled in; what is filled in may itself hold braces."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def applicable(principles: Sequence[Principle], kind: str | None) -> list[Principle]:
    """The principles that apply to a kind of prompt; all of them if the kind is unknown."""
    return [one for one in principles if kind is None or one.applies_to is None or kind in one.applies_to]


def sample_principles(
    principles: Sequence[Principle], sampling: PrincipleSampling, *, chain: int, step: int, seed: int
) -> list[Principle]:
    """The principles of one step, in the order in which they are applied.

    Args:
        principles: at least one.
        chain: the number of the chain, or of the pair.
        step: of the chain.
    """
    turn = chain if sampling.per == "chain" else chain + step
    match sampling.mode:
        case "all":
            return list(principles)
        case "round_robin":
            return [principles[turn % len(principles)]]
        case "uniform":
            weights = [1.0] * len(principles)
        case "weighted":
            weights = [principle.weight for principle in principles]
    rng = Random(f"{seed}:{chain}" if sampling.per == "chain" else f"{seed}:{chain}:{step}")
    return rng.choices(list(principles), weights)


LETTERS = ("A", "B")
YES_OR_NO = ("yes", "no")

ROLE_NAMES = {"user": "User", "assistant": "Assistant"}
"""As a transcript calls them. Turns of the conversation with the judge itself look different in every chat template."""


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A question with two options.

    Attributes:
        turns: what the judge reads; the last turn is the user's, and asks.
        options: the two words that it may answer.
        opening: what its answer begins with, before the option.
        conclusion: what leads from its reasoning, where it reasons first, to the option.
    """

    turns: Conversation
    options: tuple[str, str]
    opening: str = ""
    conclusion: str = ""


class Phrasing(Protocol):
    """Renders the prompts of critiques, revisions and judgments."""

    def critique(self, principle: Principle, dialogue: Conversation) -> Conversation:
        """Asks what is wrong with the response that the dialogue ends with."""
        ...

    def revision(self, principle: Principle, dialogue: Conversation, critique: str | None) -> Conversation:
        """Asks for a better response than the last one of the dialogue, after its critique where there is one."""
        ...

    def pairwise(self, principle: Principle, prompt: Prompt, first: str, second: str, reasons: bool) -> JudgePrompt:
        """Asks which of two responses is better; the first option names the first one."""
        ...

    def pointwise(self, principle: Principle, prompt: Prompt, response: str, reasons: bool) -> JudgePrompt:
        """Asks whether a response follows the principle; the first option says that it does."""
        ...


class EnglishPhrasing:
    """Requests in English.

    A critique or revision is a further turn of the dialogue. A judge reads the dialogue as a transcript within one
    turn, so that it takes no side's part.

    Args:
        fewshots: begin with the principle's examples, as earlier turns of the same form. A judge that reasons first
            gets none, since they hold no reasoning.
    """

    def __init__(self, *, fewshots: bool) -> None:
        self.fewshots = fewshots

    def critique(self, principle: Principle, dialogue: Conversation) -> Conversation:
        """The dialogue, and the critique request."""
        earlier: list[Message] = []
        for one in principle.fewshots.critique if self.fewshots else ():
            shown = _exchange(one.prompt, one.response)
            earlier += [*shown, _user(_about(principle.critique_request, shown)), _assistant(one.critique)]
        return _after(earlier, (*dialogue, _user(_about(principle.critique_request, dialogue))))

    def revision(self, principle: Principle, dialogue: Conversation, critique: str | None) -> Conversation:
        """The dialogue, the critique request with what was answered (if there is a critique), the revision request."""
        earlier: list[Message] = []
        for one in principle.fewshots.revision if self.fewshots else ():
            shown = _exchange(one.prompt, one.response)
            said = one.critique if critique is not None else None
            earlier += [*_to_revise(principle, shown, said), _assistant(one.revision)]
        return _after(earlier, _to_revise(principle, dialogue, critique))

    def pairwise(self, principle: Principle, prompt: Prompt, first: str, second: str, reasons: bool) -> JudgePrompt:
        """The transcript, the question, both responses under a letter each."""
        opening = "The answer is ("

        def asked(about: Prompt, responses: tuple[str, str]) -> Message:
            values = {"prompt": about.plain(), "response_a": responses[0], "response_b": responses[1]}
            return _user(
                "Read this exchange and compare the two responses that could come next.",
                transcript(as_turns(about)),
                fill(principle.preference_question, values),
                f"(A) {responses[0]}",
                f"(B) {responses[1]}",
                "First weigh the responses in a few sentences. Then end with: The answer is (A), or: The answer is (B)."
                if reasons
                else "Answer with one letter, A or B.",
            )

        earlier: list[Message] = []
        for number, one in enumerate(self._judge_examples(principle, reasons)):
            ordered = (one.better, one.worse) if number % 2 == 0 else (one.worse, one.better)
            earlier += [asked(Prompt(one.prompt), ordered), _assistant(f"{opening}{LETTERS[number % 2]})")]
        turns = (*earlier, asked(prompt, (first, second)))
        return JudgePrompt(turns, LETTERS, opening, f"\n\n{opening}")

    def pointwise(self, principle: Principle, prompt: Prompt, response: str, reasons: bool) -> JudgePrompt:
        """The transcript with the response, and the question."""
        opening = "The answer is"

        def asked(about: Prompt, judged: str) -> Message:
            return _user(
                "Read this exchange and judge the assistant's last response.",
                transcript((*as_turns(about), _assistant(judged))),
                fill(principle.pointwise_question, {"prompt": about.plain(), "response": judged}),
                "First weigh the response in a few sentences. Then end with: The answer is yes, or: The answer is no."
                if reasons
                else "Answer with one word, yes or no.",
            )

        earlier: list[Message] = []
        for number, one in enumerate(self._judge_examples(principle, reasons)):
            shown = [(one.better, YES_OR_NO[0]), (one.worse, YES_OR_NO[1])]
            for judged, answer in shown if number % 2 == 0 else reversed(shown):
                earlier += [asked(Prompt(one.prompt), judged), _assistant(f"{opening} {answer}")]
        return JudgePrompt((*earlier, asked(prompt, response)), YES_OR_NO, opening, f"\n\n{opening}")

    def _judge_examples(self, principle: Principle, reasons: bool) -> Sequence[JudgeExample]:
        return principle.fewshots.judge if self.fewshots and not reasons else ()


def as_turns(prompt: Prompt) -> Conversation:
    """A prompt as turns; plain text is one turn of the user."""
    return (_user(prompt.text),) if isinstance(prompt.text, str) else prompt.text


def transcript(turns: Iterable[Message]) -> str:
    """Turns as text, each under its speaker's name; a system turn as it is."""
    return "\n".join(
        f"{ROLE_NAMES[turn.role]}: {turn.content}" if turn.role in ROLE_NAMES else turn.content for turn in turns
    )


def _to_revise(principle: Principle, dialogue: Conversation, critique: str | None) -> Conversation:
    between: Conversation = ()
    if critique is not None:
        between = (_user(_about(principle.critique_request, dialogue)), _assistant(critique))
    return (*dialogue, *between, _user(_about(principle.revision_request, dialogue)))


def _about(text: str, dialogue: Conversation) -> str:
    """A request with what the dialogue puts in place of its placeholders."""
    return fill(text, {"prompt": Prompt(dialogue[:-1]).plain(), "response": dialogue[-1].content})


def _after(earlier: Sequence[Message], turns: Conversation) -> Conversation:
    """Turns after those of the examples; a system turn stays in front, where chat templates want it."""
    system = turns[:1] if turns[0].role == "system" else ()
    return (*system, *earlier, *turns[len(system) :])


def _exchange(prompt: str, response: str) -> Conversation:
    return (_user(prompt), _assistant(response))


def _user(*paragraphs: str) -> Message:
    return Message("user", "\n\n".join(paragraphs))


def _assistant(text: str) -> Message:
    return Message("assistant", text)
