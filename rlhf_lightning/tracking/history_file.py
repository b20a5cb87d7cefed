"""Read and edit the history file, during a run or after it, without importing Lightning."""

from __future__ import annotations

import csv
from pathlib import Path

from rlhf_lightning.atomic import write_text
from rlhf_lightning.errors import RunDirectoryError
from rlhf_lightning.evaluation.curves import HistoryRow, Point, points

HISTORY_FILE = "history.csv"
EPISODES = "rollout/episodes"


def read_history(run_dir: Path) -> list[HistoryRow]:
    """All figures a run has logged so far, in the order they were logged; empty where it has logged none.

    A last line without its end is still being written, or was cut off when the run was killed. It is left out.

    Raises:
        RunDirectoryError: the history file is not in the format `stage,step,episodes,name,value`.
    """
    path = run_dir / HISTORY_FILE
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    reader = csv.reader(text[: text.rfind("\n") + 1].splitlines())
    header = next(reader, None)
    if header is not None and tuple(header) != HistoryRow._fields:
        raise _malformed(path, 1, f"the header is {','.join(header)!r}, not {','.join(HistoryRow._fields)!r}")
    return [_row(path, reader.line_num, fields) for fields in reader]


def series(run_dir: Path, stage: str, name: str) -> list[Point]:
    """One metric of one stage as `(step, episodes, value)`, in order of steps."""
    return points(read_history(run_dir), stage, name)


def forget_stage(run_dir: Path, stage: str) -> None:
    """Removes all figures of a stage, and an incomplete last line left by a killed run."""
    path = run_dir / HISTORY_FILE
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = "".join(line for line in lines if line.endswith("\n") and not line.startswith(f"{stage},"))
    write_text(path, kept)


def lines_of_stage(run_dir: Path, stage: str) -> str:
    """All lines of a stage, as in the history file."""
    path = run_dir / HISTORY_FILE
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith(f"{stage},"))


def add_lines(run_dir: Path, lines: str) -> None:
    """Appends figures that another run has logged, as `lines_of_stage` gave them."""
    if not lines:
        return
    with (run_dir / HISTORY_FILE).open("a", newline="", encoding="utf-8") as file:
        if file.tell() == 0:
            csv.writer(file, lineterminator="\n").writerow(HistoryRow._fields)
        file.write(lines)


def _row(path: Path, line: int, fields: list[str]) -> HistoryRow:
    try:
        stage, step, episodes, name, value = fields
        return HistoryRow(stage, int(step), int(episodes) if episodes else None, name, float(value))
    except ValueError as error:
        raise _malformed(path, line, str(error)) from error


def _malformed(path: Path, line: int, what: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"The history file cannot be read: {what}.", where=f"{path}, line {line}", fix="restore the line, or delete it"
    )
