"""The two tables of a comparison, means and differences, as plain text by column heading."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_lightning.comparison.cells import NOTHING, delta_cell, mean_cell
from rlhf_lightning.comparison.records import Comparison, Delta, Estimate, Group

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
