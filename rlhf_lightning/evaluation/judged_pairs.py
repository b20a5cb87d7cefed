"""Judgements of pairs that have human labels: the records that a judge's calibration is computed from."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """Two replies to a prompt, A and B, judged by a person and by a judge.

    Which reply is A must have nothing to do with which one is better: draw it.

    Attributes:
        group: what its pairs are resampled together with in the bootstrap: the prompt.
        replies: A and B.
        human_prefers_a: None where people prefer neither.
        probability: the judge's P(A is better), over all that it was asked about the pair; None where it gave no label.
        principle: what it was asked about; None: the label itself, over all the principles that it goes by.
        questions: how many it was asked.
        unanswered: of them, those where its options had too little probability to count (a parse failure).
        mass: the mean probability of the options together, over the questions.
        as_asked: P(A is better) when A was shown first, and when B was; None where it was not asked so, or did not
            answer. A pointwise judge sees one reply at a time and has neither.
        own: which of the two the judge's own model wrote; None for neither, both or unknown.
    """

    group: Hashable
    replies: tuple[str, str]
    human_prefers_a: bool | None
    probability: float | None
    principle: str | None
    questions: int
    unanswered: int
    mass: float
    as_asked: tuple[float | None, float | None] = (None, None)
    own: Literal["a", "b"] | None = None


@dataclass(frozen=True, slots=True)
class JudgedReply:
    """One reply, labelled by a person and by a pointwise judge as following a principle or not.

    Attributes:
        group: its prompt.
        human_yes: whether it does, to the person.
        probability: the judge's P(yes); None where its options had too little probability to count.
        mass: the probability of the options together.
    """

    group: Hashable
    principle: str
    human_yes: bool
    probability: float | None
    mass: float
