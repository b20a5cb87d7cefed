"""Preference labels from a judge's answers, under a constitution.

Pairwise, P(A) is the share of option A in the mass of both options, averaged over both orders of the responses, which
takes the position's bias out. Pointwise, each response gets log-odds l of "yes, it follows the principle", and
P(A) = sigmoid((l_A - l_B) / temperature). A label averages over principles by weight (arXiv 2212.08073, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_lightning.constitutions.rendering import JudgePrompt, Phrasing, applicable, sample_principles
from rlhf_lightning.constitutions.settings import ConstitutionSettings, Principle
from rlhf_lightning.feedback.judge_model import Answer, JudgeModel, Question
from rlhf_lightning.feedback.settings import JudgeSection
from rlhf_lightning.records import Prompt

TINY = 1e-9
"""Added to an option's mass before its logarithm is taken."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to compare.

    Attributes:
        number: of the pair in its stage; decides what is drawn for it.
        kind: of the prompt; None if unknown: every principle applies.
    """

    number: int
    prompt: Prompt
    first: str
    second: str
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Opinion:
    """A judge's opinion of a pair under one principle.

    Attributes:
        probability: that the first response is the better one; None where it did not answer.
        as_asked: the same with the first response shown first, and shown second; None where it was not asked so.
        yes: pointwise: the probability that each response follows the principle; None where it was not asked so.
        mass: the mean probability of the options together.
    """

    principle: str
    probability: float | None
    as_asked: tuple[float | None, float | None]
    yes: tuple[float, float] | None
    mass: float


@dataclass(frozen=True, slots=True)
class Label:
    """A judge's label of a pair.

    Attributes:
        probability: that the first response is the better one; None where the judge abstains.
        reason: why it abstains: `unanswered`, `orders disagree`, `too close`, `no principle applies`.
        raw: the average before clamping and hardening; None where nothing was answered.
    """

    probability: float | None
    reason: str | None
    raw: float | None
    opinions: tuple[Opinion, ...]

    @property
    def as_asked(self) -> tuple[float | None, float | None]:
        """The first response's probability when shown first and when shown second, averaged over the principles."""
        first, second = (
            _mean([share for opinion in self.opinions if (share := opinion.as_asked[shown]) is not None])
            for shown in (0, 1)
        )
        return first, second

    @property
    def mass(self) -> float:
        """The mean option mass of all that was asked for it; 0 where nothing was."""
        return _mean([opinion.mass for opinion in self.opinions]) or 0.0


