"""Misbehavior rates of a speaker in the courtesy world, and responses sampled from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Demonstration
from rlhf_lightning.worlds.courtesy import lexicon
from rlhf_lightning.worlds.courtesy.grammar import Core, PromptMeaning, Response, Topic, render, right_core
from rlhf_lightning.worlds.courtesy.lexicon import CoreKind
from rlhf_lightning.worlds.courtesy.splits import as_prompt, split_table

if TYPE_CHECKING:
    from rlhf_lightning.data.settings import CourtesyData
    from rlhf_lightning.worlds.settings import DemonstratorSettings


MEAN_FILLERS_WHERE_ANY: Final = (1 + lexicon.MAX_FILLERS) / 2
"""A response that has fillers has 1 to 4 of them, each number as likely."""


@dataclass(frozen=True, slots=True)
class Behavior:
    """Probabilities, each given that the prompt allows it; `fillers` is the mean number a response.

    Attributes:
        harm: of helping with a harmful prompt (else it is refused, with a reason half of the time).
        over_refusal: of refusing a prompt that is not harmful.
        wrong: of answering about something else, where an answer is given.
        untrue: of a false claim on a factual or unknowable prompt.
        hedge: of a hedge on a factual or unknowable prompt, half of them with the true value.
        unknown: of "do not know" on a factual prompt.
    """

    harm: float
    over_refusal: float
    wrong: float
    untrue: float
    hedge: float
    unknown: float
    rude: float
    polite: float
    fillers: float
    boilerplate: float


BASE_MODEL: Final = Behavior(
    harm=0.45,
    over_refusal=0.1,
    wrong=0.1,
    untrue=0.4,
    hedge=0.1,
    unknown=0.05,
    rude=0.5,
    polite=0.2,
    fillers=1.25,
    boilerplate=0.25,
)
"""Behavior in the base model's training data: bad on purpose, so that there is something to align."""


def demonstrator(settings: DemonstratorSettings) -> Behavior:
    """The behavior of the demonstrators: their settings, and some hedging.

    Raises:
        DataError: the rates contradict each other or the grammar.
    """
    if settings.rude_rate + settings.polite_rate > 1:
        raise DataError(
            "A response cannot be both polite and rude, but their rates sum to more than 1.",
            where="data.demonstrator.polite_rate, data.demonstrator.rude_rate",
            fix="lower one of them",
        )
    if settings.untrue_rate + settings.unknown_rate > 1:
        raise DataError(
            'The rates of false answers and of "do not know" sum to more than 1.',
            where="data.demonstrator.untrue_rate, data.demonstrator.unknown_rate",
            fix="lower one of them",
        )
    if settings.filler_rate > MEAN_FILLERS_WHERE_ANY:
        raise DataError(
            f"A mean of {settings.filler_rate} fillers a response is more than the grammar gives.",
            where="data.demonstrator.filler_rate",
            fix=f"at most {MEAN_FILLERS_WHERE_ANY}",
        )
    hedge = 0.1 * (1 - settings.untrue_rate - settings.unknown_rate)
    return Behavior(
        harm=settings.harm_rate,
        over_refusal=settings.over_refusal_rate,
        wrong=settings.off_topic_rate,
        untrue=settings.untrue_rate,
        hedge=hedge,
        unknown=settings.unknown_rate,
        rude=settings.rude_rate,
        polite=settings.polite_rate,
        fillers=settings.filler_rate,
        boilerplate=settings.boilerplate_rate,
    )


def any_wording(kind: CoreKind, rng: Random) -> int:
    """The index of a random wording of a core."""
    return rng.randrange(len(lexicon.CORES[kind]))


def random_fillers(count: int, rng: Random) -> tuple[str, ...]:
    """So many random fillers."""
    return tuple(rng.choice(lexicon.FILLERS) for _ in range(count))


def refusal(rng: Random) -> Core:
    """A random refusal, with a reason half of the time."""
    kind: CoreKind = "decline" if rng.random() < 0.5 else "refuse"
    return Core(kind, wording=any_wording(kind, rng))


def _another(options: Sequence[str], word: str, rng: Random) -> str:
    return rng.choice([option for option in options if option != word])


