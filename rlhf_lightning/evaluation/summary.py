"""The table at the end of a run: how well each policy does, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Metrics = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a policy on a split."""

    key: str
    header: str
    style: str = "number"
    """How it is written: `number` (two decimals), `rate` (percent) or `short` (one decimal)."""


COLUMNS = (
    Column("gold_reward", "gold"),
    Column("harmful_rate", "harmful", "rate"),
    Column("rude_rate", "rude", "rate"),
    Column("helpful_rate", "helpful", "rate"),
    Column("honest_rate", "honest", "rate"),
    Column("over_refusal_rate", "over-refusal", "rate"),
    Column("malformed_rate", "malformed", "rate"),
    Column("proxy_reward", "proxy"),
    Column("kl", "KL", "short"),
    Column("length", "length", "short"),
    Column("eos_rate", "ended", "rate"),
    Column("repetition", "repeated", "rate"),
)
COURTESY_KEY = "gold_reward"
ONLY_WITHOUT_GOLD = ("eos_rate", "repetition")
"""In the courtesy world a reply that repeats itself or does not end is malformed, which the table shows."""


def render_summary(metrics: Metrics, run_dir: Path) -> RenderableType:
    """What a run came to.

    Args:
        metrics: the content of `metrics.json`; parts that are not there are left out of the table.
        run_dir: where the run lies.
    """
    parts: list[RenderableType] = []
    if metrics.get("evaluate"):
        parts.append(_policies(metrics["evaluate"]))
    stages: Metrics = metrics.get("stages", {})
    if "accuracy" in stages.get("reward_model", {}):
        parts.append(_reward_model(stages["reward_model"]))
    if any("seconds" in figures for figures in stages.values()):
        parts.append(_seconds(stages))
    parts.append(_places(run_dir))
    return Group(*parts)


def _policies(evaluate: Mapping[str, Mapping[str, Metrics]]) -> Table:
    """Policies by split, a row each; figures that no policy has make no column."""
    everything = [figures for splits in evaluate.values() for figures in splits.values()]
    gold = any(COURTESY_KEY in figures for figures in everything)
    columns = [
        column
        for column in COLUMNS
        if any(column.key in figures for figures in everything) and not (gold and column.key in ONLY_WITHOUT_GOLD)
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Evaluation", title_justify="left", title_style="bold")
    table.add_column("split", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for column in columns:
        table.add_column(column.header, justify="right")
    splits = list(dict.fromkeys(split for of_policy in evaluate.values() for split in of_policy))
    for split in splits:
        rows = [(policy, of_policy[split]) for policy, of_policy in evaluate.items() if split in of_policy]
        for position, (policy, figures) in enumerate(rows):
            cells = [_cell(figures, column) for column in columns]
            last = position == len(rows) - 1
            table.add_row(split if position == 0 else "", policy, *cells, end_section=last)
    if gold:
        table.caption = "Rates are of the prompts they concern. Brackets: bootstrap 95% intervals."
        table.caption_justify = "left"
    return table


def _cell(figures: Metrics, column: Column) -> Text:
    value = figures.get(column.key)
    if value is None:
        return Text("-", style="dim")
    text = Text(_written(value, column.style))
    interval = figures.get(f"{column.key}_ci")
    if column.key == COURTESY_KEY and interval is not None:
        low, high = (_written(bound, column.style) for bound in interval)
        text.append(f" [{low}, {high}]", style="dim")
    return text


def _written(value: float, style: str) -> str:
    if style == "rate":
        return f"{value:.0%}" if value in (0.0, 1.0) or 0.1 <= value <= 0.9 else f"{value:.1%}"
    return f"{value:.1f}" if style == "short" else f"{value:+.2f}"


def _reward_model(figures: Metrics) -> Text:
    text = Text.assemble(("Reward model ", "bold"), f"right on {_with_interval(figures, 'accuracy')}")
    if "pairs" in figures:
        text.append(f" of {figures['pairs']} held-out pairs")
    baselines = [
        f"the {name} reply {figures[f'{name}_accuracy']:.1%}"
        for name in ("longer", "shorter")
        if f"{name}_accuracy" in figures
    ]
    if baselines:
        text.append(f"; baselines: {', '.join(baselines)}")
    lift = figures.get("lift_ci")
    if lift is not None and lift[0] <= 0.0:
        text.append(
            f"\n  It does not beat the better baseline: lift {_with_interval(figures, 'lift')}.", style="yellow"
        )
    return text


def _with_interval(figures: Metrics, key: str) -> str:
    interval = figures.get(f"{key}_ci")
    bounds = f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else ""
    return f"{figures[key]:.1%}{bounds}"


def _seconds(stages: Mapping[str, Metrics]) -> Text:
    times = {stage: float(figures["seconds"]) for stage, figures in stages.items() if "seconds" in figures}
    each = ", ".join(f"{stage} {_duration(seconds)}" for stage, seconds in times.items())
    return Text.assemble(("Time ", "bold"), f"{_duration(sum(times.values()))} ({each})")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


PLACES = (
    ("metrics.json", "final figures"),
    ("history.csv", "every figure logged"),
    ("samples.jsonl", "replies before and after"),
    ("plots", "pictures"),
)


def _places(run_dir: Path) -> Text:
    text = Text.assemble(("Run directory ", "bold"), str(run_dir))
    for name, what in PLACES:
        if (run_dir / name).exists():
            text.append(f"\n  {name:<14} {what}")
    return text
