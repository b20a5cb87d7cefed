"""Figures as cells of a table, and the tables of a comparison (means, differences) as plain text by column heading."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rlhf_lightning.comparison.records import Comparison, Delta, Estimate, Group, Metric

NOTHING = "-"
UNPAIRED = " u"
DECIMALS = {"signed": 2, "plain": 2, "whole": 0}


def mean_cell(estimate: Estimate | None, metric: Metric) -> str:
    """`+0.42 ±0.08`; without an interval where there is one seed."""
    if estimate is None:
        return NOTHING
    return _cell(estimate.mean, estimate.high, metric.style, sign="+" if metric.style == "signed" else "")


def delta_cell(delta: Delta | None, metric: Metric) -> str:
    """`-0.10 ±0.05`, and `u` behind it where the seeds do not pair."""
    if delta is None:
        return NOTHING
    return _cell(delta.mean, delta.high, metric.style, sign="+") + (UNPAIRED if delta.method == "unpaired" else "")


def _cell(mean: float, high: float | None, style: str, sign: str) -> str:
    text = _written(mean, style, sign, mean)
    return text if high is None else f"{text} ±{_written(high - mean, style, '', mean)}"


def _written(value: float, style: str, sign: str, beside: float) -> str:
    """A figure; `beside` decides the decimals, so that a mean and its interval have the same."""
    if style == "percent":
        return f"{value:{sign}.1%}"
    if style in DECIMALS:
        return f"{value:{sign}z.{DECIMALS[style]}f}"
    decimals = 2 if beside == 0.0 else min(6, max(0, 2 - math.floor(math.log10(abs(beside)))))
    return f"{value:{sign}z.{decimals}f}"


Row = dict[str, str]


def means(comparison: Comparison) -> list[Row]:
    """A row a group: settings, runs (where that is not n), seeds that count, and each metric."""
    runs = {group.label: _runs(group) for group in comparison.groups}
    seeds = {group.label: _counts(group.estimates.values()) for group in comparison.groups}
    return [
        {
            **group.settings,
            **({"runs": runs[group.label]} if runs != seeds else {}),
            "n": seeds[group.label],
            **{metric.label: mean_cell(group.estimates.get(metric.name), metric) for metric in comparison.metrics},
        }
        for group in comparison.groups
    ]


def differences(comparison: Comparison) -> list[Row]:
    """A row a group but the baseline: settings, pairs of seeds, and by how much each metric differs."""
    return [
        {
            **group.settings,
            "n": _counts(group.deltas.values()),
            **{metric.label: delta_cell(group.deltas.get(metric.name), metric) for metric in comparison.metrics},
        }
        for group in comparison.groups
        if group is not comparison.baseline and group.deltas
    ]


def summary(comparison: Comparison) -> str:
    """`18 runs in 6 groups, 17 finished`."""
    runs, groups = len(comparison.runs), len(comparison.groups)
    finished = sum(run.finished for run in comparison.runs)
    ended = f"all {runs}" if finished == runs > 1 else str(finished)
    return f"{runs} run{'s' if runs != 1 else ''} in {groups} group{'s' if groups != 1 else ''}, {ended} finished"


def _runs(group: Group) -> str:
    finished, runs = len(group.finished), len(group.runs)
    return str(runs) if finished == runs else f"{finished} of {runs}"


def _counts(records: Iterable[Estimate | Delta]) -> str:
    """Number of values behind a row's figures: `3`, or `2-3` where metrics differ."""
    counts = sorted({record.count for record in records})
    return "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))) if counts else NOTHING
