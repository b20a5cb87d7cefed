"""The tables at the end of a run: figures of each policy, and the same prompts answered before and after."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from rlhf_lightning.errors import RunDirectoryError

SAMPLES_FILE = "samples.jsonl"
SHOWN = 200
"""Characters of a prompt or response that the terminal's table shows; the file has all of them."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One prompt and the responses of two policies.

    Attributes:
        split: which prompts it was drawn from.
        prompt: as readable text.
        proxy_before, proxy_after: what the reward under training says; None where there is none.
        gold_before, gold_after: what is truly good; None outside the courtesy world.
    """

    split: str
    prompt: str
    before: str
    after: str
    proxy_before: float | None = None
    proxy_after: float | None = None
    gold_before: float | None = None
    gold_after: float | None = None


def write_samples(rows: Iterable[SampleRow], path: Path) -> None:
    """Write the rows as JSON lines, replacing what was there."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_samples(run_dir: Path) -> list[SampleRow]:
    """The rows that a run left; none where it left no file.

    Raises:
        RunDirectoryError: a line is no such row.
    """
    path = run_dir / SAMPLES_FILE
    if not path.exists():
        return []
    # Not splitlines(): a response may hold one of Unicode's other line ends, which JSON leaves as they are.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _row(path: Path, number: int, line: str) -> SampleRow:
    try:
        return SampleRow(**json.loads(line))
    except (ValueError, TypeError) as error:
        what, fix = f"The samples cannot be read: {error}.", "restore the line, or delete it"
        raise RunDirectoryError(what, where=f"{path}, line {number}", fix=fix) from error


def render_samples(
    rows: Sequence[SampleRow], before: str, after: str, title: str = "Same prompts, two policies"
) -> Table:
    """The rows as a Rich table.

    Args:
        before: the name of the policy that `SampleRow.before` comes from.
        after: likewise for `SampleRow.after`.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_lines=True, expand=True)
    proxy = any(row.proxy_before is not None or row.proxy_after is not None for row in rows)
    gold = any(row.gold_before is not None or row.gold_after is not None for row in rows)
    for header in ("prompt", before, after):
        table.add_column(header, ratio=1, overflow="fold")
    for name, shown in (("proxy", proxy), ("gold", gold)):
        if shown:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [Text(_end_of(row.prompt), style="bold"), Text(_start_of(row.before)), Text(_start_of(row.after))]
        if proxy:
            cells.append(_change(row.proxy_before, row.proxy_after))
        if gold:
            cells.append(_change(row.gold_before, row.gold_after))
        table.add_row(*cells)
    return table


def _end_of(text: str) -> str:
    """The last `SHOWN` characters: of a long conversation, what is answered."""
    return text if len(text) <= SHOWN else f"… {text[-SHOWN:]}"


def _start_of(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


def _change(before: float | None, after: float | None) -> Text:
    """`-0.60 → +1.30`, green where it rose and red where it fell."""
    text = " → ".join("?" if value is None else f"{value:+.2f}" for value in (before, after))
    if before is None or after is None or before == after:
        return Text(text)
    return Text(text, style="green" if after > before else "red")


Metrics = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of every policy on every split."""

    key: str
    name: str
    style: str
    """Number format: `signed` (two decimals), `percent` or `plain` (one decimal)."""


ROWS = (
    Row("gold_reward", "gold reward", "signed"),
    Row("harmful_rate", "harmful", "percent"),
    Row("rude_rate", "rude", "percent"),
    Row("helpful_rate", "helpful", "percent"),
    Row("honest_rate", "honest", "percent"),
    Row("over_refusal_rate", "over-refusal", "percent"),
    Row("evasive_rate", "evasive", "percent"),
    Row("boilerplate_rate", "boilerplate", "percent"),
    Row("malformed_rate", "malformed", "percent"),
    Row("proxy_reward", "proxy reward", "signed"),
    Row("kl", "KL, nats", "plain"),
    Row("length", "length, tokens", "plain"),
    Row("eos_rate", "ended", "percent"),
    Row("repetition", "repetition", "percent"),
)
LABEL_WIDTH, COLUMN_WIDTH = 16, 16
"""Characters of the first column and of each other one, with the space between columns."""
COURTESY_KEY = "gold_reward"
ONLY_WITHOUT_GOLD = ("eos_rate", "repetition")
"""In the courtesy world a response that repeats itself or does not end is malformed, which the table shows."""


