"""Reliability plot of a judge, and its accuracy beside that of rules that do not read the replies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from rlhf_lightning.evaluation.judge_baselines import BASELINES
from rlhf_lightning.evaluation.plots.style import BLUE, GREY, INK, PALE, new_figure, quiet, save, title

Figures = Mapping[str, Any]

LARGEST_POINT = 260.0
"""Area of the fullest bin's point, in square points."""


def judge_reliability(figures: Figures, path: Path) -> Path | None:
    """Accuracy against confidence, and accuracy beside the trivial baselines'.

    Args:
        figures: as `judge_calibration.pair_figures` returns them.

    Returns:
        The path; None where the judge and people have no pair in common.
    """
    if "reliability" not in figures:
        return None
    figure = new_figure(9.6, 3.9)
    confidence, beside = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.0, 1.15]})
    _reliability(confidence, figures)
    _beside_baselines(beside, figures)
    return save(figure, path)


def _reliability(axes: Axes, figures: Figures) -> None:
    quiet(axes)
    axes.plot([0.5, 1.0], [0.5, 1.0], color=PALE, linewidth=1.0, zorder=0)
    bins = figures["reliability"]
    fullest = max(one["pairs"] for one in bins)
    x, y = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    axes.plot(x, y, color=BLUE, alpha=0.35, linewidth=1.0)
    axes.scatter(x, y, s=[LARGEST_POINT * one["pairs"] / fullest for one in bins], color=BLUE, alpha=0.6, linewidths=0)
    for one in bins:
        # Below the point, or above it where there is no room below.
        below = one["accuracy"] > 0.1
        axes.annotate(
            str(one["pairs"]),
            (one["confidence"], one["accuracy"]),
            xytext=(0, -11 if below else 11),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=8,
            color=INK,
        )
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(-0.05, 1.05)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("confidence of the judge (at each point: pairs)", fontsize=9, color=GREY)
    axes.set_ylabel("right", fontsize=9, color=GREY)
    title(axes, "Reliability", f"expected calibration error {figures['ece']:.2f}")


def _beside_baselines(axes: Axes, figures: Figures) -> None:
    quiet(axes)
    rows = [("the judge", figures), *((BASELINES[name], one) for name, one in figures["baselines"].items())]
    for place, (_, row) in enumerate(rows):
        low, high = row["accuracy_ci"]
        colour = BLUE if place == 0 else GREY
        axes.plot([low, high], [place, place], color=colour, linewidth=2.0, solid_capstyle="butt")
        axes.plot([row["accuracy"]], [place], marker="o", markersize=6, color=colour)
        axes.annotate(
            f"{row['accuracy']:.1%}", (high, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.axvline(0.5, color=PALE, linewidth=1.0, zorder=0)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0.0, 1.12)
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"right, of {figures['compared']} pairs", fontsize=9, color=GREY)
    title(axes, "Beside trivial baselines", "95% intervals")
