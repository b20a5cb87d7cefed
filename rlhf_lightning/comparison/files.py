"""A comparison as files: tables for people in Markdown, for programs in CSV, and a page."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rlhf_lightning.comparison.differing_settings import SEED
from rlhf_lightning.comparison.metrics import names
from rlhf_lightning.comparison.records import Comparison, Group
from rlhf_lightning.comparison.report import write_report
from rlhf_lightning.comparison.tables import differences, means, summary
from rlhf_lightning.errors import ComparisonError

GROUPS_CSV, RUNS_CSV, MARKDOWN, REPORT = "compare.csv", "runs.csv", "compare.md", "report.html"
Row = Mapping[str, object]


def write_files(comparison: Comparison, directory: Path) -> list[Path]:
    """Writes compare.csv, runs.csv, compare.md and report.html into a directory, which is made if need be.

    Raises:
        ComparisonError: it cannot be written.
    """
    paths = [directory / name for name in (GROUPS_CSV, RUNS_CSV, MARKDOWN, REPORT)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_csv(paths[0], [group_row(group, comparison) for group in comparison.groups])
        _write_csv(paths[1], run_rows(comparison))
        paths[2].write_text(markdown(comparison), encoding="utf-8")
        write_report(comparison, paths[3])
    except OSError as error:
        what = f"The comparison cannot be written: {error.strerror or error}."
        fix = "choose another place: --out DIR"
        raise ComparisonError(what, where=str(error.filename or directory), fix=fix) from error
    return paths


def group_row(group: Group, comparison: Comparison) -> dict[str, object]:
    """A row of compare.csv: settings, numbers of runs, and of each metric mean, interval and difference."""
    row: dict[str, object] = {
        **group.settings,
        "runs": len(group.runs),
        "finished": len(group.finished),
        "baseline": group is comparison.baseline,
    }
    for metric in comparison.metrics:
        row |= _with_prefix(metric.name, group.estimates.get(metric.name), ("mean", "low", "high", "count"))
        of_delta = ("mean", "low", "high", "count", "method")
        row |= _with_prefix(f"{metric.name}.delta", group.deltas.get(metric.name), of_delta)
    return row


def run_rows(comparison: Comparison) -> Iterator[dict[str, object]]:
    """The rows of runs.csv: what each run was told, how it ended, and every figure it left."""
    figures = names(comparison.runs)
    for run in comparison.runs:
        yield {
            "run": run.name,
            "state": run.state,
            "seed": run.seed,
            **{key: value for key, value in run.settings.items() if key != SEED},
            **{name: run.figures.get(name) for name in figures},
            "directory": str(run.directory),
        }


def markdown(comparison: Comparison) -> str:
    """The tables of means and differences, the notes, and what was left out."""
    parts = ["# Comparison", f"{summary(comparison)}.", _table(means(comparison))]
    if comparison.baseline is not None and (rows := differences(comparison)):
        parts += [f"## Less {comparison.baseline.label}", _table(rows)]
    if comparison.notes:
        parts += ["## How to read this", "\n".join(f"- {note}" for note in comparison.notes)]
    if comparison.left_out:
        parts += ["## Not counted", "\n".join(f"- {entry.where}: {entry.why}" for entry in comparison.left_out)]
    return "\n\n".join(parts) + "\n"


def _with_prefix(name: str, record: object, fields: Sequence[str]) -> dict[str, object]:
    return {f"{name}.{part}": getattr(record, part) if record is not None else None for part in fields}


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    content = list(rows)
    columns = list(dict.fromkeys(name for row in content for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(content)


def _table(rows: Iterable[Mapping[str, str]]) -> str:
    content = list(rows)
    columns = list(dict.fromkeys(name for row in content for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "") for name in columns] for row in content)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
