"""Means with bootstrap 95% intervals.

Every interval in this program is a percentile bootstrap (Efron and Tibshirani 1993, chapter 13), rates included:
one method for means, rates and differences keeps them comparable, and responses to one prompt can be resampled
together. Where every value is the same the interval has no width; that says nothing about rarer events: with n
responses and no event, the true rate may still be as high as about 3 / n.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOW, HIGH = 2.5, 97.5
CHUNK = 2_000_000
"""Resampled indices held in memory at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95% interval.

    Attributes:
        mean: nan where there was nothing to average.
        count: how many values stand behind it.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def interval(self) -> list[float]:
        """`[low, high]`, as `metrics.json` spells it."""
        return [self.low, self.high]


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)


def bootstrap_mean(
    values: Sequence[float], samples: int, seed: int, groups: Sequence[Hashable] | None = None
) -> Estimate:
    """The mean of `values` with a percentile bootstrap 95% interval.

    Args:
        values: one figure an observation; booleans give a rate.
        samples: how many resamples.
        groups: what each value belongs to (say, its prompt). Groups are then resampled whole, because the values
            within one are not independent (cluster bootstrap, Field and Welsh 2007). None: every value on its own.

    Returns:
        The estimate; `NOTHING` where `values` is empty.
    """
    if not len(values):
        return NOTHING
    array = np.asarray(values, dtype=np.float64)
    sums, counts = _by_group(array, groups)
    means = _resampled_means(sums, counts, samples, seed)
    low, high = np.percentile(means, [LOW, HIGH])
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def paired_difference(
    after: Sequence[float],
    before: Sequence[float],
    samples: int,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> Estimate:
    """The mean of `after - before`, observation by observation, with its bootstrap 95% interval.

    Raises:
        ValueError: the two are of different lengths.
    """
    if len(after) != len(before):
        raise ValueError(f"{len(after)} values after, {len(before)} before: a paired difference needs the same ones")
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_mean(differences.tolist(), samples, seed, groups)


def bootstrap_statistic(
    statistic: Callable[[Floats], Floats], groups: Sequence[Hashable], samples: int, seed: int
) -> Estimate:
    """A figure that is no mean (a ratio, a coefficient), with a percentile bootstrap 95% interval.

    Args:
        statistic: (resamples, observations) -> (resamples,): the figure where each observation counts as often as its
            weight says; nan where it is not defined. Such resamples are left out.
        groups: what each observation belongs to; groups are resampled whole.
    """
    if not groups:
        return NOTHING
    numbers: dict[Hashable, int] = {}
    index = np.asarray([numbers.setdefault(group, len(numbers)) for group in groups])
    value = float(statistic(np.ones((1, len(groups))))[0])
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(groups))
    chunks = []
    for start in range(0, samples, rows):
        drawn = generator.integers(len(numbers), size=(min(rows, samples - start), len(numbers)))
        times = np.stack([np.bincount(row, minlength=len(numbers)) for row in drawn])
        chunks.append(statistic(times[:, index].astype(np.float64)))
    values = np.concatenate(chunks)
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, [LOW, HIGH]) if len(defined) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), len(groups))


def _by_group(values: Floats, groups: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum and number of the values of each group, groups in order of appearance."""
    if groups is None:
        return values, np.ones_like(values)
    if len(groups) != len(values):
        raise ValueError(f"{len(values)} values, but {len(groups)} groups")
    numbers: dict[Hashable, int] = {}
    index = np.asarray([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


def _resampled_means(sums: Floats, counts: Floats, samples: int, seed: int) -> Floats:
    generator = np.random.default_rng(seed)
    size = len(sums)
    rows = max(1, CHUNK // size)
    chunks = []
    for start in range(0, samples, rows):
        drawn = generator.integers(size, size=(min(rows, samples - start), size))
        chunks.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(chunks)
