"""The ways into an open W&B run: what Lightning logs, and a stage's results."""

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
from rlhf_lightning.tracking.wandb_run import GLOBAL_STEP, WandbRun


class WandbLogger(Logger):
    """Hands what Lightning logs to an open W&B run.

    Lightning's own logger opens runs by itself, adopts whichever run is alive and finishes none; this one does neither.
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
        self._tracked.log(metrics if step is None else {**metrics, GLOBAL_STEP: step})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run was opened with the whole config."""


class WandbSink:
    """Hands a stage's results to an open W&B run."""

    def __init__(self, tracked: WandbRun) -> None:
        self._tracked = tracked

    def log_summary(self, figures: Mapping[str, float | str]) -> None:
        self._tracked.summarise(figures)

    def log_samples(self, rows: Sequence[SampleRow]) -> None:
        columns: list[str | int] = [field.name for field in fields(SampleRow)]
        table = wandb.Table(columns=columns, data=[list(asdict(row).values()) for row in rows])
        self._tracked.log({"samples": table})

    def log_plots(self, paths: Sequence[Path]) -> None:
        self._tracked.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in paths})
