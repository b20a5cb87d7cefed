"""Logged histories of all runs as curves, thinned alike for the seeds of a group, and as paths of KL and reward."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_lightning.comparison.records import Run
from rlhf_lightning.evaluation.curves import HistoryRow, Point, points, rollout_stage


class DownsampledCurve(NamedTuple):
    """A curve as the page gets it: three lists of one length, `episodes` None where some have none."""

    step: tuple[float, ...]
    episodes: tuple[float, ...] | None
    value: tuple[float | None, ...]


def rounded(value: object) -> float | None:
    """A figure to five significant digits; None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def stride(lengths: Sequence[int], most: int) -> int:
    """Number of neighboring points to merge into one, so that the longest curve keeps at most `most` points."""
    return max(1, math.ceil(max(lengths, default=0) / most))


def downsample(points: Sequence[Point], size: int) -> DownsampledCurve:
    """The mean of each `size` neighboring points: of their steps, episodes and finite values.

    Nothing is left out, so a curve keeps its level; a spike is lowered but stays where it was.
    """
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    episodes = [[point.episodes for point in stretch if point.episodes is not None] for stretch in stretches]
    values = [[point.value for point in stretch if math.isfinite(point.value)] for stretch in stretches]
    return DownsampledCurve(
        step=tuple(_mean([point.step for point in stretch]) for stretch in stretches),
        episodes=tuple(map(_mean, episodes)) if all(episodes) else None,
        value=tuple(rounded(_mean(found)) if found else None for found in values),
    )


def _mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return int(mean) if mean.is_integer() else mean


FIRST = (
    "objective/gold",
    "objective/score",
    "objective/kl",
    "objective/entropy",
    "value/explained_variance",
    "rollout/length",
    "policy/approx_kl",
    "policy/clip_fraction",
)
"""The metrics that head the list, where they are there; the page opens with the first of them."""
COUNTERS = ("epoch", "rollout/episodes", "policy/optimizer_steps")
"""Logged, but the x-axis itself."""
MOST_VALUES = 100_000
FEWEST_POINTS, MOST_POINTS = 20, 200
PATH_POINTS = 15

Name = tuple[str, str]
"""A stage, and a metric of it."""


@dataclass(frozen=True)
class Curves:
    """The learning curves of all runs.

    Attributes:
        names: `{"stage": ..., "name": ...}` of each curve, those that people look at first in front.
        grids: the x-values that curves share: `{"step": [...], "episodes": [...] or None}`.
        by_run: for each run `{index in names: [index in grids, values]}`.
        note: how they were thinned.
    """

    names: list[dict[str, str]]
    grids: list[dict[str, Any]]
    by_run: list[dict[int, tuple[int, tuple[float | None, ...]]]]
    note: str


@dataclass(frozen=True)
class Paths:
    """Training trajectories in the plane of KL and reward.

    Attributes:
        by_run: `{"step": [...], "distance": [...], "proxy": [...], "gold": [...] or None}`; None without such a stage,
            and for a run that did not finish: only then the scale of its proxy is known.
        note: how they were thinned.
    """

    by_run: list[dict[str, Any] | None]
    note: str


def curves_of(runs: Sequence[Run]) -> Curves:
    """The curves of all runs, thinned alike, so that a page of many runs stays small."""
    logged = [_logged(run.history) for run in runs]
    stages = list(dict.fromkeys(stage for run in runs for stage in reversed(list(run.stages))))
    names = sorted({name for curves in logged for name in curves}, key=lambda name: _order(name, stages))
    amount = sum(map(len, logged))
    most = max(FEWEST_POINTS, min(MOST_POINTS, MOST_VALUES // max(1, amount)))
    sizes = {name: stride([len(curves[name]) for curves in logged if name in curves], most) for name in names}
    grids: dict[tuple[Any, ...], int] = {}
    by_run = []
    for curves in logged:
        thinned = {index: downsample(curves[name], sizes[name]) for index, name in enumerate(names) if name in curves}
        by_run.append({index: (_grid(curve, grids), curve.value) for index, curve in thinned.items()})
    rule = f"A curve of more than {most} points is thinned to at most so many, each the mean of as many neighbors."
    return Curves(
        names=[{"stage": stage, "name": name} for stage, name in names],
        grids=[{"step": step, "episodes": episodes} for step, episodes in grids],
        by_run=by_run,
        note=rule if any(size > 1 for size in sizes.values()) else "Every point logged is drawn.",
    )


def paths_of(runs: Sequence[Run]) -> Paths:
    """Distance, proxy and gold reward by iteration, each point the mean of a few neighbors."""
    found = [_path(run) if run.finished else None for run in runs]
    size = stride([len(path["kl"]) for path in found if path], PATH_POINTS)
    note = (
        f"A line follows the training of finished runs, each point the mean of {size} iterations; "
        if size > 1
        else "A line follows the training of finished runs, iteration by iteration; "
    )
    note += "markers are the policies as they were evaluated in the end, the small ones near 0 where training started."
    return Paths([_downsampled_path(path, size) if path else None for path in found], note)


def _logged(history: Sequence[HistoryRow]) -> dict[Name, list[Point]]:
    rows: dict[Name, list[HistoryRow]] = defaultdict(list)
    for row in history:
        if row.name not in COUNTERS:
            rows[row.stage, row.name].append(row)
    # A single point is a figure and no curve.
    return {name: curve for name, found in rows.items() if len(curve := points(found, *name)) > 1}


def _order(name: Name, stages: Sequence[str]) -> tuple[int, str, int, str]:
    """The last stage to run goes first."""
    stage, metric = name
    known = stages.index(stage) if stage in stages else len(stages)
    return known, stage, FIRST.index(metric) if metric in FIRST else len(FIRST), metric


def _grid(curve: DownsampledCurve, grids: dict[tuple[Any, ...], int]) -> int:
    return grids.setdefault((curve.step, curve.episodes), len(grids))


def _path(run: Run) -> Mapping[str, list[Point]] | None:
    """The curves of KL, proxy and, where there is one, gold, at the steps that they share.

    The proxy is in the reward model's own scale, which is the evaluation's: what training logs is standardized, by an
    mean and a standard deviation that the stage's figures name.
    """
    stage = rollout_stage(run.history) or ""
    logged = {"kl": ("kl",), "proxy": ("raw_score", "score"), "gold": ("gold",)}
    curves = {
        name: next(filter(None, (run.curve(stage, f"objective/{each}") for each in sources)), [])
        for name, sources in logged.items()
    }
    present = {name: curve for name, curve in curves.items() if curve}
    if not {"kl", "proxy"} <= set(present):
        return None
    shared = set.intersection(*({point.step for point in curve} for curve in present.values()))
    path = {name: [point for point in curve if point.step in shared] for name, curve in present.items()}
    figures = run.stages.get(stage, {})
    mean, std = rounded(figures.get("reward_mean")), rounded(figures.get("reward_std"))
    if mean is not None and std is not None:
        path["proxy"] = [point._replace(value=point.value * std + mean) for point in path["proxy"]]
    return path


def _downsampled_path(path: Mapping[str, list[Point]], size: int) -> dict[str, Any]:
    kl = downsample(path["kl"], size)
    return {
        "step": kl.step,
        # An estimate of the KL may fall below zero; the KL cannot.
        "distance": [None if value is None else rounded(max(value, 0.0) ** 0.5) for value in kl.value],
        "proxy": downsample(path["proxy"], size).value,
        "gold": downsample(path["gold"], size).value if "gold" in path else None,
    }
