"""A run: the stages of its pipeline, one after the other, their plots, and their input and output artifacts."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlhf_lightning.distributed import barrier, broadcast_object, rank
from rlhf_lightning.evaluation.summary import render_samples, render_summary, short_name
from rlhf_lightning.models.hub import is_adapter
from rlhf_lightning.models.settings import CourtesyModel, HubModel
from rlhf_lightning.runs.cache_store import Entry
from rlhf_lightning.runs.identity import StageKeys
from rlhf_lightning.runs.stage_cache import CachedResult, StageCache
from rlhf_lightning.stages.artifacts import BASE
from rlhf_lightning.stages.context import RunInputs, StageContext, StageResult, device_of
from rlhf_lightning.stages.monitoring import StageMemory, memory_explained, memory_table
from rlhf_lightning.stages.readers import stage_inputs
from rlhf_lightning.stages.restore import drop_checkpoints, restore
from rlhf_lightning.stages.run_directory import METRICS, RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings, TrainerSettings
from rlhf_lightning.tracking.history_file import read_history
from rlhf_lightning.tracking.loggers import StageTracker, is_trial, open_tracker
from rlhf_lightning.tracking.naming import Artifact, model_artifact, stage_artifact
from rlhf_lightning.worlds import courtesy

PLOTS_FOLDER = "plots"


def draw_plots(settings: RunSettings, stage: str, metrics: Mapping[str, Any], run_dir: Path) -> list[Path]:
    """Draw, or draw again, what the stage has changed, as PNG files under `plots/`.

    Returns:
        The files drawn.
    """
    folder = run_dir / PLOTS_FOLDER
    folder.mkdir(exist_ok=True)
    evaluates = bool(metrics["evaluate"]) and not settings.trains(stage)
    if not evaluates and not settings.trains(stage):
        return []
    from rlhf_lightning.evaluation.plots import evaluation_bars, learning_curves, overoptimization

    if evaluates:
        drawn = [evaluation_bars(metrics["evaluate"], folder / "evaluation.png")]
    else:
        history = read_history(run_dir)
        declared = {name: settings.stage(name).logged for name in settings.pipeline.stages}
        drawn = [learning_curves(history, folder / "learning_curves.png", declared)]
        if declared[stage].by_episodes:
            drawn.append(overoptimization(history, folder / "overoptimization.png"))
    return [path for path in drawn if path is not None]


HUB = "https://huggingface.co"
DIGEST = "digest"
"""Name of a stage's key in metadata, where anything named key is redacted as a secret."""

KeyOf = Callable[[str], str]
"""The key of a stage of this run."""


def input_artifacts(settings: RunSettings, run: RunDirectory, stage: str, key_of: KeyOf) -> Iterable[Artifact]:
    """Input artifacts of a stage: earlier stages, named by their cache keys, and models."""
    artifacts = [_input(name, settings, run, key_of) for _, name in stage_inputs(settings, stage)]
    return {artifact.name: artifact for artifact in artifacts if artifact is not None}.values()


def output_artifact(
    settings: RunSettings, run: RunDirectory, stage: str, key_of: KeyOf, figures: Mapping[str, Any]
) -> Artifact:
    """Output artifact of a stage, with its inputs and figures as metadata."""
    metadata = {
        DIGEST: key_of(stage),
        "base": getattr(settings.model, "name_or_path", settings.model.kind),
        "peft": settings.peft.kind,
        "seed": settings.seed,
        "run": str(run.path),
        "figures": {name: value for name, value in figures.items() if name != "key"},
    }
    return stage_artifact(stage, key_of(stage), run.stage_dir(stage), metadata)


def _input(name: str, settings: RunSettings, run: RunDirectory, key_of: KeyOf) -> Artifact | None:
    """One input; None if it does not exist yet, such as a model that will be made from scratch."""
    if name in settings.sections_of_stages:
        return stage_artifact(name, key_of(name), run.stage_dir(name), {DIGEST: key_of(name)})
    if name == BASE:
        model = settings.model
        if isinstance(model, CourtesyModel):
            return model_artifact("courtesy", courtesy.asset_path())
        return _model(model.name_or_path, model.revision) if isinstance(model, HubModel) else None
    return _artifact_of_other_run(Path(name)) or _model(name, None)


