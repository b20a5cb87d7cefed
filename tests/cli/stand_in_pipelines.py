"""Stand-in pipelines for `forked.start(body=...)`: they do only what a test of signals or of sweeps is about."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from rlhf_lightning.runs import run
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings


def use(pipeline: Callable[[RunSettings, RunDirectory], None]) -> None:
    """Puts a function in the pipeline's place, in this process and those forked from it."""
    run._run_pipeline = pipeline


def finish(settings: RunSettings, run_dir: RunDirectory) -> None:
    run_dir.write_metrics({"objective": settings.seed})


def save_when_interrupted(_: RunSettings, run_dir: RunDirectory) -> None:
    run_dir.write_text("ready", "")
    try:
        time.sleep(60)
    finally:
        run_dir.write_text("saved", "")


def tell_by_rank(settings: RunSettings, run_dir: RunDirectory) -> None:
    run_dir.write_text(f"rank{os.environ['RANK']}", f"{settings.seed} {settings.kl.model_dump()['coef']}")
