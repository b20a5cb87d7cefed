"""The calibration of a judge, for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_lightning.evaluation.judge_baselines import BASELINES

Figures = Mapping[str, Any]

INTERVAL = "95% interval"
REPORT, PLOT = "calibration.md", "reliability.png"


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the report; all columns but the first hold figures."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def render_calibration(figures: Figures) -> RenderableType:
    """The calibration for the terminal.

    Args:
        figures: as `judge_calibration.calibration_figures` returns them, and whose they are: `judge`, `mode` and
            `constitution`.
    """
    parts: list[RenderableType] = [
        Text(_heading(figures), style="bold"),
        Text(figures["verdict"], style="green" if figures["worth_training_on"] else "yellow"),
    ]
    for section in _sections(figures):
        table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(section.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in section.rows:
            table.add_row(*map(Text, row))
        parts.append(table)
    return Group(*parts)


def write_calibration(figures: Figures, directory: Path, *, draw: bool) -> None:
    """Writes `calibration.md` and, if it is wanted and there is something to draw, `reliability.png` beside it."""
    drawn = _drawn(figures, directory / PLOT) if draw else None
    lines = [f"# {_heading(figures)}", "", f"**{figures['verdict']}**", ""]
    if drawn is not None:
        lines += [f"![Confidence against accuracy, and accuracy beside trivial baselines]({PLOT})", ""]
    for section in _sections(figures):
        lines += [f"## {section.title}", "", *_markdown(section), ""]
    (directory / REPORT).write_text("\n".join(lines), encoding="utf-8")


def _drawn(figures: Figures, path: Path) -> Path | None:
    from rlhf_lightning.evaluation.plots.judge_reliability import judge_reliability  # matplotlib takes a second

    return judge_reliability(figures, path)


def _heading(figures: Figures) -> str:
    return f"Judge {figures['judge']}, {figures['mode']}, under constitution {figures['constitution']}"


def _sections(figures: Figures) -> list[Section]:
    """The tables that have rows."""
    principles: Mapping[str, Figures] = figures["principles"]
    pairs = {name: part for name, part in principles.items() if "pairs" in part}
    verdicts = {name: part["pointwise"] for name, part in principles.items() if "pointwise" in part}
    if "pointwise" in figures:
        verdicts["all"] = figures["pointwise"]
    sections = [
        Section("Labels", ("figure", "value", INTERVAL), list(_label_rows(figures))),
        Section(
            "Trivial baselines",
            ("rule", "right", INTERVAL, "decides", "right where it does"),
            list(_baseline_rows(figures.get("baselines", {}))),
        ),
        Section("Biases", ("figure", "value", INTERVAL), list(_bias_rows(figures))),
        Section(
            "Principle by principle",
            ("principle", "pairs", "right", INTERVAL, "best baseline", "lift, points", INTERVAL, "mass"),
            list(_principle_rows(pairs)),
        ),
        Section(
            "Yes or no to single replies",
            ("principle", "replies", "yes, people", "yes, judge", "right, balanced", INTERVAL, "mass"),
            list(_verdict_rows(verdicts)),
        ),
    ]
    return [section for section in sections if section.rows]


def _label_rows(figures: Figures) -> Iterator[tuple[str, ...]]:
    yield "pairs", str(figures["pairs"]), ""
    yield "with a preference of people", str(figures["labelled"]), ""
    yield "with a label of the judge", str(figures["answered"]), ""
    yield "undecided (abstained)", str(figures["abstained"]), ""
    yield "unanswered (too little probability on the options)", str(figures["parse_failures"]), ""
    yield "compared: both have one", f"{figures['compared']} on {figures['prompts']} prompts", ""
    yield "parse failures, of all questions", _percent(figures, "parse_failure_rate"), ""
    yield "probability of the options together", *_both(figures, "mass")
    yield "right: agrees with people", *_both(figures, "accuracy")
    yield "lift over the best baseline, points", *_both(figures, "lift", "points")
    yield "Cohen's kappa", *_both(figures, "kappa", "plain")
    yield "Brier score", *_both(figures, "brier", "plain")
    yield "expected calibration error", _written(figures["ece"], "plain") if "ece" in figures else "-", ""


def _baseline_rows(baselines: Mapping[str, Figures]) -> Iterator[tuple[str, ...]]:
    for name, one in baselines.items():
        yield BASELINES[name], *_both(one, "accuracy"), _percent(one, "coverage"), _percent(one, "decided_accuracy")


def _bias_rows(figures: Figures) -> Iterator[tuple[str, ...]]:
    if "first_slot_rate" in figures:
        yield "position: names the reply shown first (50%: no bias)", *_both(figures, "first_slot_rate")
    if "same_slot_rate" in figures:
        text = f"position: names the same place in both orders, of {figures['both_orders']} pairs"
        yield text, *_both(figures, "same_slot_rate")
    if "length_bias" in figures:
        yield "length: odds of choosing a reply twice as long (x1: no bias)", *_both(figures, "length_bias", "odds")
    if "self_preference" in figures:
        text = f"self: prefers its own model's reply more than people, points, of {figures['own_pairs']} pairs"
        yield text, *_both(figures, "self_preference", "points")


def _principle_rows(principles: Mapping[str, Figures]) -> Iterator[tuple[str, ...]]:
    for name, part in principles.items():
        best = "-"
        if "best_baseline" in part:
            rule = part["best_baseline"]
            best = f"{rule.replace('_', ' ')} {_percent(part['baselines'][rule], 'accuracy')}"
        yield (
            name,
            str(part["compared"]),
            *_both(part, "accuracy"),
            best,
            *_both(part, "lift", "points"),
            _percent(part, "mass"),
        )


def _verdict_rows(verdicts: Mapping[str, Figures]) -> Iterator[tuple[str, ...]]:
    for name, one in verdicts.items():
        rates = (_percent(one, "human_yes_rate"), _percent(one, "yes_rate"))
        yield name, str(one["answered"]), *rates, *_both(one, "balanced_accuracy"), _percent(one, "mass")


def _both(figures: Figures, name: str, style: str = "percent") -> tuple[str, str]:
    """A figure and its interval; dashes where it is not defined."""
    if name not in figures:
        return "-", "-"
    low, high = (_written(bound, style) for bound in figures[f"{name}_ci"])
    return _written(figures[name], style), f"[{low}, {high}]"


def _percent(figures: Figures, name: str) -> str:
    return _written(figures[name], "percent") if name in figures else "-"


def _written(value: float, style: str) -> str:
    match style:
        case "percent":
            return f"{value:.1%}"
        case "points":
            return f"{100.0 * value:+z.1f}"
        case "odds":
            return f"x{math.exp(value):.2f}"
        case _:
            return f"{value:z.3f}"


def _markdown(section: Section) -> list[str]:
    rule = ["---", *("---:" for _ in section.columns[1:])]
    return [_row(section.columns), _row(rule), *map(_row, section.rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
