"""Whether the proxy was gamed: reward against the distance travelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.evaluation.overoptimization import RewardPath, fit_reward, reward_path
from rlhf_lightning.evaluation.plots.style import BLUE, GREY, INK, ORANGE, new_figure, quiet, save, title

Floats = NDArray[np.float64]


def overoptimization(history: Sequence[HistoryRow], path: Path) -> Path | None:
    """Proxy and gold reward against sqrt(KL), iterations joined in their order; None where PPO logged no such path.

    The proxy is the score as PPO logs it, standardised on reference samples where the config asks for that. With five
    points or more, the dashed line is the least-squares fit of the gold reward (`overoptimization.fit_reward`).
    """
    reached = reward_path(history)
    if reached is None:
        return None
    figure = new_figure(7.2, 4.6)
    axes = figure.add_subplot()
    quiet(axes)
    _path(axes, reached, reached.proxy, BLUE, "proxy")
    if reached.gold is not None:
        _path(axes, reached, reached.gold, ORANGE, "gold")
        _gold_fit(axes, reached)
    axes.set_xlim(left=0.0)
    axes.margins(x=0.12)
    axes.set_xlabel("√KL to the reference (KL in nats a reply)", fontsize=9, color=GREY)
    axes.set_ylabel("reward a reply", fontsize=9, color=GREY)
    title(axes, "Reward against the distance travelled")
    return save(figure, path)


def _path(axes: Axes, reached: RewardPath, reward: Floats, colour: str, name: str) -> None:
    axes.plot(reached.distance, reward, color=colour, alpha=0.35, linewidth=1.0)
    axes.scatter(reached.distance, reward, color=colour, s=14, linewidths=0, zorder=3)
    axes.annotate(
        name,
        (reached.distance[-1], reward[-1]),
        xytext=(8, 0),
        textcoords="offset points",
        color=colour,
        fontsize=11,
        fontweight="bold",
        va="center",
    )


def _gold_fit(axes: Axes, reached: RewardPath) -> None:
    fit = fit_reward(reached.distance, reached.gold) if reached.gold is not None else None
    if fit is None:
        return
    grid = np.linspace(0.0, float(reached.distance.max()), 200)
    axes.plot(grid, fit.at(grid), color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=4)
    peak = fit.peak
    if peak is not None and peak < grid[-1]:
        height = float(fit.at(np.asarray([peak]))[0])
        axes.plot([peak], [height], marker="o", markersize=6, markerfacecolor="white", markeredgecolor=INK, zorder=5)
        axes.annotate(
            f"fitted gold peaks at KL {peak**2:.1f}",
            (peak, height),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
