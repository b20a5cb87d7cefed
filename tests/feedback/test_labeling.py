"""From answers to labels, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from made_up_constitutions import constitution, principle

from rlhf_lightning.constitutions.rendering import JudgePrompt
from rlhf_lightning.feedback.judge_model import Answer, Question
from rlhf_lightning.feedback.labeling import Label, Labeler, Pair, weighted_mean
from rlhf_lightning.feedback.settings import SelfJudge
from rlhf_lightning.records import Conversation, Message, Prompt

PROMPT = Prompt("what is it ?")
GOOD, BAD = "good", "bad"

Mass = tuple[float, float]


@dataclass
class Scripted:
    """A judge that answers by a function of the last turn's text, and remembers what it was asked."""

    mass: Callable[[str, int], Mass]
    name: str = "scripted"
    asked: list[Question] = field(default_factory=list)

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        self.asked += questions
        return [
            Answer(self.mass(question.turns[-1].content, question.vote), input_tokens=10, output_tokens=1)
            for question in questions
        ]


class Plain:
    """Asks in one line: `ID: first | second`, or `ID: response`."""

    def critique(self, *_: Any) -> Conversation:
        raise AssertionError

    def revision(self, *_: Any) -> Conversation:
        raise AssertionError

    def pairwise(self, principle: Any, _: Prompt, first: str, second: str, __: bool) -> JudgePrompt:
        return self._asked(f"{principle.id}: {first} | {second}", ("A", "B"))

    def pointwise(self, principle: Any, _: Prompt, response: str, __: bool) -> JudgePrompt:
        return self._asked(f"{principle.id}: {response}", ("yes", "no"))

    def _asked(self, text: str, options: tuple[str, str]) -> JudgePrompt:
        return JudgePrompt((Message("user", text),), options, "", "")


def labeler(judge: Scripted, *principles: dict[str, Any], **changes: Any) -> Labeler:
    settings = {
        "kind": "self",
        "model_from": "base",
        "mode": "pairwise",
        "principles": "all",
        "phrasing": "auto",
        "fewshots": "auto",
        "swap": True,
        "label": "soft",
        "clamp": None,
        "abstain_margin": 0.0,
        "abstain_on_disagreement": False,
        "min_option_mass": 0.1,
        "temperature": 1.0,
        "cot": False,
        "votes": 1,
        "max_reasoning_tokens": 8,
        "batch_size": 4,
    }
    own = principles or (principle("kind"),)
    return Labeler(judge, constitution(*own), Plain(), SelfJudge.model_validate({**settings, **changes}), seed=3)


def label(judge: Scripted, *principles: dict[str, Any], first: str = GOOD, second: str = BAD, **changes: Any) -> Label:
    (found,) = labeler(judge, *principles, **changes).labels([Pair(0, PROMPT, first, second)])
    return found


def likes_the_first_slot(_: str, __: int) -> Mass:
    """0.9 of its mass for whatever stands first, half of all its probability elsewhere."""
    return (0.45, 0.05)


def likes_good(text: str, _: int) -> Mass:
    return (0.6, 0.2) if text.endswith("good | bad") else (0.1, 0.3)


def test_both_orders_are_asked_and_averaged() -> None:
    judge = Scripted(likes_good)
    found = label(judge)
    assert [question.turns[-1].content for question in judge.asked] == ["kind: good | bad", "kind: bad | good"]
    # Shown first, good has 0.6 of 0.8; shown second, 0.3 of 0.4: 0.75 both times.
    assert found.probability == pytest.approx(0.75)
    assert found.as_asked == pytest.approx((0.75, 0.75))
    assert found.mass == pytest.approx((0.8 + 0.4) / 2)


def test_a_judge_that_only_sees_the_slot_is_undecided() -> None:
    found = label(Scripted(likes_the_first_slot))
    assert found.probability == pytest.approx(0.5)
    assert found.as_asked == pytest.approx((0.9, 0.1))


def test_without_the_swap_the_slot_decides() -> None:
    judge = Scripted(likes_the_first_slot)
    assert label(judge, swap=False).probability == pytest.approx(0.9)
    assert len(judge.asked) == 1


def test_orders_that_disagree_may_be_left_out() -> None:
    found = label(Scripted(likes_the_first_slot), abstain_on_disagreement=True)
    assert (found.probability, found.reason, found.raw) == (None, "orders disagree", pytest.approx(0.5))
    assert label(Scripted(likes_good), abstain_on_disagreement=True).probability == pytest.approx(0.75)


def test_a_margin_keeps_close_calls_out() -> None:
    judge = Scripted(likes_good)
    assert label(judge, abstain_margin=0.24).probability == pytest.approx(0.75)
    assert label(judge, abstain_margin=0.26).reason == "too close"


def test_labels_are_clamped_or_hardened() -> None:
    judge = Scripted(likes_good)
    assert label(judge, clamp=[0.4, 0.6]).probability == 0.6
    assert label(judge, first=BAD, second=GOOD, clamp=[0.4, 0.6]).probability == 0.4
    assert label(judge, label="hard").probability == 1.0
    assert label(judge, first=BAD, second=GOOD, label="hard").probability == 0.0
    assert label(Scripted(likes_the_first_slot), label="hard").probability == pytest.approx(0.5)


