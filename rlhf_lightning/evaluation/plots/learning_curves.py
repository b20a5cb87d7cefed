"""Learning curves: one small panel per metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rlhf_lightning.evaluation.curves import HistoryRow, Point, points
from rlhf_lightning.evaluation.metrics import LoggedMetrics, Metric
from rlhf_lightning.evaluation.plots.style import BLUE, GREY, ORANGE, PALE, VERMILION, new_figure, quiet, save, title

Floats = NDArray[np.float64]

COLUMNS = 4


def learning_curves(history: Sequence[HistoryRow], path: Path, declared: Mapping[str, LoggedMetrics]) -> Path | None:
    """Small multiples of what the training stages logged; returns None where they logged none of it.

    Supervised stages over optimizer steps (figures on held-out data beside them), then those with rollouts over
    episodes. Where a curve has many points its running mean is drawn over the pale points. A figure that was not finite
    is marked by a red cross on the axis.

    Args:
        declared: metrics of the stages by name, in the order of the panels.
    """
    logged = {(row.stage, row.name) for row in history}
    sections = [
        [
            (stage, metric)
            for stage, metrics in declared.items()
            for metric in metrics.metrics
            if metrics.by_episodes is by_episodes and metric.title and (stage, metric.name) in logged
        ]
        for by_episodes in (False, True)
    ]
    rows = [part[start : start + COLUMNS] for part in sections for start in range(0, len(part), COLUMNS)]
    if not rows:
        return None
    figure = new_figure(3.1 * COLUMNS, 2.2 * len(rows))
    grid = figure.add_gridspec(len(rows), COLUMNS)
    for row, panels in enumerate(rows):
        for column, (stage, metric) in enumerate(panels):
            alone = sum(each.name == metric.name for part in sections for _, each in part) == 1
            heading = metric.title if alone else f"{metric.title}, {stage}"
            _draw(figure.add_subplot(grid[row, column]), stage, metric, heading or "", history)
    return save(figure, path)


def _draw(axes: Axes, stage: str, metric: Metric, heading: str, history: Sequence[HistoryRow]) -> None:
    quiet(axes)
    if metric.level is not None:
        axes.axhline(metric.level, color=PALE, linewidth=1.0, zorder=0)
    curve = points(history, stage, metric.name)
    by_episodes = all(point.episodes is not None for point in curve)
    finite = _curve(axes, curve, by_episodes)
    title(axes, heading, *((metric.note,) if finite else ("x: not finite", VERMILION)))
    if metric.held_out is not None:
        _held_out(axes, points(history, stage, metric.held_out))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("episodes" if by_episodes else "steps", fontsize=8, color=GREY, loc="right", labelpad=1)


def _curve(axes: Axes, curve: Sequence[Point], by_episodes: bool) -> bool:
    """Draw one curve; returns whether all of it was finite."""
    x = np.asarray([point.episodes if by_episodes else point.step for point in curve], dtype=np.float64)
    raw = np.asarray([point.value for point in curve], dtype=np.float64)
    y = np.where(np.isfinite(raw), raw, np.nan)
    window = len(y) // 20
    if window >= 2:
        axes.plot(x, y, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(x, _running_mean(y, window), color=BLUE, linewidth=1.6)
    else:
        axes.plot(x, y, color=BLUE, linewidth=1.6, marker="o", markersize=2.5)
    lost = np.isnan(y)
    if lost.any():
        rim = axes.get_xaxis_transform()
        axes.plot(x[lost], np.zeros(lost.sum()), "x", color=VERMILION, markersize=5, transform=rim, clip_on=False)
    return not lost.any()


def _held_out(axes: Axes, curve: Sequence[Point]) -> None:
    finite = [point for point in curve if math.isfinite(point.value)]
    if not finite:
        return
    steps, values = [point.step for point in finite], [point.value for point in finite]
    axes.plot(steps, values, color=ORANGE, linewidth=1.6, marker="o", markersize=4)
    label = axes.annotate("held out", (steps[-1], values[-1]), xytext=(0, 6), textcoords="offset points")
    label.set(color=ORANGE, fontsize=8, fontweight="bold", horizontalalignment="right", in_layout=False)


def _running_mean(values: Floats, window: int) -> Floats:
    """The mean over `window` points to both sides, narrower at the ends; gaps are skipped."""
    means = np.full_like(values, np.nan)
    for index in range(len(values)):
        near = values[max(0, index - window) : index + window + 1]
        if not np.isnan(near).all():
            means[index] = np.nanmean(near)
    return means
