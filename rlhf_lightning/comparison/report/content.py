"""Content of the report page as plain data: lists, numbers and texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_lightning import __version__
from rlhf_lightning.comparison.cells import delta_cell, mean_cell
from rlhf_lightning.comparison.records import Comparison, Group, Metric, Run
from rlhf_lightning.comparison.report.facts import facts
from rlhf_lightning.comparison.report.findings import findings
from rlhf_lightning.comparison.report.histories import curves_of, paths_of
from rlhf_lightning.comparison.report.labels import labels
from rlhf_lightning.comparison.report.thinning import rounded
from rlhf_lightning.evaluation.samples import SampleRow
from rlhf_lightning.evaluation.summary import short_name

KEYS_NAMED = 4
"""Keys in the title."""
LONGEST_TEXT = 6000
"""Characters of a prompt or reply that the page shows."""


def content(comparison: Comparison, made: str) -> dict[str, Any]:
    """Everything the page's scripts read. Each list of figures is in the order of `metrics`.

    Args:
        made: when the report was made.
    """
    place = {run.directory: index for index, run in enumerate(comparison.runs)}
    group_of = {run.directory: index for index, group in enumerate(comparison.groups) for run in group.runs}
    curves, paths = curves_of(comparison.runs), paths_of(comparison.runs)
    names = labels(comparison.groups, comparison.keys)
    return {
        "title": _title(comparison),
        "lead": _lead(comparison),
        "made": f"Made {made} by rlhf compare, rlhf_lightning {__version__}.",
        "findings": findings(comparison, paths.by_run, names),
        "keys": comparison.keys,
        "run_keys": list(dict.fromkeys(key for run in comparison.runs for key in run.settings)),
        "metrics": [_metric(metric) for metric in comparison.metrics],
        "objective": "objective",
        "sort": comparison.sort.name,
        "sort_falls": comparison.sort.higher_is_better is True,
        "baseline": _place_of_baseline(comparison),
        "notes": comparison.notes,
        "left_out": [asdict(entry) for entry in comparison.left_out],
        "groups": [
            {"name": name} | _group(group, comparison.metrics, place)
            for name, group in zip(names, comparison.groups, strict=True)
        ],
        "runs": [
            _run(run, comparison.metrics, group_of.get(run.directory))
            | {"series": curves.by_run[index], "path": paths.by_run[index]}
            for index, run in enumerate(comparison.runs)
        ],
        "curves": curves.names,
        "grids": curves.grids,
        "curve_note": curves.note,
        "path_note": paths.note,
    }


def _title(comparison: Comparison) -> str:
    runs = _count(len(comparison.runs), "run")
    if not comparison.keys:
        return runs
    named, others = comparison.keys[:KEYS_NAMED], len(comparison.keys) - KEYS_NAMED
    return f"{runs} by {', '.join(named)}{f' and {others} more' if others > 0 else ''}"


def _lead(comparison: Comparison) -> str:
    seeds = {len({run.seed for run in group.runs}) for group in comparison.groups}
    states = Counter(run.state for run in comparison.runs)
    started = sorted(run.started for run in comparison.runs if run.started)
    parts = [_count(len(comparison.groups), "group")]
    if seeds:
        few, many = min(seeds), max(seeds)
        parts.append(f"{few} to {many} seeds each" if few != many else f"{_count(few, 'seed')} each")
    parts.append(", ".join(f"{number} {state}" for state, number in states.most_common()))
    if started:
        first, last = (moment[:16].replace("T", " ") for moment in (started[0], started[-1]))
        parts.append(f"started {first}" if first == last else f"started {first} to {last}")
    return "; ".join(parts) + "."


def _metric(metric: Metric) -> dict[str, Any]:
    better = {True: "higher", False: "lower", None: None}[metric.higher_is_better]
    return {"name": metric.name, "label": metric.label, "better": better, "style": metric.style}


def _place_of_baseline(comparison: Comparison) -> int | None:
    """Its index; None also where there is nothing to compare with it."""
    if not any(group.deltas for group in comparison.groups):
        return None
    return next((index for index, group in enumerate(comparison.groups) if group is comparison.baseline), None)


def _group(group: Group, metrics: Sequence[Metric], place: Mapping[Path, int]) -> dict[str, Any]:
    return {
        "label": group.label,
        "settings": dict(group.settings),
        "runs": [place[run.directory] for run in group.runs],
        "finished": len(group.finished),
        "estimates": [_estimate(group, metric) for metric in metrics],
        "deltas": [
            delta_cell(group.deltas[metric.name], metric) if metric.name in group.deltas else None for metric in metrics
        ],
    }


def _estimate(group: Group, metric: Metric) -> dict[str, Any] | None:
    estimate = group.estimates.get(metric.name)
    if estimate is None:
        return None
    mean, _, half = mean_cell(estimate, metric).partition(" ±")
    return {"mean": estimate.mean, "text": mean, "half": half, "count": estimate.count}


def _run(run: Run, metrics: Sequence[Metric], group: int | None) -> dict[str, Any]:
    return {
        "name": run.name,
        "directory": str(run.directory),
        "overrides": run.overrides,
        "state": run.state,
        "seed": run.seed,
        "group": group,
        "settings": dict(run.settings),
        "finished": run.finished,
        "objective": run.objective,
        "figures": [run.figures.get(metric.name) for metric in metrics],
        "error": run.error,
        "started": run.started,
        "seconds": run.seconds,
        "reused": list(run.reused),
        "problems": [*run.read_problems, *run.late_problems],
        "ends": _ends(run),
        "samples": [_sample(row) for row in run.samples],
        "facts": facts(run),
    }


def _ends(run: Run) -> list[dict[str, Any]]:
    """The evaluated policies on the plane of KL and reward."""
    if not run.finished:
        return []
    return [
        {
            "policy": short_name(policy),
            "split": split,
            "distance": rounded(max(figures["kl"], 0.0) ** 0.5),
            "proxy": rounded(figures.get("proxy_reward")),
            "gold": rounded(figures.get("gold_reward")),
        }
        for policy, splits in run.evaluation.items()
        if isinstance(splits, Mapping)
        for split, figures in splits.items()
        if isinstance(figures, Mapping) and rounded(figures.get("kl")) is not None
    ]


def _sample(row: SampleRow) -> dict[str, Any]:
    texts = {name: _text(getattr(row, name)) for name in ("split", "prompt", "before", "after")}
    rewards = ("proxy_before", "proxy_after", "gold_before", "gold_after")
    return texts | {name: rounded(getattr(row, name)) for name in rewards}


def _text(value: object) -> str:
    text = str(value)
    beyond = len(text) - LONGEST_TEXT
    return text if beyond <= 0 else f"{text[:LONGEST_TEXT]} … ({beyond} characters more in samples.jsonl)"


def _count(amount: int, noun: str) -> str:
    return f"{amount} {noun}{'' if amount == 1 else 's'}"