def _model(name: str, revision: str | None) -> Artifact:
    """A model in a directory, or of the hub."""
    if Path(name).is_dir():
        return model_artifact("/".join(Path(name).resolve().parts[-2:]), Path(name))
    return model_artifact(name, f"{HUB}/{name}/tree/{revision or 'main'}")


def _artifact_of_other_run(directory: Path) -> Artifact | None:
    """Artifact of a stage of another run, under the name that it has there."""
    metrics, stage = directory.resolve().parent / METRICS, directory.resolve().name
    if not metrics.exists():
        return None
    key = json.loads(metrics.read_text(encoding="utf-8"))["stages"].get(stage, {}).get("key")
    return stage_artifact(stage, key, directory, {DIGEST: key}) if key else None


logger = logging.getLogger(__name__)

Metrics = dict[str, Any]


class StageDecision(Enum):
    """Decision that rank 0 broadcasts for a stage that the other ranks do not run: wait, or load from cache."""

    WAIT = "for another run, which builds it"
    LOAD_CACHED = "it from the cache"


@dataclass(frozen=True)
class RunStage:
    """Decision that rank 0 broadcasts for a stage that has to be run.

    Attributes:
        checkpoint: to resume from; None to start.
    """

    checkpoint: Path | None


Decision = StageDecision | RunStage


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
        return _follow_rank_zero(inputs, keys)
    metrics: Metrics = run.metrics or {"objective": None, "stages": {}, "evaluate": {}}
    finished = broadcast_object(run.status.artifacts)
    for stage in finished:
        keys.remember(stage, metrics["stages"][stage]["key"])
    cache = StageCache(settings.cache, run, keys)
    console = Console()
    for stage in settings.pipeline.stages:
        if stage in finished:
            drop_checkpoints(run, stage)
            continue
        run.update_status(state="running", stage=stage)
        with cache.turn(stage, _announce_wait) as entry:
            made = (
                _load_cached(entry, inputs, cache, metrics)
                if entry is not None
                else _run_and_cache(stage, inputs, cache, metrics)
            )
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


def _follow_rank_zero(inputs: RunInputs, keys: StageKeys) -> Metrics:
    """Follow rank 0 through the pipeline and join its trainings; for the other ranks."""
    finished: dict[str, str] = broadcast_object(None)
    for stage in inputs.settings.pipeline.stages:
        if stage in finished:
            continue
        decision: Decision = broadcast_object(None)
        while decision is StageDecision.WAIT:
            decision = broadcast_object(None)
        if not isinstance(decision, StageDecision) and inputs.settings.trains(stage):
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


def _announce_wait() -> None:
    broadcast_object(StageDecision.WAIT)


def _load_cached(entry: Entry, inputs: RunInputs, cache: StageCache, metrics: Metrics) -> CachedResult:
    """Load a stage from the cache instead of running it."""
    started = time.perf_counter()
    stage = entry.record.stage
    broadcast_object(StageDecision.LOAD_CACHED)
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


def _run_and_cache(stage: str, inputs: RunInputs, cache: StageCache, metrics: Metrics) -> CachedResult:
    """Run a stage, from its checkpoint if it has one, and add it to the cache."""
    begins = broadcast_object(RunStage(restore(inputs.run, stage)))
    cache.begins(stage, goes_on=begins.checkpoint is not None)
    result = _run_stage(stage, inputs, cache.keys, metrics, begins.checkpoint)
    figures = metrics["stages"][stage]
    made = CachedResult(figures["seconds"], figures, result.objective, result.evaluation, result.samples)
    cache.keep(stage, made)
    return made


def _run_stage(
    stage: str, inputs: RunInputs, keys: StageKeys, metrics: Metrics, checkpoint: Path | None
) -> StageResult:
    """Run one stage and add its figures to `metrics`."""
    logger.info("Stage %s.", stage)
    started = time.perf_counter()
    with open_tracker(inputs.settings, inputs.run.path, stage, inputs.run.overrides) as tracker:
        for artifact in input_artifacts(inputs.settings, inputs.run, stage, keys.of):
            tracker.log_input_artifact(artifact)
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
    tracker.log_output_artifact(output_artifact(inputs.settings, inputs.run, stage, keys.of, figures))
    if objective is not None and stage == inputs.settings.pipeline.stages[-1]:
        tracker.log_objective(objective)