class Labeler:
    """Labels pairs.

    Args:
        judge: answers.
        constitution: whose principles it goes by.
        phrasing: how they are asked.
        settings: how answers become labels.
        seed: decides which principles are drawn.

    Attributes:
        asked: questions so far.
        tokens: read and written for them.
    """

    def __init__(
        self,
        judge: JudgeModel,
        constitution: ConstitutionSettings,
        phrasing: Phrasing,
        settings: JudgeSection,
        seed: int,
    ) -> None:
        self.judge = judge
        self.constitution = constitution
        self.phrasing = phrasing
        self.settings = settings
        self.seed = seed
        self.asked = 0
        self.tokens = [0, 0]

    def labels(self, pairs: Sequence[Pair]) -> list[Label]:
        """A label for each pair, in order."""
        principles = [self._principles(pair) for pair in pairs]
        examine = self._compare if self.settings.mode == "pairwise" else self._rate
        opinions = examine(pairs, principles)
        return [self._label(own, chosen) for own, chosen in zip(opinions, principles, strict=True)]

    def follows(self, responses: Sequence[tuple[Prompt, str, str | None]]) -> list[dict[str, float | None]]:
        """Probability that each response follows each principle that applies to it.

        Args:
            responses: prompt, response, and the kind of the prompt.

        Returns:
            P(yes) to the pointwise question by the principle's id; None where the judge did not answer.
        """
        own = [
            (prompt, response, applicable(self.constitution.principles, kind)) for prompt, response, kind in responses
        ]
        masses = self._verdicts((prompt, response, one) for prompt, response, fitting in own for one in fitting)
        return [
            {one.id: self._share(masses[prompt, response, one.id]) for one in fitting}
            for prompt, response, fitting in own
        ]

    def _principles(self, pair: Pair) -> list[Principle]:
        fitting = applicable(self.constitution.principles, pair.kind)
        if self.settings.principles == "all" or len(fitting) < 2:
            return fitting
        return sample_principles(fitting, self.constitution.sampling, chain=pair.number, step=0, seed=self.seed)

    def _compare(self, pairs: Sequence[Pair], principles: Sequence[Sequence[Principle]]) -> list[list[Opinion]]:
        """Pairwise verdicts, in one order or both."""
        orders = (False, True) if self.settings.swap else (False,)
        jobs = [
            (row, principle, swapped) for row, own in enumerate(principles) for principle in own for swapped in orders
        ]

        def ask(job: tuple[int, Principle, bool]) -> JudgePrompt:
            row, principle, swapped = job
            shown = (pairs[row].first, pairs[row].second)
            first, second = shown[::-1] if swapped else shown
            return self.phrasing.pairwise(principle, pairs[row].prompt, first, second, self.settings.cot)

        masses = dict(
            zip(((row, one.id, swapped) for row, one, swapped in jobs), self._ask(map(ask, jobs)), strict=True)
        )

        def opinion(row: int, principle: Principle) -> Opinion:
            straight = masses[row, principle.id, False]
            crossed = masses[row, principle.id, True][::-1] if self.settings.swap else None
            shares = (self._share(straight), self._share(crossed) if crossed is not None else None)
            answered = [share for share in shares if share is not None]
            mass = _mean([sum(one) for one in (straight, crossed) if one is not None])
            return Opinion(principle.id, _mean(answered), shares, None, mass or 0.0)

        return [[opinion(row, principle) for principle in own] for row, own in enumerate(principles)]

    def _rate(self, pairs: Sequence[Pair], principles: Sequence[Sequence[Principle]]) -> list[list[Opinion]]:
        """Pointwise verdicts; a response that is in several pairs is asked about once."""
        masses = self._verdicts(
            (pair.prompt, response, principle)
            for pair, own in zip(pairs, principles, strict=True)
            for principle in own
            for response in (pair.first, pair.second)
        )

        def opinion(pair: Pair, principle: Principle) -> Opinion:
            both = [masses[pair.prompt, response, principle.id] for response in (pair.first, pair.second)]
            yes = [self._share(mass) for mass in both]
            probability = None
            if None not in yes:
                first, second = (_log_odds(mass) for mass in both)
                probability = _sigmoid((first - second) / self.settings.temperature)
            rates = (yes[0], yes[1]) if yes[0] is not None and yes[1] is not None else None
            return Opinion(principle.id, probability, (None, None), rates, sum(map(sum, both)) / 2)

        return [[opinion(pair, principle) for principle in own] for pair, own in zip(pairs, principles, strict=True)]

    def _verdicts(
        self, wanted: Iterable[tuple[Prompt, str, Principle]]
    ) -> dict[tuple[Prompt, str, str], tuple[float, float]]:
        """Mass of yes and of no to whether a response follows a principle, by prompt, response and principle id."""
        jobs = {(prompt, response, principle.id): principle for prompt, response, principle in wanted}
        asked = [
            self.phrasing.pointwise(principle, prompt, response, self.settings.cot)
            for (prompt, response, _), principle in jobs.items()
        ]
        return dict(zip(jobs, self._ask(asked), strict=True))

    def _ask(self, asked: Iterable[JudgePrompt]) -> list[tuple[float, float]]:
        """The options' mass in the judge's answer to each question, averaged over its votes."""
        votes = self.settings.votes
        questions = [
            Question(one.turns, one.options, one.opening, self.settings.cot, one.conclusion, vote)
            for one in asked
            for vote in range(votes)
        ]
        # Principles may share their words (in the courtesy world), and pairs their responses: each is asked once.
        distinct = list(dict.fromkeys(questions))
        given = dict(zip(distinct, self.judge.answers(distinct), strict=True))
        self.asked += len(distinct)
        self.tokens[0] += sum(answer.input_tokens for answer in given.values())
        self.tokens[1] += sum(answer.output_tokens for answer in given.values())
        answers = [given[question] for question in questions]
        return [self._voted(answers[start : start + votes]) for start in range(0, len(answers), votes)]

    def _voted(self, answers: Sequence[Answer]) -> tuple[float, float]:
        """The mean of the votes that were answers; (0, 0) where none was."""
        counted = [answer.mass for answer in answers if self._counts(answer)] or [(0.0, 0.0)]
        return sum(mass[0] for mass in counted) / len(counted), sum(mass[1] for mass in counted) / len(counted)

    def _counts(self, answer: Answer) -> bool:
        return answer.total_mass > 0.0 and answer.total_mass >= self.settings.min_option_mass

    def _share(self, mass: tuple[float, float]) -> float | None:
        return mass[0] / sum(mass) if sum(mass) > 0.0 else None

    def _label(self, opinions: Sequence[Opinion], principles: Sequence[Principle]) -> Label:
        own = tuple(opinions)
        if not own:
            return Label(None, "no principle applies", None, own)
        weights = {principle.id: principle.weight for principle in principles}
        raw = weighted_mean({one.principle: one.probability for one in own}, weights)
        if raw is None:
            return Label(None, "unanswered", None, own)
        label = Label(raw, None, raw, own)
        if self.settings.abstain_on_disagreement and _disagree(*label.as_asked):
            return Label(None, "orders disagree", raw, own)
        if abs(raw - 0.5) < self.settings.abstain_margin:
            return Label(None, "too close", raw, own)
        return Label(self._shaped(raw), None, raw, own)

    def _shaped(self, probability: float) -> float:
        if self.settings.label == "hard":
            return 0.5 if probability == 0.5 else float(probability > 0.5)
        if self.settings.clamp is not None:
            low, high = self.settings.clamp
            return min(max(probability, low), high)
        return probability


def weighted_mean(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The mean of the values that are there; None where none is."""
    present = {name: value for name, value in values.items() if value is not None}
    total = sum(weights[name] for name in present)
    return sum(weights[name] * value for name, value in present.items()) / total if present else None


def _disagree(first: float | None, second: float | None) -> bool:
    """True if the two orders prefer different responses."""
    return first is not None and second is not None and (first - 0.5) * (second - 0.5) < 0.0


def _log_odds(mass: tuple[float, float]) -> float:
    return math.log(mass[0] + TINY) - math.log(mass[1] + TINY)


def _sigmoid(value: float) -> float:
    return 0.5 * (1.0 + math.tanh(value / 2.0))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
