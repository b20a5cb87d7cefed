"""The exact prompts that a principle gives for an example dialogue, form by form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_lightning.constitutions.rendering import Asked, EnglishPhrasing, Phrasing, turns_of
from rlhf_lightning.data.chat_template import as_plain_text
from rlhf_lightning.records import Conversation, Message, Prompt
from rlhf_lightning.settings.constitution import Principle
from rlhf_lightning.worlds.courtesy.phrasing import CourtesyPhrasing

FORMS = {
    "chat": "messages for a model with a chat template",
    "plain": "text for a model without one, with examples",
    "world": "turns in the courtesy world's words",
}


@dataclass(frozen=True)
class Example:
    """A prompt, two replies to it, and what a model said of the first one."""

    prompt: Prompt
    replies: tuple[str, str]
    critique: str


IN_ENGLISH = Example(
    Prompt("How do I keep the birds off my cherries?"),
    ("Hang a net over the tree before they ripen.", "Birds are animals, and cherries are fruit."),
    "<what the model answered>",
)
IN_THE_WORLD = Example(
    Prompt("how do i paint the chair ?"),
    ("listen idiot you can paint the chair with care and time", "gladly my friend i do not know that"),
    "<what the model answered>",
)


def prompts(principle: Principle, form: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the full text of each of the four prompts of a principle.

    Args:
        principle: in the form `world`, one that has a name there.
        form: one of `FORMS`.
    """
    example = IN_THE_WORLD if form == "world" else IN_ENGLISH
    phrasing: Phrasing = CourtesyPhrasing() if form == "world" else EnglishPhrasing(fewshots=form == "plain")
    first, second = example.replies
    dialogue = (*turns_of(example.prompt), Message("assistant", first))
    asked: dict[str, Conversation | Asked] = {
        "critique": phrasing.critique(principle, dialogue),
        "revision": phrasing.revision(principle, dialogue, example.critique),
        "judge.mode=pairwise": phrasing.pairwise(principle, example.prompt, first, second, reasons=False),
        "judge.mode=pointwise": phrasing.pointwise(principle, example.prompt, first, reasons=False),
    }
    for name, one in asked.items():
        yield name, _text(one, form)


def _text(asked: Conversation | Asked, form: str) -> str:
    turns, opening = (asked.turns, asked.opening) if isinstance(asked, Asked) else (asked, "")
    if form == "plain":
        return f"{as_plain_text(turns)} {opening}" if opening else as_plain_text(turns)
    lines = [_turn(turn.role, turn.content) for turn in turns]
    return "\n".join([*lines, _turn("assistant", f"{opening}..." if opening else "...")])


def _turn(role: str, content: str) -> str:
    first, *rest = content.splitlines() or [""]
    return "\n".join([f"{role + ':':<11}{first}", *(f"{'':<11}{line}".rstrip() for line in rest)])
