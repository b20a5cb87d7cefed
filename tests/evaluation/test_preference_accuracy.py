"""Reward model accuracy beside its baselines, computed by hand on four pairs."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lightning.evaluation.preference_accuracy import expected_calibration_error, preference_accuracy
from rlhf_lightning.records import Preference, Prompt


def _pair(prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference(Prompt(prompt), chosen, rejected)


PAIRS = [
    _pair("a", "x", "xxx"),
    _pair("b", "xx", "xxx"),
    _pair("c", "xx", "yy"),
    _pair("d", "xxxx", "x"),
]


def test_four_pairs_by_hand() -> None:
    figures = preference_accuracy(PAIRS, [2.0, 0.0, 1.0, 1.5], [0.0, 1.0, 1.0, 0.5], bootstrap_samples=1000, seed=0)
    # Margins 2, -1, 0, 1: right, wrong, a tie, right.
    assert figures["accuracy"] == 0.625
    # Chosen minus rejected length -2, -1, 0, 3.
    assert figures["longer_accuracy"] == 0.375
    assert figures["shorter_accuracy"] == 0.625
    assert figures["best_baseline"] == "shorter"
    # Pair by pair: 1 - 1, 0 - 1, 1/2 - 1/2, 1 - 0.
    assert figures["lift"] == 0.0
    assert figures["margin"] == 0.5
    # sigmoid: 0.880797, 0.268941, 0.5, 0.731059; squares of what is missing: 0.014209, 0.534447, 0.25, 0.072329.
    assert figures["brier"] == pytest.approx(0.217746, abs=1e-6)
    assert figures["pairs"] == 4


def test_pairs_of_one_prompt_are_resampled_together() -> None:
    right, wrong = [_pair("same", "good", "bad")] * 6, [_pair("other", "good", "bad")] * 6
    chosen, rejected = [1.0] * 6 + [0.0] * 6, [0.0] * 6 + [1.0] * 6
    together = preference_accuracy(right + wrong, chosen, rejected, bootstrap_samples=1000, seed=0)
    assert together["accuracy_ci"] == [0.0, 1.0]
    apart = [_pair(str(index), "good", "bad") for index in range(12)]
    alone = preference_accuracy(apart, chosen, rejected, bootstrap_samples=1000, seed=0)["accuracy_ci"]
    assert isinstance(alone, list)
    assert 0.1 < alone[0] < 0.5 < alone[1] < 0.9


def test_a_model_that_only_knows_length_has_no_lift() -> None:
    lengths = [float(len(pair.chosen)) for pair in PAIRS], [float(len(pair.rejected)) for pair in PAIRS]
    figures = preference_accuracy(PAIRS, [-x for x in lengths[0]], [-x for x in lengths[1]], 1000, seed=0)
    assert figures["accuracy"] == figures["shorter_accuracy"]
    assert figures["lift_ci"] == [0.0, 0.0]


def test_expected_calibration_error_by_hand() -> None:
    # Confidence 0.9 three times, right twice: |2 - 2.7| = 0.7; confidence 0.6 once, right: 0.4. Over four pairs.
    assert expected_calibration_error(np.asarray([0.9, 0.9, 0.1, 0.6])) == pytest.approx(1.1 / 4)


def test_certainty_that_is_always_right_is_calibrated() -> None:
    assert expected_calibration_error(np.ones(5)) == 0.0


def test_rewards_must_match_the_pairs() -> None:
    with pytest.raises(ValueError, match="4 preferences, 3 chosen and 4 rejected rewards"):
        preference_accuracy(PAIRS, [1.0] * 3, [1.0] * 4, 100, seed=0)
    with pytest.raises(ValueError, match="0 preferences"):
        preference_accuracy([], [], [], 100, seed=0)
