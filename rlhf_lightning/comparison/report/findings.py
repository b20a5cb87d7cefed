"""The sentences at the head of the report: what is best, by how much, and what looks wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlhf_lightning.comparison.records import Comparison, Delta, Group
from rlhf_lightning.comparison.tables import delta_cell, mean_cell

STRETCHES = 5
"""Parts that a training is cut into to see whether its gold reward came down again."""
CLEAR = 3.0
"""Standard errors that it has to come down by: with five parts the best is chosen, which two would not make up for."""

MOST_NAMED = 3
"""Over-optimized groups that get a sentence of their own."""

Path_ = Mapping[str, Any]
Named = tuple[Group, str]


def findings(comparison: Comparison, paths: Sequence[Path_ | None], names: Sequence[str]) -> list[str]:
    """A sentence a finding, the most important first.

    Args:
        paths: KL and rewards of each run of the comparison by iteration, as in `histories.Paths`.
        names: what each group of the comparison is called.
    """
    by_directory = {run.directory: path for run, path in zip(comparison.runs, paths, strict=True) if path}
    named = list(zip(comparison.groups, names, strict=True))
    return [
        *_best(comparison, named),
        *_overoptimized(named, by_directory),
        *_unfinished(comparison),
        *_reused(comparison),
    ]


def _best(comparison: Comparison, named: Sequence[Named]) -> Iterator[str]:
    metric = comparison.sort
    ranked = [(group, name) for group, name in named if metric.name in group.estimates]
    if not ranked:
        yield "No run has finished with figures yet."
        return
    best, name = ranked[0]
    estimate = best.estimates[metric.name]
    seeds = "one seed, no interval" if estimate.count == 1 else f"95% interval, {estimate.count} seeds"
    # Of a single group nothing is best.
    rank = f"Best {metric.label}" if len(ranked) > 1 else metric.label.capitalize()
    yield f"{rank}: {name} with {mean_cell(estimate, metric)} ({seeds})."
    baseline = next((called for group, called in named if group is comparison.baseline), None)
    # The best against the baseline; where it is the baseline itself, the next best.
    for other, called in ranked[1:2] if best is comparison.baseline else ranked[:1]:
        delta = other.deltas.get(metric.name)
        if delta is not None and baseline is not None:
            yield f"{called}: {delta_cell(delta, metric)} against the baseline {baseline}, {_verdict(delta)}."


def _verdict(delta: Delta) -> str:
    if delta.mean == 0.0:
        return "no difference"
    if delta.low is None:
        return "too few seeds to tell from chance"
    pairs = f"{delta.count} pairs of seeds" if delta.method == "paired" else "seeds that do not pair"
    return f"{'a clear difference' if delta.is_clear else 'which chance could make'} (95% interval, {pairs})"


def _overoptimized(named: Sequence[Named], paths: Mapping[Path, Path_]) -> Iterator[str]:
    falls = [
        (name, _fall([paths[run.directory] for run in group.runs if run.directory in paths])) for group, name in named
    ]
    found = [(name, *fall) for name, fall in falls if fall is not None]
    for name, best, last, distance in found[:MOST_NAMED]:
        yield (
            f"Over-optimized: {name}. Its gold reward was {best:+.2f} near √KL {distance:.1f} and ended at "
            f"{last:+.2f}, while the proxy rose."
        )
    if len(found) > MOST_NAMED:
        yield f"Over-optimized as well: {len(found) - MOST_NAMED} more of {len(named)} groups."


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
    """Cache hits of each stage."""
    stages = list(dict.fromkeys(stage for run in comparison.runs for stage in run.reused))
    if stages:
        counts = [f"{stage} in {sum(stage in run.reused for run in comparison.runs)}" for stage in stages]
        yield f"Reused from the stage cache, of {len(comparison.runs)} runs: {', '.join(counts)}."
