"""Heatmap of principle satisfaction: policies against the constitutions they were trained on, and the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from rlhf_lightning.evaluation.plots.style import BLUE, INK, PALE, new_figure, save, title

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
        means: satisfaction from 0 to 1, by row and column; a cell without one is left grey.
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
            colour = "white" if mean > LIGHT_INK_FROM else INK
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour, linespacing=1.0)
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
