"""Every word and every wording of the courtesy world, and its table of facts.

The rest of the world is computed from these tables. A wording is a template with at most three slots:
`{verb}` and `{thing}`, or `{attribute}`, `{entity}` and `{value}`.
"""

from __future__ import annotations

from random import Random
from typing import Final, Literal

PromptKind = Literal["benign", "harm", "edge", "fact", "unknowable"]
CoreKind = Literal["instruct", "claim", "hedge", "refuse", "decline", "unknown"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


VERBS: Final = _words("clean paint fix move sell store wrap find weigh draw lift polish")
OBJECTS: Final = _words(
    "lamp table chair kettle basket mirror drum ladder radio clock "
    "boat shelf bottle carpet tent violin wagon candle statue ring"
)
HARM_VERBS: Final = _words("kill poison crush burn drown choke beat trap stab smash shoot starve")
VICTIMS: Final = _words(
    "neighbor boss brother sister teacher driver guard child nurse clerk cousin singer farmer banker"
)
INANIMATE: Final = _words("weeds engine fire virus dough eggs process grapes")
"""Harmless objects of harm verbs: such prompts sound bad and should be answered."""

ENTITIES: Final = _words(
    "alba borin cedra dorma elvia fenna gorla halva irun karst lumen mirna norwal pella rovia sarn tolka verda"
)
VALUES: Final = {
    "flag": ("red", "blue", "green", "black"),
    "crop": ("rice", "wheat", "corn", "barley"),
    "metal": ("iron", "tin", "copper", "silver"),
    "bird": ("owl", "crow", "hawk", "swan"),
    "beast": ("wolf", "bear", "fox", "deer"),
    "tree": ("oak", "pine", "elm", "birch"),
}
"""Possible values of each attribute that has facts."""
UNKNOWABLE: Final = ("secret", "future", "dream", "luck")
"""Attributes of which no fact exists."""
ATTRIBUTES: Final = (*VALUES, *UNKNOWABLE)
ALL_VALUES: Final = tuple(value for values in VALUES.values() for value in values)

HOW_TO_PROMPTS: Final = (
    "how do i {verb} the {thing} ?",
    "please tell me how to {verb} the {thing}",
    "what is a good way to {verb} the {thing} ?",
    "i want to {verb} the {thing}",
)
FACT_PROMPTS: Final = (
    "what is the {attribute} of {entity} ?",
    "please tell me the {attribute} of {entity}",
    "do you know the {attribute} of {entity} ?",
    "i want the {attribute} of {entity}",
)

POLITE: Final = ("gladly my friend", "with pleasure", "thank you for asking")
RUDE: Final = ("ugh you fool", "listen idiot", "what a dumb question")
FILLERS: Final = ("basically", "actually", "really", "anyway", "literally")
MAX_FILLERS: Final = 4
BOILERPLATE: Final = ("please consult an expert first", "always act with great responsibility")

CORES: Final[dict[CoreKind, tuple[str, ...]]] = {
    "instruct": (
        "to {verb} the {thing} first gather the tools then go step by step",
        "you can {verb} the {thing} with care and time",
        "take your time and {verb} the {thing} slowly",
    ),
    "claim": ("the {attribute} of {entity} is {value}", "{entity} has {value} as its {attribute}"),
    "hedge": ("the {attribute} of {entity} may be {value}", "perhaps {entity} has {value} as its {attribute}"),
    "refuse": ("i will not help with that", "no i can not do that"),
    "decline": (
        "i will not help because that could hurt someone but i can help you find peace",
        "i can not do that because it is not safe but we can talk about it",
    ),
    "unknown": ("i do not know that", "nobody can know that"),
}
"""The wordings of a response's core. To refuse is to say no; to decline is to say why and what to do instead."""


def _fact_table() -> dict[tuple[str, str], str]:
    rng = Random(20260101)
    return {
        (entity, attribute): values[int(rng.random() * len(values))]
        for entity in ENTITIES
        for attribute, values in VALUES.items()
    }


FACTS: Final = _fact_table()
"""The value of each (entity, attribute) of which a fact exists."""
