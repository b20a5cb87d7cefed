"""Content of the report page as plain data: groups by short names, runs with their provenance, figures, samples."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_lightning import __version__
from rlhf_lightning.comparison.records import Comparison, Group, Metric, Run
from rlhf_lightning.comparison.report.findings import findings
from rlhf_lightning.comparison.report.histories import curves_of, paths_of, rounded
from rlhf_lightning.comparison.tables import delta_cell, mean_cell
from rlhf_lightning.evaluation.summary import SampleRow, short_name

LONGEST_LABEL = 60
"""Characters of all settings together that still fit a legend."""
LONGEST_VALUE = 30


def labels(groups: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """Each group's own label; where one is too long, of all groups only the settings that tell them apart."""
    if all(len(group.label) <= LONGEST_LABEL for group in groups):
        return [group.label for group in groups]
    telling = _distinguishing_keys([group.settings for group in groups], keys)
    return [" ".join(f"{key}={_shortened(group.settings[key])}" for key in telling) for group in groups]


def _distinguishing_keys(settings: Sequence[Mapping[str, str]], keys: Sequence[str]) -> list[str]:
    """Few keys that distinguish all groups. Greedy: repeatedly pick the key that splits the remaining groups best."""
    chosen: list[str] = []

    def parted(candidate: str) -> int:
        return len({tuple(told[key] for key in (*chosen, candidate)) for told in settings})

    # The first key at the least, so that the label of a single group is not empty.
    while not chosen or len({tuple(told[key] for key in chosen) for told in settings}) < len(settings):
        chosen.append(max((key for key in keys if key not in chosen), key=parted))
    return [key for key in keys if key in chosen]


def _shortened(value: str) -> str:
    """The end of a long value: of paths that is what differs."""
    return value if len(value) <= LONGEST_VALUE else f"…{value[-LONGEST_VALUE:]}"


SHOWN_ELSEWHERE = ("started", "overrides", "stages")
REPRODUCE = "reproduce.sh"


def facts(run: Run) -> dict[str, str]:
    """Flat: `{"git.commit": "fa16e6...", "packages.torch": "2.13.0"}`, and how to run it again."""
    found = dict(_flat({name: value for name, value in run.provenance.items() if name not in SHOWN_ELSEWHERE}))
    script = run.directory / REPRODUCE
    if script.is_file():
        found["run it again"] = f"bash {shlex.quote(str(script))}"
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _fact_text(name, value)


def _fact_text(name: str, value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "none"
    if name == "command" and isinstance(value, list):
        return shlex.join(map(str, value))
    if name == "diff":
        return f"{len(str(value).splitlines())} lines, in provenance.json"
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


KEYS_NAMED = 4
"""Keys in the title."""
LONGEST_TEXT = 6000
"""Characters of a prompt or response that the page shows."""


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
        "lead": _introduction(comparison),
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


def _introduction(comparison: Comparison) -> str:
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
