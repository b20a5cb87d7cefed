"""Bar chart of the policies' rewards and rates, split by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from rlhf_lightning.evaluation.plots.style import INK, PALE, SERIES, new_figure, quiet, save, title

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
        policies: all of them, in the order that gives them their colours and places.
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
            place, colour = position - 0.4 + thickness * (order + 0.5), SERIES[order % len(SERIES)]
            axes.barh(place, value, height=thickness * 0.88, color=colour)
            axes.plot([low, high], [place, place], color=INK, linewidth=1.0)
            text = f"{value:.0%}" if is_rate else f"{value:+.2f}"
            _label(axes, max(high, value, 0.0), place, text, policy if named and position == 0 else "", colour)
    axes.axvline(0.0, color=PALE, linewidth=1.0)
    axes.set_yticks(range(len(rows)), [name for _, name in rows], fontsize=9)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.margins(x=0.15)
    if is_rate:
        axes.set_xlim(0.0, 1.12)
        axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _label(axes: Axes, x: float, y: float, value: str, policy: str, colour: str) -> None:
    written = axes.annotate(
        value, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
    )
    if policy:
        axes.annotate(f"  {policy}", (1, 0), xycoords=written, va="bottom", fontsize=9, fontweight="bold", color=colour)
