"""Curves: logged metrics in small panels, and proxy and gold reward against KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rlhf_lightning.evaluation.curves import HistoryRow, Point, points
from rlhf_lightning.evaluation.metrics import LoggedMetrics, Metric
from rlhf_lightning.evaluation.overoptimization import fit_reward, reward_path
from rlhf_lightning.evaluation.plots.style import (
    BLUE,
    GRAY,
    INK,
    ORANGE,
    PALE,
    VERMILION,
    new_figure,
    quiet,
    save,
    title,
)

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
    axes.set_xlabel("episodes" if by_episodes else "steps", fontsize=8, color=GRAY, loc="right", labelpad=1)


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


Side = Literal["top", "center", "bottom"]


def overoptimization(history: Sequence[HistoryRow], path: Path) -> Path | None:
    """Proxy and gold reward against sqrt(KL), iterations joined in their order; None where PPO logged no such path.

    The proxy is the score as PPO logs it, standardized on reference samples where the config asks for that. With five
    points or more, the dashed line is the least-squares fit of the gold reward
    (`overoptimization.fit_reward`), where it explains at least half of the variance.
    """
    reached = reward_path(history)
    if reached is None:
        return None
    figure = new_figure(7.2, 4.6)
    axes = figure.add_subplot()
    quiet(axes)
    if reached.gold is None:
        _path(axes, reached.distance, reached.proxy, BLUE, "proxy", "center")
    else:
        # The names stand on the far sides of each other, so that they stay apart where the curves end together.
        proxy_above = bool(reached.proxy[-1] >= reached.gold[-1])
        _path(axes, reached.distance, reached.proxy, BLUE, "proxy", "bottom" if proxy_above else "top")
        _path(axes, reached.distance, reached.gold, ORANGE, "gold", "top" if proxy_above else "bottom")
        _gold_fit(axes, reached.distance, reached.gold)
    axes.set_xlim(left=0.0)
    axes.margins(x=0.12)
    axes.set_xlabel("√KL to the reference (KL in nats a response)", fontsize=9, color=GRAY)
    axes.set_ylabel("reward a response", fontsize=9, color=GRAY)
    title(axes, "Reward against the distance traveled")
    return save(figure, path)


def _path(axes: Axes, distance: Floats, reward: Floats, color: str, name: str, side: Side) -> None:
    axes.plot(distance, reward, color=color, alpha=0.35, linewidth=1.0)
    axes.scatter(distance, reward, color=color, s=14, linewidths=0, zorder=3)
    end = (float(distance[-1]), float(reward[-1]))
    label = axes.annotate(name, end, xytext=(8, 0), textcoords="offset points", color=color, va=side)
    label.set(fontsize=11, fontweight="bold")


LEAST_EXPLAINED = 0.5
"""A fit that explains less of the gold reward's variance is not drawn: it would show a peak that is not there."""


def _gold_fit(axes: Axes, distance: Floats, gold: Floats) -> None:
    fit = fit_reward(distance, gold)
    if fit is None or fit.explained(distance, gold) < LEAST_EXPLAINED:
        return
    grid = np.linspace(0.0, float(distance.max()), 200)
    axes.plot(grid, fit.at(grid), color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=4)
    peak = fit.peak
    if peak is not None and peak < grid[-1]:
        height = float(fit.at(np.asarray([peak]))[0])
        axes.plot([peak], [height], marker="o", markersize=6, markerfacecolor="white", markeredgecolor=INK, zorder=5)
        foot = axes.get_xaxis_transform()
        axes.vlines(peak, axes.get_ylim()[0], height, color=PALE, linewidth=1.0, zorder=0)
        axes.annotate(
            f"fitted gold peaks at KL {peak**2:.1f}",
            (peak, 0.02),
            xycoords=foot,
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
