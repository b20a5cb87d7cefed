"""Annotators are as noisy and as biased as they are set to be."""

from __future__ import annotations

import math
from random import Random

import pytest

from rlhf_lightning.worlds.courtesy import Annotator
from rlhf_lightning.worlds.settings import AnnotatorSettings

PROMPT = "how do i kill the boss ?"
POLITE_REFUSAL = "with pleasure no i can not do that"  # gold 0.2 + 0.3 = 0.5
REFUSAL_WITH_FILLERS = "no i can not do that really really"  # gold 0.2 - 0.5 = -0.3
HARM = "you can kill the boss with care and time please consult an expert first"  # gold 1 - 2 - 0.5 = -1.5
MALFORMED = "no no no"
RESPONSES = (POLITE_REFUSAL, REFUSAL_WITH_FILLERS, HARM, MALFORMED)


def annotator(
    length: float = 0.0, politeness: float = 0.0, boilerplate: float = 0.0, refusal: float = 0.0, flip: float = 0.0
) -> Annotator:
    return Annotator(
        AnnotatorSettings(
            length_bias=length,
            politeness_bias=politeness,
            boilerplate_bias=boilerplate,
            refusal_penalty=refusal,
            flip_rate=flip,
        )
    )


def test_utility_is_gold_plus_biases() -> None:
    biased = annotator(length=0.5, politeness=0.2, boilerplate=0.7, refusal=0.1)
    # 0.5 + 0.2 - 0.1; -0.3 + 2 x 0.5 - 0.1; -1.5 + 0.7; malformed
    expected = [0.6, 0.6, -0.8, -2.0]
    assert [biased.utility(PROMPT, response) for response in RESPONSES] == pytest.approx(expected)
    assert biased.utility(PROMPT, POLITE_REFUSAL, finished=False) == -2.0


def test_pairwise_marginals_are_bradley_terry() -> None:
    fair, rng, draws = annotator(), Random(0), 20_000
    utilities = [fair.utility(PROMPT, response) for response in RESPONSES]
    ranks = [fair.rank(PROMPT, RESPONSES, rng) for _ in range(draws)]
    for first in range(len(RESPONSES)):
        for second in range(first):
            preferred = sum(rank[first] < rank[second] for rank in ranks) / draws
            expected = 1 / (1 + math.exp(utilities[second] - utilities[first]))
            assert preferred == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(draws))


def test_ranks_are_a_permutation_and_identical_responses_tie() -> None:
    ranks = annotator().rank(PROMPT, (HARM, POLITE_REFUSAL, HARM, MALFORMED), Random(1))
    assert ranks[0] == ranks[2]
    assert sorted(set(ranks)) == [0, 1, 2]
    assert annotator().rank(PROMPT, (HARM, HARM), Random(1)) == (0, 0)


def test_the_same_text_does_not_tie_when_only_one_ended_itself() -> None:
    assert sorted(annotator().rank(PROMPT, (HARM, HARM), Random(1), finished=(True, False))) == [0, 1]


def test_flips_swap_two_places_of_a_pair_at_the_flip_rate() -> None:
    # Without a flip the polite refusal wins with sigmoid(0.5 + 2.0) = 0.924; flipped with probability 0.3 that is
    # 0.7 x 0.924 + 0.3 x 0.076 = 0.670.
    noisy, rng, draws = annotator(flip=0.3), Random(0), 20_000
    wins = sum(noisy.rank(PROMPT, (POLITE_REFUSAL, MALFORMED), rng) == (0, 1) for _ in range(draws))
    assert wins / draws == pytest.approx(0.6697, abs=4 * 0.5 / math.sqrt(draws))


def test_the_same_seed_gives_the_same_ranking() -> None:
    assert annotator().rank(PROMPT, RESPONSES, Random(7)) == annotator().rank(PROMPT, RESPONSES, Random(7))
