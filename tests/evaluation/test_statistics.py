"""Bootstrap intervals, against distributions small enough to count by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from rlhf_lightning.evaluation.statistics import (
    NOTHING,
    Floats,
    bootstrap_mean,
    bootstrap_statistic,
    paired_difference,
)

SAMPLES = 4000


def test_equal_values_have_an_interval_without_width() -> None:
    estimate = bootstrap_mean([2.5, 2.5, 2.5], SAMPLES, seed=0)
    assert (estimate.mean, estimate.interval, estimate.count) == (2.5, [2.5, 2.5], 3)


def test_eight_coin_flips_have_the_quantiles_of_the_binomial() -> None:
    # The resampled mean is Binomial(8, 1/2) / 8: P(X <= 0) = 0.4%, P(X <= 1) = 3.5%, so the 2.5% quantile is 1/8.
    estimate = bootstrap_mean([0, 0, 0, 0, 1, 1, 1, 1], SAMPLES, seed=0)
    assert estimate.mean == 0.5
    assert estimate.interval == [1 / 8, 7 / 8]


def test_values_of_one_group_are_resampled_together() -> None:
    # Two groups: both resamples are the first (mean 0) with probability 1/4, both the second (mean 1) with 1/4.
    estimate = bootstrap_mean([0, 0, 0, 0, 1, 1, 1, 1], SAMPLES, seed=0, groups="aaaabbbb")
    assert estimate.interval == [0.0, 1.0]


def test_groups_of_different_sizes_keep_the_mean_of_the_values() -> None:
    # Resamples: aa -> 3/3, ab -> 3/4, bb -> 0/1; each group as often as it is drawn, weighted by its size.
    estimate = bootstrap_mean([1, 1, 1, 0], SAMPLES, seed=0, groups="aaab")
    assert estimate.mean == 0.75
    assert estimate.interval == [0.0, 1.0]


def test_large_samples_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(size=2000)
    estimate = bootstrap_mean(values.tolist(), SAMPLES, seed=0)
    half_width = 1.96 * values.std() / math.sqrt(2000)
    assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(2).normal(size=50).tolist()
    assert bootstrap_mean(values, 500, seed=3) == bootstrap_mean(values, 500, seed=3)
    assert bootstrap_mean(values, 500, seed=3).interval != bootstrap_mean(values, 500, seed=4).interval


def test_memory_is_bounded_by_chunks_without_changing_the_number_of_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_lightning.evaluation import statistics

    monkeypatch.setattr(statistics, "CHUNK", 10)
    assert len(statistics._resampled_means(np.ones(4), np.ones(4), samples=7, seed=0)) == 7


def test_nothing_has_no_mean() -> None:
    estimate = bootstrap_mean([], SAMPLES, seed=0)
    assert math.isnan(estimate.mean)
    assert estimate.count == 0


def test_paired_difference_sees_what_unpaired_noise_hides() -> None:
    before = np.random.default_rng(3).normal(scale=100.0, size=40)
    difference = paired_difference((before + 1.0).tolist(), before.tolist(), SAMPLES, seed=0)
    assert difference.mean == pytest.approx(1.0)
    assert difference.interval == pytest.approx([1.0, 1.0])


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="2 values after, 1 before"):
        paired_difference([1.0, 2.0], [1.0], SAMPLES, seed=0)
    with pytest.raises(ValueError, match="3 values, but 2 groups"):
        bootstrap_mean([1.0, 2.0, 3.0], SAMPLES, seed=0, groups="ab")


def _weighted_mean(values: list[float]) -> Callable[[Floats], Floats]:
    return lambda weights: (weights @ np.asarray(values)) / weights.sum(axis=1)


def test_a_statistic_that_is_the_mean_has_the_intervals_of_the_mean() -> None:
    values, groups = [1.0, 0.0, 2.0, 5.0, 1.0, 0.5], list("aabbcd")
    mean = bootstrap_mean(values, 4000, seed=0, groups=groups)
    statistic = bootstrap_statistic(_weighted_mean(values), groups, 4000, seed=0)
    # The same draws of groups from the same seed, so the same resamples.
    assert statistic.mean == pytest.approx(mean.mean)
    assert statistic.interval == pytest.approx(mean.interval)
    assert statistic.count == 6


def test_resamples_without_a_value_are_left_out() -> None:
    # The first value alone counts, and is missing from (1/2)^2 of the resamples: where it is there, the mean is 3.
    def first_only(weights: Floats) -> Floats:
        return np.where(weights[:, 0] > 0, 3.0, np.nan)

    estimate = bootstrap_statistic(first_only, ["a", "b"], 200, seed=0)
    assert (estimate.mean, estimate.low, estimate.high) == (3.0, 3.0, 3.0)
    assert bootstrap_statistic(first_only, [], 200, seed=0) is NOTHING
    undefined = bootstrap_statistic(lambda weights: np.full(len(weights), np.nan), ["a"], 200, seed=0)
    assert math.isnan(undefined.mean)
    assert math.isnan(undefined.low)
