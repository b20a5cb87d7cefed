"""The sentences at the head of the report: what is best, by how much, and what looks wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlhf_lightning.comparison.cells import delta_cell, mean_cell
from rlhf_lightning.comparison.records import Comparison, Delta, Group, Metric

STRETCHES = 5
"""Parts that a training is cut into to see whether its gold reward came down again."""
CLEAR = 3.0
"""Standard errors that it has to come down by: with five parts the best is chosen, which two would not make up for."""

Path_ = Mapping[str, Any]


def findings(comparison: Comparison, paths: Sequence[Path_ | None]) -> list[str]:
    """A sentence a finding, the most important first.

    Args:
        paths: KL and rewards of each run of the comparison by iteration, as in `histories.Paths`.
    """
    by_directory = {run.directory: path for run, path in zip(comparison.runs, paths, strict=True) if path}
    return [
        *_best(comparison),
        *_overoptimised(comparison.groups, by_directory),
        *_unfinished(comparison),
        *_reused(comparison),
    ]


def _best(comparison: Comparison) -> Iterator[str]:
    metric = comparison.sort
    ranked = [group for group in comparison.groups if metric.name in group.estimates]
    if not ranked:
        yield "No run has finished with figures yet."
        return
    best = ranked[0]
    estimate = best.estimates[metric.name]
    seeds = "one seed, no interval" if estimate.count == 1 else f"95% interval, {estimate.count} seeds"
    # Of a single group nothing is best.
    rank = f"Best {metric.label}" if len(ranked) > 1 else metric.label.capitalize()
    yield f"{rank}: {best.label} with {mean_cell(estimate, metric)} ({seeds})."
    other, delta = _beside(best, ranked, comparison.baseline, metric)
    if other is not None and delta is not None:
        yield f"{other.label}: {delta_cell(delta, metric)} against {_the(comparison)}, {_verdict(delta)}."


def _beside(
    best: Group, ranked: Sequence[Group], baseline: Group | None, metric: Metric
) -> tuple[Group | None, Delta | None]:
    """The best group against the baseline; where it is the baseline itself, the next best."""
    other = best if best is not baseline else next(iter(ranked[1:]), None)
    return other, other.deltas.get(metric.name) if other is not None else None


def _the(comparison: Comparison) -> str:
    return f"the baseline {comparison.baseline.label}" if comparison.baseline is not None else "the baseline"


def _verdict(delta: Delta) -> str:
    if delta.low is None:
        return "too few seeds to tell from chance"
    pairs = f"{delta.count} pairs of seeds" if delta.method == "paired" else "seeds that do not pair"
    return f"{'a clear difference' if delta.is_clear else 'which chance could make'} (95% interval, {pairs})"


def _overoptimised(groups: Sequence[Group], paths: Mapping[Path, Path_]) -> Iterator[str]:
    for group in groups:
        fall = _fall([paths[run.directory] for run in group.runs if run.directory in paths])
        if fall is not None:
            best, last, distance = fall
            yield (
                f"Over-optimised: {group.label}. Its gold reward was {best:+.2f} near √KL {distance:.1f} and ended at "
                f"{last:+.2f}, while the proxy rose."
            )


def _fall(paths: Sequence[Path_]) -> tuple[float, float, float] | None:
    """Best gold, last gold and the distance of the best, if gold came down clearly while the proxy rose; else None.

    Each training is cut into five stretches, and the stretches of all seeds are taken together.
    """
    stretches: list[list[tuple[float, float, float]]] = [[] for _ in range(STRETCHES)]
    for path in paths:
        gold = path["gold"] or []
        whole = [point for point in zip(path["distance"], path["proxy"], gold, strict=False) if None not in point]
        for index, point in enumerate(whole):
            stretches[index * STRETCHES // len(whole)].append(point)
    if any(len(stretch) < 2 for stretch in stretches):
        return None
    golds = [[gold for *_, gold in stretch] for stretch in stretches]
    means = [fmean(values) for values in golds]
    best = means.index(max(means))
    proxies = [fmean([proxy for _, proxy, _ in stretch]) for stretch in stretches]
    noise = math.hypot(*(stdev(golds[index]) / math.sqrt(len(golds[index])) for index in (best, -1)))
    if means[best] - means[-1] <= CLEAR * noise or proxies[-1] <= proxies[best]:
        return None
    return means[best], means[-1], fmean([distance for distance, *_ in stretches[best]])


def _unfinished(comparison: Comparison) -> Iterator[str]:
    unfinished = [run for run in comparison.runs if not run.finished]
    if unfinished:
        yield f"{len(unfinished)} of {len(comparison.runs)} runs did not finish with figures; see Left out."


def _reused(comparison: Comparison) -> Iterator[str]:
    """How often each stage came from the cache."""
    stages = list(dict.fromkeys(stage for run in comparison.runs for stage in run.reused))
    if stages:
        counts = [f"{stage} in {sum(stage in run.reused for run in comparison.runs)}" for stage in stages]
        yield f"Reused from the stage cache, of {len(comparison.runs)} runs: {', '.join(counts)}."
