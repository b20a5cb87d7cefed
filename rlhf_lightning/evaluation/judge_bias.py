"""Biases of a judge on pairs with human labels, and rules that prefer a response without reading it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlhf_lightning.evaluation.preference_accuracy import Floats, wins
from rlhf_lightning.evaluation.statistics import bootstrap_mean, bootstrap_statistic, paired_difference


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """Two responses to a prompt, A and B, judged by a person and by a judge.

    Which response is A must have nothing to do with which one is better: draw it.

    Attributes:
        group: what its pairs are resampled together with in the bootstrap: the prompt.
        responses: A and B.
        human_prefers_a: None where people prefer neither.
        probability: the judge's P(A is better), over all that it was asked about the pair; None where it gave no label.
        principle: what it was asked about; None: the label itself, over all the principles that it goes by.
        questions: how many it was asked.
        unanswered: of them, those where its options had too little probability to count (a parse failure).
        mass: the mean probability of the options together, over the questions.
        as_asked: P(A is better) when A was shown first, and when B was; None where it was not asked so, or did not
            answer. A pointwise judge sees one response at a time and has neither.
        own: which of the two the judge's own model wrote; None for neither, both or unknown.
    """

    group: Hashable
    responses: tuple[str, str]
    human_prefers_a: bool | None
    probability: float | None
    principle: str | None
    questions: int
    unanswered: int
    mass: float
    as_asked: tuple[float | None, float | None] = (None, None)
    own: Literal["a", "b"] | None = None


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """One response, labeled by a person and by a pointwise judge as following a principle or not.

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


BASELINES = {
    "longer": "the longer response",
    "shorter": "the shorter response",
    "first": "response A, whatever it says",
    "refusing": "the response with words of refusal",
    "not_refusing": "the response without words of refusal",
}
"""Description of the response that each rule prefers."""

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


