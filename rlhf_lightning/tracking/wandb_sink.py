"""Logging to an open W&B run: Lightning's metrics, and a stage's results."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from rlhf_lightning.evaluation.samples import SampleRow
from rlhf_lightning.records import ScoredCompletion
from rlhf_lightning.tracking.lineage import Artifact
from rlhf_lightning.tracking.wandb_artifacts import Content
from rlhf_lightning.tracking.wandb_run import WandbRun

OBJECTIVE = "objective"
"""Name of the metric that a sweep maximises, as in the sweep's config."""
DIARY_COLUMNS = ["iteration", "prompt", "reply", "score", "finished"]


class WandbLogger(Logger):
    """Passes Lightning's metrics to an open W&B run.

    Lightning's own logger opens runs by itself, takes over any open run, and finishes none.
    """

    def __init__(self, tracked: WandbRun) -> None:
        super().__init__()
        self._tracked = tracked

    @property
    def name(self) -> str:
        return self._tracked.card.project

    @property
    def version(self) -> str | None:
        return None if self._tracked.run is None else self._tracked.run.id

    @property
    def experiment(self) -> wandb.Run | None:
        """The run itself, for callbacks that use W&B's own functions."""
        return self._tracked.run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one row of history, with the optimizer step beside it."""
        self._tracked.log_row(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run was opened with the whole config."""


class WandbSink:
    """Passes a stage's results to an open W&B run.

    Args:
        content: of artifacts, see `wandb_artifact`; None: artifacts are not logged.
    """

    def __init__(self, tracked: WandbRun, content: Content | None) -> None:
        self._tracked = tracked
        self._content = content
        self._diary: wandb.Table | None = None

    def log_summary(self, figures: Mapping[str, float | str]) -> None:
        self._tracked.summarise(figures)

    def log_objective(self, objective: float) -> None:
        self._tracked.log({OBJECTIVE: objective})
        self._tracked.summarise({OBJECTIVE: objective})

    def log_samples(self, rows: Sequence[SampleRow]) -> None:
        columns: list[str | int] = [field.name for field in fields(SampleRow)]
        table = wandb.Table(columns=columns, data=[list(asdict(row).values()) for row in rows])
        self._tracked.log({"samples": table})

    def log_diary(self, iteration: int, rows: Sequence[ScoredCompletion]) -> None:
        """Append rows to an incremental table: only new rows are sent, and W&B shows them with all earlier ones."""
        self._tracked.log_beside(lambda: {"diary": self._grown_diary(iteration, rows)})

    def log_plots(self, paths: Sequence[Path]) -> None:
        self._tracked.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in paths})

    def take_artifact(self, artifact: Artifact) -> None:
        if self._content is not None:
            self._tracked.take(artifact)

    def leave_artifact(self, artifact: Artifact) -> None:
        if self._content is not None:
            self._tracked.leave(artifact, self._content)

    def _grown_diary(self, iteration: int, rows: Sequence[ScoredCompletion]) -> wandb.Table:
        if self._diary is None:
            self._diary = wandb.Table(columns=list(DIARY_COLUMNS), log_mode="INCREMENTAL")
        for row in rows:
            self._diary.add_data(iteration, row.prompt.plain(), row.reply, row.reward, row.finished)
        return self._diary
