"""Common style of all plots: one palette, light axes, labels at the data.

Figures are made without pyplot: nothing global is touched, no display is needed, nothing is left open.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
"""Okabe and Ito's palette, which the common kinds of color blindness can tell apart."""
SERIES = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)
INK, GRAY, PALE = "#222222", "#767676", "#DDDDDD"
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def quiet(axes: Axes) -> None:
    """Only the axes that carry numbers, thin and gray."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=GRAY, labelsize=8, length=2.5, width=0.6)


def title(axes: Axes, text: str, note: str = "", note_color: str = GRAY) -> None:
    """A bold title at the left, and what it is measured in at the right."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color=INK, pad=6)
    if note:
        axes.set_title(note, loc="right", fontsize=8, color=note_color, pad=6)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path
