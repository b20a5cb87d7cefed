"""Overoptimization plot: proxy and gold reward against KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.evaluation.overoptimization import fit_reward, reward_path
from rlhf_lightning.evaluation.plots.style import BLUE, GREY, INK, ORANGE, PALE, new_figure, quiet, save, title

Floats = NDArray[np.float64]
Side = Literal["top", "center", "bottom"]


def overoptimization(history: Sequence[HistoryRow], path: Path) -> Path | None:
    """Proxy and gold reward against sqrt(KL), iterations joined in their order; None where PPO logged no such path.

    The proxy is the score as PPO logs it, standardised on reference samples where the config asks for that. With five
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
    axes.set_xlabel("√KL to the reference (KL in nats a reply)", fontsize=9, color=GREY)
    axes.set_ylabel("reward a reply", fontsize=9, color=GREY)
    title(axes, "Reward against the distance travelled")
    return save(figure, path)


def _path(axes: Axes, distance: Floats, reward: Floats, colour: str, name: str, side: Side) -> None:
    axes.plot(distance, reward, color=colour, alpha=0.35, linewidth=1.0)
    axes.scatter(distance, reward, color=colour, s=14, linewidths=0, zorder=3)
    end = (float(distance[-1]), float(reward[-1]))
    label = axes.annotate(name, end, xytext=(8, 0), textcoords="offset points", color=colour, va=side)
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