def test_an_answer_without_enough_mass_does_not_count() -> None:
    def only_the_first_order(text: str, _: int) -> Mass:
        return (0.6, 0.2) if text.endswith("good | bad") else (0.02, 0.02)

    judge = Scripted(only_the_first_order)
    assert label(judge).probability == pytest.approx(0.75)  # of the order that was answered
    assert label(judge, swap=False, first=BAD, second=GOOD).reason == "unanswered"
    assert label(judge, min_option_mass=0.9).reason == "unanswered"


def test_principles_are_averaged_by_weight() -> None:
    def by_principle(text: str, _: int) -> Mass:
        good_first = text.endswith("good | bad")
        sure = 0.9 if text.startswith("kind") else 0.6
        return (sure, 1 - sure) if good_first else (1 - sure, sure)

    found = label(Scripted(by_principle), principle("kind", weight=1.0), principle("brief", weight=3.0))
    assert found.probability == pytest.approx((0.9 + 3 * 0.6) / 4)
    assert [opinion.principle for opinion in found.opinions] == ["kind", "brief"]


def test_one_principle_is_drawn_where_one_is_wanted() -> None:
    judge = Scripted(likes_good)
    many = labeler(judge, principle("kind", weight=3.0), principle("brief", weight=1.0), principles="one")
    labels = many.labels([Pair(number, PROMPT, GOOD, BAD) for number in range(400)])
    drawn = [opinion.principle for one in labels for opinion in one.opinions]
    assert len(drawn) == 400
    assert drawn.count("kind") / 400 == pytest.approx(0.75, abs=0.07)  # three standard deviations
    again = labeler(Scripted(likes_good), principle("kind", 3.0), principle("brief"), principles="one")
    assert [one.opinions[0].principle for one in again.labels([Pair(7, PROMPT, GOOD, BAD)])] == [drawn[7]]


def test_a_principle_judges_only_the_prompts_it_applies_to() -> None:
    both = (principle("kind", applies_to=["harm"]), principle("brief"))
    found = labeler(Scripted(likes_good), *both).labels([Pair(0, PROMPT, GOOD, BAD, kind="fact")])
    assert [opinion.principle for opinion in found[0].opinions] == ["brief"]
    none = labeler(Scripted(likes_good), both[0]).labels([Pair(0, PROMPT, GOOD, BAD, kind="fact")])
    assert (none[0].probability, none[0].reason) == (None, "no principle applies")
    unknown = labeler(Scripted(likes_good), *both).labels([Pair(0, PROMPT, GOOD, BAD, kind=None)])
    assert len(unknown[0].opinions) == 2


def test_pointwise_compares_log_odds() -> None:
    def yes(text: str, _: int) -> Mass:
        return (0.8, 0.2) if text.endswith(GOOD) else (0.5, 0.5)

    judge = Scripted(yes)
    found = label(judge, mode="pointwise")
    # log-odds ln 4 and 0: sigmoid(ln 4) = 0.8.
    assert found.probability == pytest.approx(0.8, abs=1e-6)
    assert found.opinions[0].yes == pytest.approx((0.8, 0.5))
    assert label(judge, mode="pointwise", temperature=2.0).probability == pytest.approx(2 / 3, abs=1e-6)


def test_pointwise_asks_once_about_a_response_that_stands_in_several_pairs() -> None:
    judge = Scripted(lambda *_: (0.8, 0.2))
    pairs = [Pair(0, PROMPT, "a", "b"), Pair(1, PROMPT, "a", "c"), Pair(2, PROMPT, "b", "c")]
    labeler(judge, mode="pointwise").labels(pairs)
    assert sorted(question.turns[-1].content for question in judge.asked) == ["kind: a", "kind: b", "kind: c"]


def test_votes_are_averaged_and_those_without_an_answer_left_out() -> None:
    votes = {0: (1.0, 0.0), 1: (0.0, 1.0), 2: (1.0, 0.0), 3: (0.0, 0.0)}
    judge = Scripted(lambda _, vote: votes[vote])
    found = label(judge, cot=True, votes=4, swap=False)
    assert found.probability == pytest.approx(2 / 3)
    assert all(question.reasons for question in judge.asked)


def test_questions_and_tokens_are_counted() -> None:
    own = labeler(Scripted(likes_good), principle("kind"), principle("brief"))
    own.labels([Pair(0, PROMPT, GOOD, BAD), Pair(1, PROMPT, GOOD, BAD), Pair(2, PROMPT, GOOD, "ugly")])
    # Two principles, two orders, two different pairs: the second pair is the first one again.
    assert (own.asked, own.tokens) == (8, [80, 8])


def test_a_weighted_mean_leaves_out_what_is_missing() -> None:
    assert weighted_mean({"a": 1.0, "b": None, "c": 0.0}, {"a": 1.0, "b": 5.0, "c": 3.0}) == pytest.approx(0.25)
    assert weighted_mean({"a": None}, {"a": 1.0}) is None
    assert math.isfinite(weighted_mean({"a": 0.5}, {"a": 1e-9}) or math.nan)
