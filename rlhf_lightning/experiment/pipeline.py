"""A run: the stages of its pipeline, one after the other."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlhf_lightning.distributed import barrier, from_first, rank
from rlhf_lightning.evaluation.samples import render_samples
from rlhf_lightning.evaluation.summary import render_summary, short_name
from rlhf_lightning.experiment.artifacts import BASE
from rlhf_lightning.experiment.cache.entry import Entry
from rlhf_lightning.experiment.cache.keys import StageKeys
from rlhf_lightning.experiment.cache.stage_cache import Made, StageCache
from rlhf_lightning.experiment.lineage import left_by, taken_in
from rlhf_lightning.experiment.memory.exhaustion import memory_explained
from rlhf_lightning.experiment.memory.stage_memory import StageMemory, memory_table
from rlhf_lightning.experiment.plotting import draw_plots
from rlhf_lightning.experiment.rewind import drop_checkpoints, rewind
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.models.hub import is_adapter
from rlhf_lightning.stages.context import RunInputs, StageContext, StageResult, device_of
from rlhf_lightning.stages.run_settings import RunSettings, TrainerSettings
from rlhf_lightning.tracking.loggers import StageTracker, is_trial, open_tracker

logger = logging.getLogger(__name__)

Metrics = dict[str, Any]


class Turn(Enum):
    """Decision that rank 0 broadcasts for a stage that the other ranks do not run: wait, or load from cache."""

    WAITS = "for another run, which builds it"
    TAKES = "it from the cache"


@dataclass(frozen=True)
class Begins:
    """Decision that rank 0 broadcasts for a stage that has to be run.

    Attributes:
        checkpoint: to resume from; None to start.
    """

    checkpoint: Path | None


Decision = Turn | Begins


def run_pipeline(settings: RunSettings, run: RunDirectory) -> Metrics:
    """Run all stages; metrics.json is updated after each.

    Stages found in the stage cache are loaded from it. In the directory of an interrupted run, finished stages are
    kept, and the interrupted one resumes from its newest checkpoint.

    With several processes, rank 0 does all of it; the others join where a model is trained.

    Returns:
        The content of metrics.json.
    """
    _set_threads(settings.trainer)
    inputs = RunInputs(settings, run)
    keys = StageKeys(settings, device_of(settings.trainer).type, lambda: inputs.data)
    if rank() > 0:
        return _take_part(inputs, keys)
    metrics: Metrics = run.metrics or {"objective": None, "stages": {}, "evaluate": {}}
    finished = from_first(run.status.artifacts)
    for stage in finished:
        keys.remember(stage, metrics["stages"][stage]["key"])
    cache = StageCache(settings.cache, run, keys)
    console = Console()
    for stage in settings.pipeline.stages:
        if stage in finished:
            drop_checkpoints(run, stage)
            continue
        run.update_status(state="running", stage=stage)
        with cache.turn(stage, _say_that_the_first_waits) as entry:
            made = _take(entry, inputs, cache, metrics) if entry is not None else _make(stage, inputs, cache, metrics)
        metrics["objective"] = made.objective
        run.write_metrics(metrics)
        run.add_artifact(stage, run.stage_dir(stage))
        drop_checkpoints(run, stage)
        barrier()
        if made.samples:
            policies = [short_name(policy) for policy in made.evaluation]
            console.print(render_samples(made.samples, policies[0], policies[-1]))
    console.print(memory_table(metrics["stages"]))
    console.print(render_summary(metrics, run.path))
    return metrics


def _take_part(inputs: RunInputs, keys: StageKeys) -> Metrics:
    """Follow rank 0 through the pipeline and join its trainings; for the other ranks."""
    finished: dict[str, str] = from_first(None)
    for stage in inputs.settings.pipeline.stages:
        if stage in finished:
            continue
        decision: Decision = from_first(None)
        while decision is Turn.WAITS:
            decision = from_first(None)
        if not isinstance(decision, Turn) and inputs.settings.trains(stage):
            with (
                open_tracker(inputs.settings, inputs.run.path, stage, inputs.run.overrides) as tracker,
                StageMemory(device_of(inputs.settings.trainer)) as memory,
                memory_explained(stage, inputs.settings.stage(stage).relief, memory),
            ):
                directory, key = inputs.run.stage_dir(stage), keys.of(stage)
                context = StageContext(stage, inputs, directory, tracker, decision.checkpoint, memory, key)
                inputs.settings.stage(stage).run(context)
        barrier()
    return {}


def _set_threads(trainer: TrainerSettings) -> None:
    """Give each process its share of the machine's cores, unless `OMP_NUM_THREADS` is set."""
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    elif trainer.devices > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // trainer.devices))