def render_summary(metrics: Metrics, run_dir: Path) -> RenderableType:
    """Render the summary table of a run.

    Args:
        metrics: the content of `metrics.json`; parts that are not there are left out of the table.
        run_dir: the run's directory.
    """
    parts: list[RenderableType] = []
    if metrics.get("evaluate"):
        parts.append(PolicyTable(metrics["evaluate"]))
    stages: Metrics = metrics.get("stages", {})
    parts += [_reward_model(name, figures) for name, figures in stages.items() if "training_pairs" in figures]
    if any("seconds" in figures for figures in stages.values()):
        parts.append(_seconds(stages))
    if any("cache" in figures for figures in stages.values()):
        parts.append(_from_the_cache(stages))
    parts.append(_places(run_dir))
    return Group(*parts)


class PolicyTable:
    """A row a figure, a column a policy on a split; splits that do not fit the terminal beside each other stand below.

    Args:
        evaluate: figures by policy and split, as under `evaluate` in `metrics.json`.
    """

    def __init__(self, evaluate: Mapping[str, Mapping[str, Metrics]]) -> None:
        self.evaluate = evaluate
        self.splits = list(dict.fromkeys(split for by_split in evaluate.values() for split in by_split))
        present = {key for by_split in evaluate.values() for figures in by_split.values() for key in figures}
        gold = COURTESY_KEY in present
        self.rows = [row for row in ROWS if row.key in present and not (gold and row.key in ONLY_WITHOUT_GOLD)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("Evaluation", style="bold")
        beside = max(1, (options.max_width - LABEL_WIDTH) // (COLUMN_WIDTH * len(self.evaluate)))
        for start in range(0, len(self.splits), beside):
            yield self._table(self.splits[start : start + beside])

    def _table(self, splits: Sequence[str]) -> Table:
        columns = [
            (split, policy, by_split[split])
            for split in splits
            for policy, by_split in self.evaluate.items()
            if split in by_split
        ]
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.add_column("split\npolicy", no_wrap=True, min_width=LABEL_WIDTH - 2)
        for split, policy, _ in columns:
            table.add_column(
                f"{split}\n{short_name(policy)}", justify="right", no_wrap=True, min_width=COLUMN_WIDTH - 2
            )
        for row in self.rows:
            table.add_row(row.name, *(_cell(figures, row) for _, _, figures in columns))
            if row.key == COURTESY_KEY:
                table.add_row(
                    Text("  95% interval", style="dim"), *(_interval(figures, row) for *_, figures in columns)
                )
        return table


def short_name(policy: str) -> str:
    """A policy as people call it: a stage or hub id as it is, a long path by its last two parts."""
    return "/".join(policy.rstrip("/").split("/")[-2:])


def _cell(figures: Metrics, row: Row) -> str:
    return written(figures[row.key], row.style) if row.key in figures else "-"


def _interval(figures: Metrics, row: Row) -> Text:
    bounds = figures.get(f"{row.key}_ci")
    both = ", ".join(written(bound, row.style) for bound in bounds) if bounds else ""
    return Text(f"[{both}]" if both else "-", style="dim")


def written(value: float, style: str) -> str:
    """A figure in the style of its row."""
    return {"percent": f"{value:.1%}", "plain": f"{value:z.1f}", "signed": f"{value:+z.2f}"}[style]


def _reward_model(name: str, figures: Metrics) -> Text:
    title = name.replace("_", " ").capitalize()
    text = Text.assemble((f"{title} ", "bold"), f"right on {_with_interval(figures, 'accuracy')}")
    if "pairs" in figures:
        text.append(f" of {figures['pairs']} held-out pairs")
    baselines = [
        f"the {name} response {figures[f'{name}_accuracy']:.1%}"
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


def _from_the_cache(stages: Mapping[str, Metrics]) -> Text:
    taken = {stage: float(figures["cache"]["seconds"]) for stage, figures in stages.items() if "cache" in figures}
    return Text.assemble(("From the cache ", "bold"), f"{', '.join(taken)}: {_duration(sum(taken.values()))} saved")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


PLACES = (
    ("metrics.json", "final figures"),
    ("history.csv", "every figure logged"),
    ("samples.jsonl", "responses before and after"),
    ("plots", "pictures"),
)


def _places(run_dir: Path) -> Text:
    text = Text.assemble(("Run directory ", "bold"), str(run_dir))
    for name, what in PLACES:
        if (run_dir / name).exists():
            text.append(f"\n  {name:<14} {what}")
    return text