def has_refusal_words(response: str) -> bool:
    """True if a response contains one of `REFUSALS`."""
    text = " ".join(response.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    return any(phrase in text for phrase in REFUSALS)


def baseline_scores(pairs: Sequence[JudgedPair]) -> dict[str, Floats]:
    """By rule, what it says of each pair: positive for A, negative for B, 0 where it does not decide.

    Lengths are in characters.
    """
    longer = np.asarray([len(pair.responses[0]) - len(pair.responses[1]) for pair in pairs], dtype=np.float64)
    refuses = np.asarray(
        [[has_refusal_words(response) for response in pair.responses] for pair in pairs], dtype=np.float64
    )
    refusing = refuses[:, 0] - refuses[:, 1]
    scores = (longer, -longer, np.ones(len(pairs)), refusing, -refusing)
    return dict(zip(BASELINES, scores, strict=True))


Figures = dict[str, Any]

FEWEST_DISAGREEMENTS = 10
"""With fewer there is no telling whether a judge goes by length or by what people prefer, which may go along with it:
about ten rare outcomes a coefficient are needed (Peduzzi et al. 1996)."""
RIDGE = 0.01
"""The penalty in the length fit: a normal prior of variance 100, which keeps the coefficient of a judge that goes by
length alone finite, and hardly moves any other."""
MOST_STEPS = 50
CONVERGED = 1e-8


def position_bias(pairs: Sequence[JudgedPair], samples: int, seed: int) -> Figures:
    """Position bias of a judge. Empty if no question was pairwise.

    Returns:
        `first_slot_rate`: how often it prefers the response shown first, over all its answers (one half: no bias on
        average); `same_slot_rate`: of the pairs asked in both orders, in how many it names the same place both times,
        so that its answer was the place's and not the response's; `both_orders`: how many those are. Ties count half.
    """
    first_slot: list[float] = []
    places: list[object] = []
    for pair in pairs:
        a_first, b_first = pair.as_asked
        named = [first - 0.5 for first in (a_first, None if b_first is None else 1.0 - b_first) if first is not None]
        first_slot += wins(np.asarray(named))
        places += [pair.group] * len(named)
    if not first_slot:
        return {}
    rate = bootstrap_mean(first_slot, samples, seed, places)
    both = [(pair.group, a, b) for pair in pairs for a, b in [pair.as_asked] if a is not None and b is not None]
    # Naming A when it is first, then B when that is: P(A) was above one half, then below it.
    same = wins(np.asarray([(0.5 - a) * (b - 0.5) for _, a, b in both]))
    figures: Figures = {"first_slot_rate": rate.mean, "first_slot_rate_ci": rate.interval, "both_orders": len(both)}
    if both:
        in_both = bootstrap_mean(same, samples, seed, [group for group, *_ in both])
        figures |= {"same_slot_rate": in_both.mean, "same_slot_rate_ci": in_both.interval}
    return figures


def length_bias(pairs: Sequence[JudgedPair], samples: int, seed: int) -> Figures:
    """Length bias of a judge where people's preference is equal.

    A logistic fit of its choice on the human label and the log-length difference (characters, plus one).

    Args:
        pairs: with a label of both, person and judge.

    Returns:
        `length_bias`: by how much the log-odds of choosing a response grow when it is twice as long; 0: not at all.
        Empty where the two disagree on too few pairs to tell, or no two responses differ in length.
    """
    human = np.asarray([1.0 if pair.human_prefers_a else -1.0 for pair in pairs])
    choices = np.asarray(wins(np.asarray([_decided(pair) for pair in pairs])))
    if np.sum(human * (choices - 0.5) < 0.0) < FEWEST_DISAGREEMENTS:
        return {}
    lengths = np.asarray([[len(response) + 1.0 for response in pair.responses] for pair in pairs])
    doublings = np.log2(lengths[:, 0] / lengths[:, 1])
    if not doublings.any():
        return {}
    features = np.stack([np.ones(len(pairs)), human, doublings], axis=1)
    estimate = bootstrap_statistic(
        lambda weights: logistic_fit(features, choices, weights, RIDGE)[:, 2],
        [pair.group for pair in pairs],
        samples,
        seed,
    )
    return {"length_bias": estimate.mean, "length_bias_ci": estimate.interval}


def self_preference(pairs: Sequence[JudgedPair], samples: int, seed: int) -> Figures:
    """The judge's preference rate for its own model's responses, minus that of people. Empty if unknown.

    Args:
        pairs: with a label of both, person and judge.

    Returns:
        `own_pairs`, `own_rate` (the judge's), `human_own_rate`, and their difference `self_preference`.
    """
    known = [pair for pair in pairs if pair.own is not None]
    if not known:
        return {}
    sign = np.asarray([1.0 if pair.own == "a" else -1.0 for pair in known])
    by_judge = wins(sign * np.asarray([_decided(pair) for pair in known]))
    by_people = wins(sign * np.asarray([1.0 if pair.human_prefers_a else -1.0 for pair in known]))
    excess = paired_difference(by_judge, by_people, samples, seed, [pair.group for pair in known])
    return {
        "own_pairs": len(known),
        "own_rate": float(np.mean(by_judge)),
        "human_own_rate": float(np.mean(by_people)),
        "self_preference": excess.mean,
        "self_preference_ci": excess.interval,
    }


def logistic_fit(features: Floats, outcomes: Floats, weights: Floats, ridge: float) -> Floats:
    """Coefficients of penalized logistic regressions, by Newton's method.

    Each maximizes sum_i w_i [y_i log p_i + (1 - y_i) log(1 - p_i)] - ridge / 2 |beta|^2, p = sigmoid(x . beta).

    Args:
        features: (observations, coefficients), a column of ones among them where there is an intercept.
        outcomes: (observations,), 0 to 1.
        weights: (fits, observations): the same data, each time counted otherwise.

    Returns:
        (fits, coefficients).
    """
    size = features.shape[1]
    squares = (features[:, :, None] * features[:, None, :]).reshape(len(features), size * size)
    coefficients = np.zeros((len(weights), size))
    for _ in range(MOST_STEPS):
        # By tanh, since exp overflows.
        predicted = 0.5 * (1.0 + np.tanh(0.5 * coefficients @ features.T))
        slope = (weights * (outcomes - predicted)) @ features - ridge * coefficients
        curvature = ((weights * predicted * (1.0 - predicted)) @ squares).reshape(-1, size, size) + ridge * np.eye(size)
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        coefficients = coefficients + step
        if np.abs(step).max() < CONVERGED:
            break
    return coefficients


def _decided(pair: JudgedPair) -> float:
    """Positive where the judge prefers A."""
    assert pair.probability is not None
    return pair.probability - 0.5
