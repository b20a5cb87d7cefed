"""`rlhf compare`: runs beside each other, seeds averaged, best first."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.comparison.compare import compare
from rlhf_lightning.comparison.differing_settings import comma_separated
from rlhf_lightning.comparison.files import write_files
from rlhf_lightning.comparison.records import Comparison
from rlhf_lightning.comparison.request import BEST, Request
from rlhf_lightning.comparison.tables import Row, differences, means, summary

FOLDER = "compare"
"""Output folder within the compared directory, if there is only one."""
HERE = Path("comparison")
"""Output directory if several directories are compared."""
SETTINGS = "settings"
LONGEST_SETTINGS = 160
"""Characters of a group's settings that the terminal shows."""
EPILOG = """\
examples:
  rlhf compare outputs/latest
  rlhf compare outputs/multirun/*/* --by kl.coef --metrics 'iid.*'
  rlhf compare outputs/latest --baseline kl.coef=0.1,peft=none

exit code: 0 compared, 2 no run there, or no such key, metric or group
"""


def main(argv: Sequence[str]) -> int:
    """Compares the runs, prints the tables, and writes the files."""
    arguments = parser().parse_args(list(argv))
    given = [Path(path) for path in arguments.directories]
    request = Request(
        by=comma_separated(arguments.by) if arguments.by else None,
        metrics=comma_separated(arguments.metrics) if arguments.metrics else None,
        sort=arguments.sort,
        baseline=arguments.baseline,
    )
    comparison = compare(given, request)
    files = write_files(comparison, Path(arguments.out) if arguments.out else _place(given))
    console = stdout()
    show(console, comparison)
    console.print(Text(f"written: {', '.join(map(str, files))}"), soft_wrap=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf compare`."""
    arguments = argparse.ArgumentParser(
        prog="rlhf compare",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments.add_argument(
        "directories", nargs="+", metavar="DIR", help="a run, a sweep, or a folder that holds runs or sweeps"
    )
    arguments.add_argument(
        "--by", metavar="KEYS", help="group by these config keys only, and average over the rest: kl.coef,peft"
    )
    arguments.add_argument(
        "--metrics", metavar="NAMES", help="the figures to show, as named in runs.csv; patterns too: objective,iid.*"
    )
    arguments.add_argument("--sort", metavar="NAME", help="the figure that decides what is best (default: objective)")
    arguments.add_argument(
        "--baseline",
        metavar="GROUP",
        default=BEST,
        help="what differences are taken against: best, first, or settings: kl.coef=0.1,peft=none (default: best)",
    )
    arguments.add_argument(
        "--out", metavar="DIR", help=f"where the files go (default: DIR/{FOLDER} of one directory, else {HERE})"
    )
    return arguments


def show(console: Console, comparison: Comparison) -> None:
    """Print the means, the differences, the notes and the runs left out."""
    console.print(Text(summary(comparison), style="bold"))
    for part in _beside(console, comparison, means(comparison)):
        console.print(part)
    rows = differences(comparison)
    if comparison.baseline is not None and rows:
        console.print(Text(f"Less {comparison.baseline.label}", style="bold"))
        for part in _beside(console, comparison, rows):
            console.print(part)
    for note in comparison.notes:
        console.print(Text(note, style="dim"))
    if comparison.left_out:
        console.print(Text("Not counted", style="bold"))
    for entry in comparison.left_out:
        console.print(Text(f"{entry.where}: {entry.why}"), soft_wrap=True)


def _place(given: Sequence[Path]) -> Path:
    return given[0] / FOLDER if len(given) == 1 else HERE


def _beside(console: Console, comparison: Comparison, rows: Sequence[Row]) -> Iterator[Table]:
    """The rows as tables: as many metrics beside each other as fit, the others below with the settings repeated."""
    figures = [metric.label for metric in comparison.metrics]
    widths = _widths(rows)
    if sum(widths[key] for key in comparison.keys) > console.width // 2:
        rows = [_settings_in_one(row, comparison.keys) for row in rows]
        widths = _widths(rows) | {SETTINGS: console.width // 3}
    fixed = [name for name in widths if name not in figures]
    room = console.width - sum(widths[name] for name in fixed)
    columns: list[str] = []
    for name in figures:
        if columns and sum(widths[column] for column in columns) + widths[name] > room:
            yield _table(fixed, columns, rows)
            columns = []
        columns.append(name)
    yield _table(fixed, columns, rows)


def _settings_in_one(row: Row, keys: Sequence[str]) -> Row:
    """A row with its settings in one cell, the first of them where they are many; the files have all."""
    label = " ".join(f"{key}={row[key]}" for key in keys)
    shown = label if len(label) <= LONGEST_SETTINGS else f"{label[:LONGEST_SETTINGS]} ..."
    return {SETTINGS: shown, **{name: cell for name, cell in row.items() if name not in keys}}


def _widths(rows: Sequence[Row]) -> dict[str, int]:
    """Characters of each column with the space beside it."""
    headings = dict.fromkeys(name for row in rows for name in row)
    return {name: max(_width(name), *(len(row[name]) for row in rows)) + 3 for name in headings}


def _table(fixed: Sequence[str], columns: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in fixed:
        table.add_column(name, justify="right" if name in ("runs", "n") else "left", overflow="fold")
    for name in columns:
        table.add_column(_on_lines(name), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[name]) for name in (*fixed, *columns)))
    return table


def _on_lines(heading: str) -> str:
    """`gold reward, iid` on two lines."""
    return heading.replace(", ", "\n")


def _width(heading: str) -> int:
    return max(map(len, _on_lines(heading).split("\n")))
