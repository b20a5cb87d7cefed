"""Writer of the history file: every figure that a run logs, readable with a text editor while the run continues.

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

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.tracking.history_file import EPISODES, HISTORY_FILE


class HistoryLogger(Logger):
    """Appends what Lightning logs to a run's history file, at once and from rank zero only.

    Figures that are not finite are written as they are (`nan`, `inf`, `-inf`), so that divergence is visible.
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
        """Append one row per metric. `rollout/episodes`, if present, is repeated in every row of the call."""
        episodes = metrics.get(EPISODES)
        known = episodes is not None and math.isfinite(episodes)
        shared = (self.stage, step or 0, int(episodes) if episodes is not None and known else "")
        # Reopened each time: nothing is left unflushed when a run is killed, and a resumed run just appends.
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(HistoryRow._fields)
            writer.writerows((*shared, name, repr(float(value))) for name, value in metrics.items())

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run directory holds the config."""
