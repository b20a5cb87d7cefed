"""A run: the stages of its pipeline, one after the other."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from rich.console import Console

from rlhf_lightning.evaluation.samples import render_samples
from rlhf_lightning.evaluation.summary import render_summary, short_name
from rlhf_lightning.experiment.plotting import draw_plots
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.stage import RunInputs, StageContext, StageResult
from rlhf_lightning.experiment.stages import STAGE_FUNCTIONS
from rlhf_lightning.settings.run import RunSettings, StageName
from rlhf_lightning.tracking.loggers import open_tracker

logger = logging.getLogger(__name__)

Metrics = dict[str, Any]


def run_pipeline(settings: RunSettings, run: RunDirectory) -> Metrics:
    """Run all stages; metrics.json is brought up to date after each.

    Returns:
        The content of metrics.json.
    """
    if settings.trainer.threads is not None:
        torch.set_num_threads(settings.trainer.threads)
    inputs = RunInputs(settings, run)
    metrics: Metrics = {"objective": None, "stages": {}, "evaluate": {}}
    console = Console()
    for stage in settings.pipeline.stages:
        run.update_status(state="running", stage=stage)
        result = _run_stage(stage, inputs, metrics)
        metrics["objective"] = result.objective
        run.write_metrics(metrics)
        run.add_artifact(stage, run.stage_dir(stage))
        if result.samples:
            policies = [short_name(policy) for policy in settings.evaluate.policies]
            console.print(render_samples(result.samples, policies[0], policies[-1]))
    console.print(render_summary(metrics, run.path))
    return metrics


def _run_stage(stage: StageName, inputs: RunInputs, metrics: Metrics) -> StageResult:
    """One stage; its figures are added to `metrics`."""
    logger.info("Stage %s.", stage)
    started = time.perf_counter()
    with open_tracker(inputs.settings, inputs.run.path, stage, inputs.run.overrides) as tracker:
        context = StageContext(stage, inputs, inputs.run.stage_dir(stage), tracker)
        result = STAGE_FUNCTIONS[stage](context)
        seconds = time.perf_counter() - started
        metrics["stages"][stage] = {**result.metrics, "seconds": round(seconds, 2)}
        metrics["evaluate"] |= result.evaluation
        tracker.log_summary(metrics["stages"][stage] | result.evaluation)
        tracker.log_plots(draw_plots(stage, metrics, inputs.run.path))
    logger.info("Stage %s took %.1f s.", stage, seconds)
    return result