def _say_that_the_first_waits() -> None:
    from_first(Turn.WAITS)


def _take(entry: Entry, inputs: RunInputs, cache: StageCache, metrics: Metrics) -> Made:
    """Load a stage from the cache instead of running it."""
    started = time.perf_counter()
    stage = entry.record.stage
    from_first(Turn.TAKES)
    made = cache.take(entry)
    if is_adapter(inputs.run.stage_dir(stage)):
        inputs.model(BASE)  # the base of the adapter, which the run may have to make
    seconds = round(time.perf_counter() - started, 2)
    metrics["stages"][stage] = {**made.metrics, "seconds": seconds, "key": entry.record.key}
    metrics["evaluate"] |= made.evaluation
    plots = _plots(stage, inputs, metrics)
    if is_trial(inputs.settings, inputs.run.path, stage):  # the agent waits for the figures of its trial
        with open_tracker(inputs.settings, inputs.run.path, stage, inputs.run.overrides) as tracker:
            _report(stage, inputs, cache.keys, metrics, made.evaluation, made.objective, plots, tracker)
    return made


def _make(stage: str, inputs: RunInputs, cache: StageCache, metrics: Metrics) -> Made:
    """Run a stage, from its checkpoint if it has one, and add it to the cache."""
    begins = from_first(Begins(rewind(inputs.run, stage)))
    cache.begins(stage, goes_on=begins.checkpoint is not None)
    result = _run_stage(stage, inputs, cache.keys, metrics, begins.checkpoint)
    figures = metrics["stages"][stage]
    made = Made(figures["seconds"], figures, result.objective, result.evaluation, result.samples)
    cache.keep(stage, made)
    return made


def _run_stage(
    stage: str, inputs: RunInputs, keys: StageKeys, metrics: Metrics, checkpoint: Path | None
) -> StageResult:
    """Run one stage and add its figures to `metrics`."""
    logger.info("Stage %s.", stage)
    started = time.perf_counter()
    with open_tracker(inputs.settings, inputs.run.path, stage, inputs.run.overrides) as tracker:
        for artifact in taken_in(inputs.settings, inputs.run, stage, keys.of):
            tracker.take_artifact(artifact)
        with (
            StageMemory(device_of(inputs.settings.trainer)) as memory,
            memory_explained(stage, inputs.settings.stage(stage).relief, memory),
        ):
            directory, key = inputs.run.stage_dir(stage), keys.of(stage)
            context = StageContext(stage, inputs, directory, tracker, checkpoint, memory, key)
            result = inputs.settings.stage(stage).run(context)
        seconds = time.perf_counter() - started
        metrics["stages"][stage] = {
            **result.metrics,
            "seconds": round(seconds, 2),
            "memory": memory.figures(),
            "key": key,
        }
        metrics["evaluate"] |= result.evaluation
        plots = _plots(stage, inputs, metrics)
        _report(stage, inputs, keys, metrics, result.evaluation, result.objective, plots, tracker)
    logger.info("Stage %s took %.1f s.", stage, seconds)
    return result


def _plots(stage: str, inputs: RunInputs, metrics: Metrics) -> list[Path]:
    """Draw the plots that the stage changes, if they are enabled."""
    return draw_plots(inputs.settings, stage, metrics, inputs.run.path) if inputs.settings.callbacks.plots else []


def _report(
    stage: str,
    inputs: RunInputs,
    keys: StageKeys,
    metrics: Metrics,
    evaluation: Mapping[str, Any],
    objective: float | None,
    plots: Sequence[Path],
    tracker: StageTracker,
) -> None:
    """Report a stage's results to its tracker."""
    figures = metrics["stages"][stage]
    tracker.log_summary({**figures, **evaluation})
    tracker.log_plots(plots)
    tracker.leave_artifact(left_by(inputs.settings, inputs.run, stage, keys.of, figures))
    if objective is not None and stage == inputs.settings.pipeline.stages[-1]:
        tracker.log_objective(objective)
