"""Bars and maps: the policies' rewards split by split, reliability of a judge, satisfaction of principles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from rlhf_lightning.evaluation.judge_bias import BASELINES
from rlhf_lightning.evaluation.plots.style import BLUE, GRAY, INK, PALE, SERIES, new_figure, quiet, save, title

Figures = Mapping[str, Any]

REWARDS = (("gold_reward", "gold reward"), ("proxy_reward", "proxy reward"))
RATES = (
    ("helpful_rate", "helpful"),
    ("honest_rate", "honest"),
    ("polite_rate", "polite"),
    ("harmful_rate", "harmful"),
    ("rude_rate", "rude"),
    ("untrue_rate", "untrue"),
    ("over_refusal_rate", "over-refusal"),
    ("evasive_rate", "evasive"),
    ("boilerplate_rate", "boilerplate"),
    ("malformed_rate", "malformed"),
    ("eos_rate", "ended"),
    ("repetition", "repetition"),
)
BAR_INCHES = 0.2


def evaluation_bars(evaluate: Mapping[str, Mapping[str, Figures]], path: Path) -> Path | None:
    """Plot each policy's figures on each split, with 95% intervals where there are any.

    Args:
        evaluate: figures by policy and split, as under `evaluate` in `metrics.json`.

    Returns:
        The path; None where there is nothing to draw.
    """
    splits = list(dict.fromkeys(split for by_split in evaluate.values() for split in by_split))
    present = {key for by_split in evaluate.values() for figures in by_split.values() for key in figures}
    parts = [[row for row in rows if row[0] in present] for rows in (REWARDS, RATES)]
    parts = [rows for rows in parts if rows]
    if not splits or not parts:
        return None
    heights = [BAR_INCHES * len(rows) * (len(evaluate) + 0.6) + 0.4 for rows in parts]
    figure = new_figure(1.0 + 4.0 * len(splits), sum(heights) + 0.4)
    grid = figure.subplots(
        len(parts), len(splits), squeeze=False, sharex="row", sharey="row", gridspec_kw={"height_ratios": heights}
    )
    for column, split in enumerate(splits):
        of_split = {policy: by_split[split] for policy, by_split in evaluate.items() if split in by_split}
        for row, rows in enumerate(parts):
            is_rate = rows[0] in RATES
            _bars(grid[row][column], rows, of_split, list(evaluate), named=row == 0, is_rate=is_rate)
        title(grid[0][column], split)
    return save(figure, path)


def _bars(
    axes: Axes,
    rows: Sequence[tuple[str, str]],
    of_split: Mapping[str, Figures],
    policies: Sequence[str],
    *,
    named: bool,
    is_rate: bool,
) -> None:
    """Horizontal bars: a group a figure, a bar a policy, the value at the end.

    Args:
        policies: all of them, in the order that gives them their colors and places.
        named: whether the bars of the first group carry the policies' names.
    """
    quiet(axes)
    thickness = 0.8 / len(policies)
    for position, (key, _) in enumerate(rows):
        for order, policy in enumerate(policies):
            figures = of_split.get(policy, {})
            if key not in figures:
                continue
            value = float(figures[key])
            low, high = figures.get(f"{key}_ci", (value, value))
            place, color = position - 0.4 + thickness * (order + 0.5), SERIES[order % len(SERIES)]
            axes.barh(place, value, height=thickness * 0.88, color=color)
            axes.plot([low, high], [place, place], color=INK, linewidth=1.0)
            text = f"{value:.0%}" if is_rate else f"{value:+.2f}"
            _label(axes, max(high, value, 0.0), place, text, policy if named and position == 0 else "", color)
    axes.axvline(0.0, color=PALE, linewidth=1.0)
    axes.set_yticks(range(len(rows)), [name for _, name in rows], fontsize=9)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.margins(x=0.15)
    if is_rate:
        axes.set_xlim(0.0, 1.12)
        axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _label(axes: Axes, x: float, y: float, value: str, policy: str, color: str) -> None:
    written = axes.annotate(
        value, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
    )
    if policy:
        axes.annotate(f"  {policy}", (1, 0), xycoords=written, va="bottom", fontsize=9, fontweight="bold", color=color)


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
    axes.set_xlabel("confidence of the judge (at each point: pairs)", fontsize=9, color=GRAY)
    axes.set_ylabel("right", fontsize=9, color=GRAY)
    title(axes, "Reliability", f"expected calibration error {figures['ece']:.2f}")


def _beside_baselines(axes: Axes, figures: Figures) -> None:
    quiet(axes)
    rows = [("the judge", figures), *((BASELINES[name], one) for name, one in figures["baselines"].items())]
    for place, (_, row) in enumerate(rows):
        low, high = row["accuracy_ci"]
        color = BLUE if place == 0 else GRAY
        axes.plot([low, high], [place, place], color=color, linewidth=2.0, solid_capstyle="butt")
        axes.plot([row["accuracy"]], [place], marker="o", markersize=6, color=color)
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
    axes.set_xlabel(f"right, of {figures['compared']} pairs", fontsize=9, color=GRAY)
    title(axes, "Beside trivial baselines", "95% intervals")


Cell = tuple[str, str]

SHADES = LinearSegmentedColormap.from_list("satisfaction", ["white", BLUE])
LIGHT_INK_FROM = 0.7
"""The satisfaction above which a shade is too dark for dark ink."""
CELL_WIDTH, CELL_HEIGHT = 0.85, 0.48
NARROWEST = 5.0
"""Inches: room for the title and its note."""


def satisfaction_heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    means: Mapping[Cell, float],
    halves: Mapping[Cell, float],
    path: Path,
    note: str,
) -> Path:
    """A cell a policy (row) and constitution (column), from 0, white, to 1; a policy's own constitution is framed.

    Args:
        means: satisfaction from 0 to 1, by row and column; a cell without one is left gray.
        halves: of their 95% intervals, where there are some.
        note: what was measured where.
    """
    values = np.array([[means.get((row, column), np.nan) for column in columns] for row in rows])
    figure = new_figure(max(NARROWEST, 1.4 + CELL_WIDTH * len(columns)), 0.9 + CELL_HEIGHT * len(rows))
    axes = figure.add_subplot()
    axes.set_facecolor(PALE)
    axes.imshow(values, cmap=SHADES, vmin=0.0, vmax=1.0, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if (row, column) not in means:
                continue
            mean, half = means[row, column], halves.get((row, column))
            text = f"{mean:.0%}" + ("" if half is None else f"\n±{half:.0%}")
            color = "white" if mean > LIGHT_INK_FROM else INK
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color, linespacing=1.0)
            if row == column:
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, edgecolor=INK, linewidth=1.6))
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("trained under", fontsize=9, color=INK)
    title(axes, "Satisfaction of a constitution", note)
    return save(figure, path)
