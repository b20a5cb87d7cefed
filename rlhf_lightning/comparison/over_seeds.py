"""Means over seeds and differences between groups, with 95% intervals of Student's t.

A seed is one observation. Whatever a group holds of one seed (repeats of a run; with `--by`, the settings averaged
over) is averaged first, because runs of one seed share data order, prompts and often whole stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, variance

from rlhf_lightning.comparison.records import Delta, Estimate

Seed = int | None
Cell = tuple[str, ...]
"""The values of the settings that a group averages over; empty without such."""
Values = Mapping[tuple[Cell, Seed], float]
"""One metric of one group: a figure for each cell and seed."""


def estimate(values: Values) -> Estimate:
    """The mean over seeds, each the mean of its cells.

    Raises:
        ValueError: there are no values.
    """
    by_seed = list(_by_seed(values).values())
    mean = fmean(by_seed)
    half = _half_width(by_seed)
    return Estimate(mean, None, None, 1) if half is None else Estimate(mean, mean - half, mean + half, len(by_seed))


def difference(group: Values, baseline: Values) -> Delta | None:
    """A group less the baseline; None where one of them has no values.

    Paired over the seeds that both have (within a seed, over the cells that both have), if there are two; else, where
    both have two seeds, Welch's interval for independent means.
    """
    if not group or not baseline:
        return None
    shared = {place: value - baseline[place] for place, value in group.items() if place in baseline}
    pairs = list(_by_seed(shared).values())
    half = _half_width(pairs)
    if half is not None:
        mean = fmean(pairs)
        return Delta(mean, mean - half, mean + half, len(pairs), "paired")
    sides = [list(_by_seed(side).values()) for side in (group, baseline)]
    fewest = min(len(side) for side in sides)
    if fewest < 2:
        mean = fmean(pairs) if pairs else fmean(sides[0]) - fmean(sides[1])
        return Delta(mean, None, None, len(pairs) or fewest, "no interval")
    mean, half = fmean(sides[0]) - fmean(sides[1]), _welch_half_width(*sides)
    return Delta(mean, mean - half, mean + half, fewest, "unpaired")


def gathered(figures: Iterable[tuple[Cell, Seed, float]]) -> dict[tuple[Cell, Seed], float]:
    """The figures by cell and seed; runs of the same cell and seed are averaged."""
    found: dict[tuple[Cell, Seed], list[float]] = {}
    for cell, seed, figure in figures:
        found.setdefault((cell, seed), []).append(figure)
    return {place: fmean(same) for place, same in found.items()}


def _by_seed(values: Values) -> dict[Seed, float]:
    found: dict[Seed, list[float]] = {}
    for (_, seed), value in values.items():
        found.setdefault(seed, []).append(value)
    return {seed: fmean(cells) for seed, cells in found.items()}


def _half_width(values: Sequence[float]) -> float | None:
    """t s / sqrt(n), half of the interval of a mean; None with fewer than two values."""
    if len(values) < 2:
        return None
    return _t_quantile(len(values) - 1) * math.sqrt(variance(values) / len(values))


def _welch_half_width(first: Sequence[float], second: Sequence[float]) -> float:
    """Half of the interval of a difference of independent means (Welch 1947, with Satterthwaite's degrees)."""
    errors = [variance(side) / len(side) for side in (first, second)]
    if sum(errors) == 0.0:
        return 0.0
    parts = zip(errors, (first, second), strict=True)
    degrees = sum(errors) ** 2 / sum(error**2 / (len(side) - 1) for error, side in parts)
    return _t_quantile(degrees) * math.sqrt(sum(errors))


def _t_quantile(degrees: float) -> float:
    """The value that Student's t with `degrees` of freedom stays below with probability 0.975."""
    # `scipy.stats`, which calls this function, takes two seconds to import; the function's own module takes 0.4.
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(degrees, 0.975))