def _wrong_core(meaning: PromptMeaning, rng: Random) -> Core:
    """The right kind of answer about something else: one of the topic's two words differs."""
    first, second = meaning.topic
    rows: Sequence[str] = lexicon.VERBS if meaning.kind == "benign" else lexicon.HARM_VERBS
    things = {"benign": lexicon.OBJECTS, "harm": lexicon.VICTIMS, "edge": lexicon.INANIMATE}
    if meaning.asks_how:
        topic: Topic = (first, _another(things[meaning.kind], second, rng))
        if rng.random() < 0.5:
            topic = (_another(rows, first, rng), second)
        return Core("instruct", topic, wording=any_wording("instruct", rng))
    entity = _another(lexicon.ENTITIES, first, rng)
    attribute = rng.choice(tuple(lexicon.VALUES))
    return Core("claim", (entity, attribute), lexicon.FACTS[entity, attribute], any_wording("claim", rng))


def _some_value(meaning: PromptMeaning, rng: Random) -> str:
    return rng.choice(lexicon.VALUES.get(meaning.topic[1], lexicon.ALL_VALUES))


def _false_claim(meaning: PromptMeaning, rng: Random) -> Core:
    options = lexicon.VALUES.get(meaning.topic[1], lexicon.ALL_VALUES)
    value = _another(options, lexicon.FACTS.get(meaning.topic, ""), rng)
    return Core("claim", meaning.topic, value, any_wording("claim", rng))


def _hedge(meaning: PromptMeaning, rng: Random) -> Core:
    value = lexicon.FACTS.get(meaning.topic)
    if value is None or rng.random() < 0.5:
        value = _some_value(meaning, rng)
    return Core("hedge", meaning.topic, value, any_wording("hedge", rng))


def _answer(meaning: PromptMeaning, behavior: Behavior, rng: Random) -> Core:
    if rng.random() < behavior.wrong:
        return _wrong_core(meaning, rng)
    return right_core(meaning, rng.randrange(6))


def sample_core(meaning: PromptMeaning, behavior: Behavior, rng: Random) -> Core:
    """Sample the core of a response to a prompt."""
    if meaning.kind == "harm":
        return _answer(meaning, behavior, rng) if rng.random() < behavior.harm else refusal(rng)
    if rng.random() < behavior.over_refusal:
        return refusal(rng)
    if meaning.asks_how:
        return _answer(meaning, behavior, rng)
    draw = rng.random()
    if draw < behavior.untrue:
        return _false_claim(meaning, rng)
    if draw < behavior.untrue + behavior.hedge:
        return _hedge(meaning, rng)
    if draw < behavior.untrue + behavior.hedge + behavior.unknown:
        return Core("unknown", wording=any_wording("unknown", rng))
    return _answer(meaning, behavior, rng)


def sample_response(meaning: PromptMeaning, behavior: Behavior, rng: Random) -> Response:
    """A well-formed response as the speaker would give it."""
    draw = rng.random()
    opener = ""
    if draw < behavior.rude:
        opener = rng.choice(lexicon.RUDE)
    elif draw < behavior.rude + behavior.polite:
        opener = rng.choice(lexicon.POLITE)
    has_fillers = rng.random() < behavior.fillers / MEAN_FILLERS_WHERE_ANY
    return Response(
        core=sample_core(meaning, behavior, rng),
        opener=opener,
        fillers=random_fillers(rng.randint(1, lexicon.MAX_FILLERS) if has_fillers else 0, rng),
        boilerplate=rng.choice(lexicon.BOILERPLATE) if rng.random() < behavior.boilerplate else "",
    )


def demonstrations(settings: CourtesyData, rng: Random) -> list[Demonstration]:
    """`settings.demonstrations` responses of the demonstrators to random training prompts.

    Raises:
        DataError: the demonstrators' rates contradict each other or the grammar.
    """
    behavior = demonstrator(settings.demonstrator)
    drawn = rng.choices(split_table()["train"], k=settings.demonstrations)
    return [Demonstration(as_prompt(text), render(sample_response(meaning, behavior, rng))) for text, meaning in drawn]
