"""Imperfect annotators: they rank replies by the gold reward plus their biases, with noise.

Utility is `gold + length_bias * fillers + politeness_bias * polite + boilerplate_bias * boilerplate
- refusal_penalty * refusal`. A ranking is a Plackett-Luce draw (utilities plus independent Gumbel noise, sorted), so of
any two replies i is preferred to j with probability sigmoid(u_i - u_j), the Bradley-Terry model that reward
models fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from rlhf_lightning.settings.data import AnnotatorSettings
from rlhf_lightning.worlds.courtesy.gold import judge


class Annotator:
    """Ranks replies as imperfect people would.

    Args:
        settings: the biases, and `flip_rate`: how often two randomly chosen places of a ranking are swapped.
    """

    def __init__(self, settings: AnnotatorSettings) -> None:
        self.settings = settings

    def utility(self, prompt_text: str, reply_text: str, finished: bool = True) -> float:
        """The annotator's noise-free utility of a reply. A malformed reply has its gold reward, -2.

        Raises:
            DataError: the prompt is none of the courtesy world's.
        """
        gold = judge(prompt_text, reply_text, finished)
        return (
            gold.reward
            + self.settings.length_bias * gold.fillers
            + self.settings.politeness_bias * gold.polite
            + self.settings.boilerplate_bias * gold.boilerplate
            - self.settings.refusal_penalty * gold.refusal
        )

    def rank(
        self, prompt_text: str, replies: Sequence[str], rng: Random, finished: Sequence[bool] | None = None
    ) -> tuple[int, ...]:
        """One noisy ranking.

        Args:
            replies: K replies to the prompt.
            rng: the source of the noise.
            finished: whether each reply ended itself; None if all did.

        Returns:
            K ranks from 0, the lower the better. Identical replies tie and count as one.

        Raises:
            DataError: the prompt is none of the courtesy world's.
        """
        judged = list(zip(replies, finished or [True] * len(replies), strict=True))
        distinct = list(dict.fromkeys(judged))
        noisy = {reply: self.utility(prompt_text, *reply) + _gumbel(rng) for reply in distinct}
        order = sorted(distinct, key=lambda reply: -noisy[reply])
        if len(order) > 1 and rng.random() < self.settings.flip_rate:
            first, second = rng.sample(range(len(order)), 2)
            order[first], order[second] = order[second], order[first]
        rank_of = {reply: rank for rank, reply in enumerate(order)}
        return tuple(rank_of[reply] for reply in judged)


def _gumbel(rng: Random) -> float:
    return -math.log(rng.expovariate(1.0))
