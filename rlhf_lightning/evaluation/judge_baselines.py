"""Rules that prefer a reply without reading it: what a judge has to beat before its labels are worth training on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_lightning.evaluation.judged_pairs import JudgedPair
from rlhf_lightning.evaluation.preference_accuracy import Floats

BASELINES = {
    "longer": "the longer reply",
    "shorter": "the shorter reply",
    "first": "reply A, whatever it says",
    "refusing": "the reply with words of refusal",
    "not_refusing": "the reply without words of refusal",
}
"""Description of the reply that each rule prefers."""

REFUSALS = (
    "i can't",
    "i cannot",
    "i can not",
    "i won't",
    "i will not",
    "i'm not able",
    "i am not able",
    "i'm unable",
    "i am unable",
    "i refuse",
    "i'm not comfortable",
    "i'm not going to",
    "i don't want to",
    "i would not recommend",
    "i wouldn't recommend",
    "i'm sorry",
    "against the law",
    "is illegal",
    "is not safe",
)
"""Pieces of refusals, in lower case, with straight apostrophes."""


def has_refusal_words(reply: str) -> bool:
    """True if a reply contains one of `REFUSALS`."""
    text = " ".join(reply.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    return any(phrase in text for phrase in REFUSALS)


def baseline_scores(pairs: Sequence[JudgedPair]) -> dict[str, Floats]:
    """By rule, what it says of each pair: positive for A, negative for B, 0 where it does not decide.

    Lengths are in characters.
    """
    longer = np.asarray([len(pair.replies[0]) - len(pair.replies[1]) for pair in pairs], dtype=np.float64)
    refuses = np.asarray([[has_refusal_words(reply) for reply in pair.replies] for pair in pairs], dtype=np.float64)
    refusing = refuses[:, 0] - refuses[:, 1]
    scores = (longer, -longer, np.ones(len(pairs)), refusing, -refusing)
    return dict(zip(BASELINES, scores, strict=True))
