"""Accuracy of a reward model on held-out preferences, beside the baselines that use length alone.

A reward model whose accuracy is no better than "the longer response" has learned nothing that PPO should follow:
on HH-RLHF's harmless-base comparisons "the shorter" is right in 55% of the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.evaluation.statistics import bootstrap_mean, paired_difference
from rlhf_lightning.records import Preference

Floats = NDArray[np.float64]

CALIBRATION_BINS = 10
Figures = dict[str, float | list[float] | str | int]


def preference_accuracy(
    preferences: Sequence[Preference],
    chosen_rewards: Sequence[float],
    rejected_rewards: Sequence[float],
    bootstrap_samples: int,
    seed: int,
) -> Figures:
    """Accuracy, margin and calibration of a reward model on held-out pairs.

    Pairs of one prompt are resampled together. A tie counts half. Lengths are in characters.

    Args:
        chosen_rewards: the reward of each preference's chosen response, in the same order.
        rejected_rewards: likewise for the rejected response.

    Returns:
        `pairs`, `accuracy`, `longer_accuracy`, `shorter_accuracy`, each with its `_ci`; `best_baseline` (`longer` or
        `shorter`) and `lift` (accuracy above it, pair by pair, with `lift_ci`); `margin` (chosen minus rejected
        reward, with `margin_ci`); `brier` and `ece` of the probability sigmoid(chosen - rejected).

    Raises:
        ValueError: no pairs, or rewards that are not one a pair.
    """
    if not preferences or not len(preferences) == len(chosen_rewards) == len(rejected_rewards):
        raise ValueError(
            f"{len(preferences)} preferences, {len(chosen_rewards)} chosen and {len(rejected_rewards)} rejected rewards"
        )
    margins = np.asarray(chosen_rewards, dtype=np.float64) - np.asarray(rejected_rewards, dtype=np.float64)
    lengths = np.asarray([len(pair.chosen) - len(pair.rejected) for pair in preferences], dtype=np.float64)
    groups = [pair.prompt for pair in preferences]
    correct = {"": wins(margins), "longer_": wins(lengths), "shorter_": wins(-lengths)}
    figures: Figures = {"pairs": len(preferences)}
    for name, won in correct.items():
        estimate = bootstrap_mean(won, bootstrap_samples, seed, groups)
        figures[f"{name}accuracy"] = estimate.mean
        figures[f"{name}accuracy_ci"] = estimate.interval
    best = "longer" if lengths_favor_longer(lengths) else "shorter"
    lift = paired_difference(correct[""], correct[f"{best}_"], bootstrap_samples, seed, groups)
    margin = bootstrap_mean(margins.tolist(), bootstrap_samples, seed, groups)
    probabilities = 1.0 / (1.0 + np.exp(-margins))
    return figures | {
        "best_baseline": best,
        "lift": lift.mean,
        "lift_ci": lift.interval,
        "margin": margin.mean,
        "margin_ci": margin.interval,
        "brier": float(np.mean((1.0 - probabilities) ** 2)),
        "ece": expected_calibration_error(probabilities),
    }


def lengths_favor_longer(differences: Floats) -> bool:
    """True if the chosen response is more often the longer one; `differences`: chosen minus rejected length."""
    return float(np.mean(np.sign(differences))) >= 0.0


def expected_calibration_error(probabilities: Floats) -> float:
    """Expected calibration error of pairwise choices (Guo et al. 2017, arXiv 1706.04599), 10 bins of [0.5, 1].

    Args:
        probabilities: (pairs,), the probability given to the response that was in fact chosen. The model's confidence
            is that of the response it favors, max(p, 1 - p), and it is right where p > 0.5 (a tie is half right).
    """
    gaps = [count * abs(accuracy - confidence) for confidence, accuracy, count in reliability_bins(probabilities)]
    return sum(gaps) / len(probabilities)


def reliability_bins(probabilities: Floats) -> list[tuple[float, float, int]]:
    """Points of a reliability plot: mean confidence, accuracy and number of pairs of each non-empty bin.

    Args:
        probabilities: as for `expected_calibration_error`.
    """
    confidence = np.maximum(probabilities, 1.0 - probabilities)
    right = np.asarray(wins(probabilities - 0.5))
    places = np.minimum(((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        (float(confidence[places == place].mean()), float(right[places == place].mean()), int((places == place).sum()))
        for place in sorted(set(places.tolist()))
    ]


def wins(differences: Floats) -> list[float]:
    """1 where positive, 0 where negative, one half for a tie."""
    won: list[float] = ((np.sign(differences) + 1.0) / 2.0).tolist()
    return won
