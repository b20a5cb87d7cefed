"""How training went: one small panel a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rlhf_lightning.evaluation.curves import HistoryRow, Point, points
from rlhf_lightning.evaluation.plots.style import BLUE, GREY, ORANGE, PALE, VERMILION, new_figure, quiet, save, title

Floats = NDArray[np.float64]

COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One learning curve.

    Attributes:
        held_out: the same metric on held-out data, drawn beside it.
        level: a value worth a line of its own (no correlation, a coin's accuracy, an unchanged policy).
    """

    stage: str
    metric: str
    title: str
    note: str = ""
    level: float | None = None
    held_out: str | None = None


SUPERVISED = (
    Panel("sft", "sft/loss", "SFT loss", "nats a token", held_out="sft/validation_loss"),
    Panel("revision_sft", "sft/loss", "SFT loss on revisions", "nats a token", held_out="sft/validation_loss"),
    Panel(
        "reward_model",
        "reward_model/loss",
        "Reward model loss",
        level=math.log(2),
        held_out="reward_model/validation_loss",
    ),
    Panel(
        "reward_model",
        "reward_model/accuracy",
        "Reward model accuracy",
        level=0.5,
        held_out="reward_model/validation_accuracy",
    ),
    Panel("reward_model", "reward_model/margin", "Reward model margin", level=0.0),
)
REINFORCED = (
    Panel("ppo", "objective/score", "Proxy reward", "reward model"),
    Panel("ppo", "objective/gold", "Gold reward", "the truth"),
    Panel("ppo", "objective/kl", "KL to reference", "nats a reply", 0.0),
    Panel("ppo", "objective/entropy", "Entropy", "nats a token"),
    Panel("ppo", "rollout/length", "Reply length", "tokens"),
    Panel("ppo", "rollout/eos_rate", "Replies ended", level=1.0),
    Panel("ppo", "rollout/repetition", "Repetition", "repeated 3-grams"),
    Panel("ppo", "rollout/top_opening_share", "Most frequent opening", "share of replies"),
    Panel("ppo", "rollout/distinct_2", "Distinct 2-grams", "of all 2-grams"),
    Panel("ppo", "policy/approx_kl", "Approximate KL", "within an update"),
    Panel("ppo", "policy/clip_fraction", "Policy clip fraction"),
    Panel("ppo", "policy/ratio", "Probability ratio", level=1.0),
    Panel("ppo", "value/loss", "Value loss"),
    Panel("ppo", "value/clip_fraction", "Value clip fraction"),
    Panel("ppo", "value/explained_variance", "Explained variance", level=0.0),
)


def learning_curves(history: Sequence[HistoryRow], path: Path) -> Path | None:
    """Small multiples of what the training stages logged; returns None where they logged none of it.

    Supervised stages over optimizer steps (figures on held-out data beside them), PPO over episodes. Where a curve has
    many points its running mean is drawn over the pale points. A figure that was not finite is marked by a red cross
    on the axis.
    """
    logged = {(row.stage, row.name) for row in history}
    sections = [[panel for panel in part if (panel.stage, panel.metric) in logged] for part in (SUPERVISED, REINFORCED)]
    rows = [part[start : start + COLUMNS] for part in sections for start in range(0, len(part), COLUMNS)]
    if not rows:
        return None
    figure = new_figure(3.1 * COLUMNS, 2.2 * len(rows))
    grid = figure.add_gridspec(len(rows), COLUMNS)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            _draw(figure.add_subplot(grid[row, column]), panel, history)
    return save(figure, path)


def _draw(axes: Axes, panel: Panel, history: Sequence[HistoryRow]) -> None:
    quiet(axes)
    if panel.level is not None:
        axes.axhline(panel.level, color=PALE, linewidth=1.0, zorder=0)
    curve = points(history, panel.stage, panel.metric)
    by_episodes = all(point.episodes is not None for point in curve)
    finite = _curve(axes, curve, by_episodes)
    title(axes, panel.title, *((panel.note,) if finite else ("x: not finite", VERMILION)))
    if panel.held_out is not None:
        _held_out(axes, points(history, panel.stage, panel.held_out))
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
