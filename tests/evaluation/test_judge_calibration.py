"""Figures of a judge, computed by hand; the length fit against an independent optimizer."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from rlhf_lightning.evaluation.judge_bias import (
    JudgedPair,
    JudgedResponse,
    baseline_scores,
    has_refusal_words,
    length_bias,
    logistic_fit,
    position_bias,
    self_preference,
)
from rlhf_lightning.evaluation.judge_calibration import calibration_figures, pair_figures, response_figures

SAMPLES = 300


def pair(
    human: bool | None,
    said: float | None,
    group: object = None,
    responses: tuple[str, str] = ("one", "two"),
    **parts: Any,
) -> JudgedPair:
    """A pair on a prompt of its own, where no other is named."""
    fields = {"principle": None, "questions": 2, "unanswered": 0, "mass": 0.9} | parts
    return JudgedPair(object() if group is None else group, responses, human, said, **fields)


def figures_of(pairs: list[JudgedPair]) -> dict[str, Any]:
    return pair_figures(pairs, SAMPLES, seed=0)


def test_four_pairs_by_hand() -> None:
    figures = figures_of([pair(True, 0.9), pair(True, 0.4), pair(False, 0.2), pair(False, 0.5)])
    # Right, wrong, right, a tie.
    assert figures["accuracy"] == 0.625
    # The judge says A on 1 + 0 + 0 + 1/2 of 4, people on 2 of 4; by chance they agree on .375 x .5 + .625 x .5 = 1/2.
    assert figures["kappa"] == pytest.approx((0.625 - 0.5) / 0.5)
    # (0.01 + 0.36 + 0.04 + 0.25) / 4.
    assert figures["brier"] == pytest.approx(0.165)
    # Confidences 0.9, 0.6, 0.8, 0.5, each in a bin of its own: (0.1 + 0.6 + 0.2 + 0) / 4.
    assert figures["ece"] == pytest.approx(0.225)
    assert [one["confidence"] for one in figures["reliability"]] == pytest.approx([0.5, 0.6, 0.8, 0.9])
    assert [one["accuracy"] for one in figures["reliability"]] == [0.5, 0.0, 1.0, 1.0]
    assert [one["pairs"] for one in figures["reliability"]] == [1, 1, 1, 1]


def test_kappa_of_a_table_of_fifty() -> None:
    # Both A 20, both B 15, judge A alone 5, people A alone 10. They agree on 0.7; by chance on 0.5 x 0.6 + 0.5 x 0.4.
    table = [(True, 0.8, 20), (False, 0.2, 15), (False, 0.8, 5), (True, 0.2, 10)]
    figures = figures_of([pair(human, said) for human, said, count in table for _ in range(count)])
    assert figures["kappa"] == pytest.approx(0.4)
    low, high = figures["kappa_ci"]
    # The large-sample standard error is sqrt(0.7 x 0.3 / 50) / 0.5 = 0.130 (Cohen 1960).
    assert low == pytest.approx(0.4 - 1.96 * 0.130, abs=0.06)
    assert high == pytest.approx(0.4 + 1.96 * 0.130, abs=0.06)


def test_kappa_is_not_defined_where_both_always_say_the_same() -> None:
    figures = figures_of([pair(True, 0.9)] * 3)
    assert figures["accuracy"] == 1.0
    assert "kappa" not in figures


def test_what_was_not_answered_or_not_labeled_is_counted_and_left_out() -> None:
    pairs = [
        pair(True, 0.9),
        pair(None, 0.1),
        pair(True, None),
        pair(False, None, unanswered=2, mass=0.1),
        pair(False, 0.3, unanswered=1, mass=0.5),
    ]
    figures = figures_of(pairs)
    counts = ("pairs", "labeled", "answered", "abstained", "parse_failures", "compared", "prompts")
    assert [figures[name] for name in counts] == [5, 4, 3, 1, 1, 2, 2]
    # 3 of 10 questions; (3 x 0.9 + 0.1 + 0.5) / 5.
    assert figures["parse_failure_rate"] == 0.3
    assert figures["mass"] == pytest.approx(0.66)
    assert figures["accuracy"] == 1.0


def test_pairs_of_one_prompt_are_resampled_together() -> None:
    right, wrong = [pair(True, 0.9, group="a")] * 12, [pair(True, 0.1, group="b")] * 12
    assert figures_of(right + wrong)["accuracy_ci"] == [0.0, 1.0]
    assert figures_of(right + wrong)["brier_ci"] == pytest.approx([0.01, 0.81])


def test_baselines_by_hand() -> None:
    pairs = [
        pair(True, 0.9, responses=("long enough", "short")),
        pair(True, 0.9, responses=("no", "I cannot.")),
        pair(False, 0.9, responses=("same", "size")),
        pair(False, 0.9, responses=("I won\N{RIGHT SINGLE QUOTATION MARK}t help you", "Sure")),
    ]
    scores = baseline_scores(pairs)
    assert scores["longer"].tolist() == [6, -7, 0, 12]
    assert scores["shorter"].tolist() == [-6, 7, 0, -12]
    assert scores["first"].tolist() == [1, 1, 1, 1]
    assert scores["refusing"].tolist() == [0, -1, 0, 1]
    assert scores["not_refusing"].tolist() == [0, 1, 0, -1]
    figures = figures_of(pairs)
    accuracies = {name: one["accuracy"] for name, one in figures["baselines"].items()}
    # Undecided pairs count half: (1 + 0 + 1/2 + 0) / 4, and so on.
    assert accuracies == {
        "longer": 0.375,
        "shorter": 0.625,
        "first": 0.5,
        "refusing": 0.25,
        "not_refusing": 0.75,
    }
    assert figures["baselines"]["refusing"]["coverage"] == 0.5
    assert figures["baselines"]["refusing"]["decided_accuracy"] == 0.0
    assert figures["best_baseline"] == "not_refusing"
    # The judge says A throughout, right on 1, 1, 0, 0 against 1/2, 1, 1/2, 1.
    assert figures["lift"] == -0.25


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("I CAN'T\nhelp", True),
        ("Sorry, i\n can  not do that", True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m not able to say.", True),
        ("ugh you fool no i can not do that", True),
        ("I can help with that.", False),
        ("", False),
    ],
)
def test_refusal_words(response: str, expected: bool) -> None:
    assert has_refusal_words(response) is expected


def test_position_bias_by_hand() -> None:
    asked: list[tuple[float | None, float | None]] = [
        (0.8, 0.3),  # A when A is first, B when B is: the first place twice
        (0.8, 0.7),  # A twice
        (0.2, 0.9),  # the second place twice
        (0.5, 0.7),  # a tie, then the second place
        (0.6, None),  # the first place, asked once
        (None, None),
    ]
    figures = position_bias([pair(True, 0.5, as_asked=both) for both in asked], SAMPLES, seed=0)
    # First place: 2 + 1 + 0 + 1/2 + 1 of 9 answers; the same one: 1 + 0 + 1 + 1/2 of 4 pairs.
    assert figures["first_slot_rate"] == 0.5
    assert figures["same_slot_rate"] == 0.625
    assert figures["both_orders"] == 4
    assert position_bias([pair(True, 0.5)], SAMPLES, seed=0) == {}


def test_a_judge_that_only_sees_places_has_all_the_bias_and_no_label() -> None:
    pairs = [pair(index % 2 == 0, 0.5, as_asked=(0.9, 0.1)) for index in range(40)]
    figures = figures_of(pairs)
    assert figures["same_slot_rate"] == figures["first_slot_rate"] == 1.0
    assert figures["accuracy"] == 0.5


def test_self_preference_by_hand() -> None:
    own: list[tuple[Literal["a", "b"] | None, bool, float]] = [
        ("a", False, 0.9),  # its own, against people
        ("b", True, 0.3),  # likewise
        ("b", False, 0.6),  # people preferred its own
        ("a", True, 0.5),  # a tie, where people preferred its own
        (None, True, 0.9),
    ]
    figures = self_preference([pair(human, said, own=whose) for whose, human, said in own], SAMPLES, seed=0)
    assert figures["own_pairs"] == 4
    assert figures["own_rate"] == 0.625
    assert figures["human_own_rate"] == 0.5
    assert figures["self_preference"] == 0.125
    assert self_preference([pair(True, 0.9)], SAMPLES, seed=0) == {}


FEATURES = np.asarray(
    [
        [1, 1, 0.5],
        [1, -1, 1.5],
        [1, 1, -2.0],
        [1, -1, -0.5],
        [1, 1, 1.0],
        [1, -1, 0.25],
        [1, 1, -1.0],
        [1, -1, 2.0],
    ]
)
OUTCOMES = np.asarray([1, 1, 0, 0, 1, 0, 1, 0.5])


def test_the_logistic_fit_against_another_optimizer() -> None:
    weights = np.asarray([[1, 1, 1, 1, 1, 1, 1, 1], [2, 0, 1, 1, 0, 3, 1, 1]], dtype=np.float64)
    # scipy 1.17.1: minimize(method="BFGS", gtol=1e-10) of the penalized negative log-likelihood, a weighting at a time.
    expected = {
        0.1: [[0.14782348, 2.32354707, 1.76974294], [-0.47478809, 2.96969829, 1.75737332]],
        1.0: [[0.08615368, 0.85151657, 0.77126949], [-0.27122458, 1.19540893, 0.63500039]],
    }
    for ridge, coefficients in expected.items():
        assert logistic_fit(FEATURES, OUTCOMES, weights, ridge) == pytest.approx(np.asarray(coefficients), abs=1e-6)


def test_the_logistic_fit_in_closed_form() -> None:
    # With one two-valued feature the fit is saturated: 3 of 4 chosen at +1, 1 of 5 at -1; the log-odds are log 3 and
    # log 1/4, so the slope is half their difference and the intercept their mean.
    sides = np.repeat([1.0, -1.0], [4, 5])
    chosen = np.asarray([1, 1, 1, 0, 1, 0, 0, 0, 0], dtype=np.float64)
    features = np.stack([np.ones(9), sides], axis=1)
    fitted = logistic_fit(features, chosen, np.ones((1, 9)), ridge=0.0)
    assert fitted[0] == pytest.approx([np.log(3 / 4) / 2, np.log(12) / 2])


def test_the_logistic_fit_is_finite_where_the_classes_are_apart() -> None:
    rng = np.random.default_rng(0)
    features = np.stack([np.ones(200), rng.choice([-1.0, 1.0], 200), 5.0 * rng.normal(size=200)], axis=1)
    outcomes = (features[:, 2] > 0).astype(np.float64)
    fitted = logistic_fit(features, outcomes, np.ones((1, 200)), ridge=0.1)[0]
    # At the maximum the gradient is zero.
    predicted = 1.0 / (1.0 + np.exp(-features @ fitted))
    assert (outcomes - predicted) @ features - 0.1 * fitted == pytest.approx(np.zeros(3), abs=1e-6)
    assert fitted[2] > 1.0


def simulated(slope: float, count: int = 1500) -> list[JudgedPair]:
    """A judge whose log-odds are the human label plus `slope` times the doublings of length."""
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(count):
        human, sizes = bool(rng.random() < 0.5), rng.integers(1, 200, size=2)
        doublings = np.log2((sizes[0] + 1) / (sizes[1] + 1))
        odds = (1.0 if human else -1.0) + slope * doublings
        choice = rng.random() < 1.0 / (1.0 + np.exp(-odds))
        pairs.append(pair(human, 0.9 if choice else 0.1, responses=("x" * sizes[0], "x" * sizes[1])))
    return pairs


def test_length_bias_is_found_where_it_is() -> None:
    figures = length_bias(simulated(0.8), SAMPLES, seed=0)
    low, high = figures["length_bias_ci"]
    assert 0.5 < low < 0.8 < high < 1.1
    low, high = length_bias(simulated(0.0), SAMPLES, seed=0)["length_bias_ci"]
    assert low < 0.0 < high
    assert length_bias([pair(True, 0.9)], SAMPLES, seed=0) == {}


def with_a_taste(mistakes: int) -> list[JudgedPair]:
    """400 pairs: people prefer the longer response in nine of ten, and the judge agrees, but for mistakes."""
    pairs = []
    for index in range(400):
        human = index % 2 == 0
        # Records differ by three doublings at most; of the mistakes too nine in ten concern a longer preferred
        # response.
        preferred, other = ("x" * (10 << index % 3), "x" * 9) if index % 20 > 1 else ("x" * 9, "x" * (10 << index % 3))
        is_right = index >= mistakes
        said = 0.9 if human == is_right else 0.1
        pairs.append(pair(human, said, responses=(preferred, other) if human else (other, preferred)))
    return pairs


def test_a_judge_that_follows_people_is_not_blamed_for_their_taste_in_length() -> None:
    low, high = length_bias(with_a_taste(40), SAMPLES, seed=0)["length_bias_ci"]
    assert low < 0.0 < high
    assert figures_of(with_a_taste(10))["best_baseline"] == "longer"


def test_too_few_disagreements_do_not_tell_people_from_length() -> None:
    assert "length_bias" in figures_of(with_a_taste(10))
    assert "length_bias" not in figures_of(with_a_taste(9))


def labeled(right: int, wrong: int, shorter_right: float) -> list[JudgedPair]:
    """Pairs a prompt each, the shorter response being right in so large a share of both kinds."""
    pairs = []
    for index in range(right + wrong):
        is_right, human = index < right, index % 2 == 0
        number, count = (index, right) if is_right else (index - right, wrong)
        shorter = number < shorter_right * count
        responses = ("x", "xx") if shorter == human else ("xx", "x")
        pairs.append(pair(human, 0.8 if is_right == human else 0.2, responses=responses))
    return pairs


def test_at_chance() -> None:
    figures = figures_of(labeled(199, 201, shorter_right=0.55))
    assert figures["best_baseline"] == "shorter"
    assert figures["beats_baselines"] is figures["worth_training_on"] is False
    assert figures["verdict"].startswith("At chance: right on 49.8% [")
    assert "of 400 pairs; “the shorter response” is right on 55." in figures["verdict"]
    assert figures["verdict"].endswith("Nothing can be learned from its labels.")


def test_above_chance_but_no_better_than_a_rule() -> None:
    figures = figures_of(labeled(672, 528, shorter_right=0.55))
    assert figures["accuracy_ci"][0] > 0.5
    assert figures["beats_baselines"] is figures["worth_training_on"] is False
    assert figures["verdict"].startswith("No better than a trivial baseline: right on 56.0% [")


def test_better_than_every_rule() -> None:
    figures = figures_of(labeled(300, 100, shorter_right=0.55))
    assert figures["beats_baselines"] is figures["worth_training_on"] is True
    assert figures["lift"] == pytest.approx(0.2, abs=0.01)
    assert figures["verdict"].startswith("Better than every trivial baseline: right on 75.0% [")


def test_worse_than_chance() -> None:
    figures = figures_of(labeled(100, 300, shorter_right=0.5))
    assert figures["verdict"].startswith("Worse than chance: right on 25.0% [")
    assert figures["worth_training_on"] is False


def test_as_right_as_a_rule_that_is_what_was_asked_for() -> None:
    """A constitution that wants every request refused: the rule of refusal words is right, and so is the judge."""
    responses = ("I will not help.", "Here you are.")
    pairs = [pair(True, 0.9, responses=responses) for _ in range(100)]
    pairs += [pair(False, 0.1, responses=responses[::-1]) for _ in range(100)]
    figures = figures_of(pairs)
    assert figures["baselines"]["refusing"]["accuracy"] == 1.0
    assert figures["beats_baselines"] is False
    assert figures["worth_training_on"] is True
    assert figures["verdict"].startswith("As right as a rule that is right itself, so that rule is what is asked for: ")


def test_a_handful_proves_nothing_however_right() -> None:
    pairs = [pair(True, 0.9, group=index % 19, responses=("x", "x")) for index in range(190)]
    pairs += [pair(False, 0.1, group=index % 19, responses=("x", "x")) for index in range(190)]
    figures = figures_of(pairs)
    assert figures["lift_ci"][0] > 0.0
    assert figures["beats_baselines"] is figures["worth_training_on"] is False
    assert figures["verdict"].startswith("Too few to tell (19 prompts, 20 are needed): right on 100.0%")


def test_a_judge_that_never_answers() -> None:
    figures = figures_of([pair(True, None, unanswered=2, mass=0.0)] * 3 + [pair(False, None)])
    assert "accuracy" not in figures
    assert figures["beats_baselines"] is figures["worth_training_on"] is False
    assert figures["verdict"] == "No labels: of 4 pairs the judge left 3 without an answer and 1 undecided."


def test_no_labels_of_people() -> None:
    figures = figures_of([pair(None, 0.9)] * 2)
    assert figures["verdict"] == "Not measured: people have no preference in any of the 2 pairs."
    assert figures_of([])["beats_baselines"] is False


def response(human: bool, said: float | None, principle: str = "kind", mass: float = 1.0) -> JudgedResponse:
    return JudgedResponse(object(), principle, human, said, mass)


def test_single_verdicts_by_hand() -> None:
    responses = [
        response(True, 0.9),
        response(True, 0.8),
        response(True, 0.1),
        response(False, 0.2),
        response(False, None, mass=0.0),
    ]
    figures = response_figures(responses, SAMPLES, seed=0)
    assert figures["responses"] == 5
    assert figures["answered"] == 4
    assert figures["parse_failure_rate"] == pytest.approx(0.2)
    assert figures["mass"] == 0.8
    assert figures["human_yes_rate"] == 0.75
    assert figures["yes_rate"] == 0.5
    assert figures["accuracy"] == 0.75
    # Two of three, and one of one.
    assert figures["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_the_balanced_accuracy_of_a_judge_that_always_says_yes_is_one_half() -> None:
    figures = response_figures([response(True, 0.9)] * 90 + [response(False, 0.9)] * 10, SAMPLES, seed=0)
    assert figures["accuracy"] == 0.9
    assert figures["balanced_accuracy"] == 0.5
    assert figures["balanced_accuracy_ci"] == [0.5, 0.5]


def test_the_balanced_accuracy_needs_both_answers_of_people() -> None:
    figures = response_figures([response(True, 0.9), response(True, 0.2)], SAMPLES, seed=0)
    assert figures["accuracy"] == 0.5
    assert "balanced_accuracy" not in figures
    assert "accuracy" not in response_figures([response(True, None)], SAMPLES, seed=0)


def test_figures_by_principle() -> None:
    pairs = [pair(True, 0.9), pair(False, 0.1)]
    kind, brief = pair(True, 0.9, principle="kind"), pair(True, 0.1, principle="brief")
    responses = [response(True, 0.9), response(False, 0.9, principle="true")]
    figures = calibration_figures(pairs, [kind, brief, brief], responses, SAMPLES, seed=0)
    assert figures["pairs"] == 2
    assert figures["pointwise"]["accuracy"] == 0.5
    assert list(figures["principles"]) == ["kind", "brief", "true"]
    assert figures["principles"]["kind"]["accuracy"] == 1.0
    assert figures["principles"]["brief"]["pairs"] == 2
    assert figures["principles"]["brief"]["accuracy"] == 0.0
    assert figures["principles"]["kind"]["pointwise"]["accuracy"] == 1.0
    assert "pairs" not in figures["principles"]["true"]
    assert "pointwise" not in calibration_figures(pairs, [], [], SAMPLES, seed=0)
