"""The history file: every figure that a run logs, readable with a text editor while the run goes on.

`history.csv` is in long format, `stage,step,episodes,name,value`. It is written whatever other loggers a run has,
because an offline W&B run cannot be queried.
"""

from __future__ import annotations

import csv
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from rlhf_lightning.errors import RunDirectoryError
from rlhf_lightning.evaluation.curves import HistoryRow, Point, points

HISTORY_FILE = "history.csv"
EPISODES = "rollout/episodes"


class HistoryLogger(Logger):
    """Appends what Lightning logs to a run's history file, at once and from rank zero only.

    Figures that are not finite are written as they are (`nan`, `inf`, `-inf`), so that a diverged run can be seen.
    """

    def __init__(self, run_dir: Path, stage: str) -> None:
        super().__init__()
        self.path = run_dir / HISTORY_FILE
        self.stage = stage

    @property
    def name(self) -> str:
        return self.stage

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row a metric. `rollout/episodes`, where present, stands in every row of the call."""
        episodes = metrics.get(EPISODES)
        known = episodes is not None and math.isfinite(episodes)
        shared = (self.stage, step or 0, int(episodes) if episodes is not None and known else "")
        # Opened anew each time: nothing is left unflushed when a run is killed, and a resumed run just appends.
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(HistoryRow._fields)
            writer.writerows((*shared, name, repr(float(value))) for name, value in metrics.items())

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run directory holds the config."""


def read_history(run_dir: Path) -> list[HistoryRow]:
    """All figures a run has logged so far, in the order they were logged; empty where it has logged none.

    Raises:
        RunDirectoryError: the history file is not in the format above.
    """
    path = run_dir / HISTORY_FILE
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, None)
        if header is not None and tuple(header) != HistoryRow._fields:
            raise _malformed(path, 1, f"the header is {','.join(header)!r}, not {','.join(HistoryRow._fields)!r}")
        return [_row(path, reader.line_num, fields) for fields in reader]


def series(run_dir: Path, stage: str, name: str) -> list[Point]:
    """One metric of one stage as `(step, episodes, value)`, in order of steps."""
    return points(read_history(run_dir), stage, name)


def _row(path: Path, line: int, fields: list[str]) -> HistoryRow:
    try:
        stage, step, episodes, name, value = fields
        return HistoryRow(stage, int(step), int(episodes) if episodes else None, name, float(value))
    except ValueError as error:
        raise _malformed(path, line, str(error)) from error


def _malformed(path: Path, line: int, what: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"The history file cannot be read: {what}.",
        where=f"{path}, line {line}",
        fix="restore the line, or delete it (a run that was killed while writing may have left half a line)",
    )
