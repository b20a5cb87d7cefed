"""Loggers of one stage: the history file, and those that the config asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightning_utilities.core.rank_zero import rank_zero_only

from rlhf_lightning.constitutions.identity import content_hash
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.evaluation.summary import SampleRow
from rlhf_lightning.records import ScoredResponse
from rlhf_lightning.tracking.naming import Artifact, distinguishing_overrides, group_name, is_job, run_name
from rlhf_lightning.tracking.settings import TensorBoardLogging, WandbLogging, logger_problems
from rlhf_lightning.tracking.wandb_files import agent_trial

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from rlhf_lightning.stages.run_settings import RunSettings
    from rlhf_lightning.tracking.wandb_run import RunCard


class Sink(Protocol):
    """A destination of a stage's results, beside the run directory."""

    def log_summary(self, figures: Mapping[str, float | str]) -> None: ...

    def log_objective(self, objective: float) -> None: ...

    def log_samples(self, rows: Sequence[SampleRow]) -> None: ...

    def log_rollout_samples(self, iteration: int, rows: Sequence[ScoredResponse]) -> None: ...

    def log_plots(self, paths: Sequence[Path]) -> None: ...

    def log_input_artifact(self, artifact: Artifact) -> None: ...

    def log_output_artifact(self, artifact: Artifact) -> None: ...


@dataclass(frozen=True, slots=True)
class StageTracker:
    """Destinations of a stage's figures and results while it runs.

    Attributes:
        loggers: for Lightning's Trainer; the history file comes first.
        sinks: for results. The pipeline writes them to the run directory in any case (`metrics.json`,
            `samples.jsonl`, `plots/`).
    """

    loggers: list[Logger]
    sinks: list[Sink] = field(default_factory=list)

    def log_summary(self, figures: Mapping[str, Any]) -> None:
        """Report final figures; nested ones are named by their path, `evaluate/ppo/iid/gold_reward`."""
        for sink in self.sinks:
            sink.log_summary(flatten(figures))

    def log_objective(self, objective: float) -> None:
        """Report the value that a sweep maximizes; from the last stage of a pipeline."""
        for sink in self.sinks:
            sink.log_objective(objective)

    def log_samples(self, rows: Sequence[SampleRow]) -> None:
        """Report responses before and after, as a table."""
        for sink in self.sinks:
            sink.log_samples(rows)

    def log_rollout_samples(self, iteration: int, rows: Sequence[ScoredResponse]) -> None:
        """Report some of a PPO iteration's rollouts, in addition to those of earlier iterations."""
        for sink in self.sinks:
            sink.log_rollout_samples(iteration, rows)

    def log_input_artifact(self, artifact: Artifact) -> None:
        """Report an input of the stage."""
        for sink in self.sinks:
            sink.log_input_artifact(artifact)

    def log_output_artifact(self, artifact: Artifact) -> None:
        """Report the output of the stage."""
        for sink in self.sinks:
            sink.log_output_artifact(artifact)

    def log_plots(self, paths: Sequence[Path]) -> None:
        """Report plots (PNG files), each under its file name."""
        for sink in self.sinks:
            sink.log_plots(paths)


@contextmanager
def open_tracker(settings: RunSettings, run_dir: Path, stage: str, overrides: Sequence[str]) -> Iterator[StageTracker]:
    """Open the loggers of a stage, and close them however the stage ends.

    Only rank zero opens anything beside the history file.

    Args:
        run_dir: must exist.
        overrides: what the command line changed; they give the run its name unless `settings.name` does.

    Raises:
        ConfigError: the chosen logger cannot work here (`requirements.logger_problems`).
    """
    problems = logger_problems(settings.logger)
    if problems:
        raise ConfigError(problems)
    from rlhf_lightning.tracking.history import HistoryLogger  # imports Lightning

    history = HistoryLogger(run_dir, stage)
    if getattr(rank_zero_only, "rank", 0) != 0:
        yield StageTracker([history])
    elif isinstance(settings.logger, WandbLogging):
        # Imported only here: the client takes half a second, and no other choice needs it.
        from rlhf_lightning.tracking.wandb_run import WandbLogger, WandbRun, WandbSink

        card = run_card(settings, settings.logger, run_dir, stage, overrides)
        with WandbRun(card, run_dir, settings.logger.mode) as tracked:
            artifacts = settings.logger.artifacts
            sink = WandbSink(tracked, None if artifacts == "none" else artifacts)
            yield StageTracker([history, WandbLogger(tracked)], [sink])
    elif isinstance(settings.logger, TensorBoardLogging):
        from rlhf_lightning.tracking.tensorboard import TensorBoardSink

        with TensorBoardSink(run_dir, stage) as events:
            yield StageTracker([history, events.logger], [events])
    else:
        yield StageTracker([history])


def run_card(
    settings: RunSettings, wandb: WandbLogging, run_dir: Path, stage: str, overrides: Sequence[str]
) -> RunCard:
    """Name, group and config of a stage's W&B run, grouped with the run's other stages or the sweep's other jobs.

    In a pipeline that `wandb agent` started, the run of the last stage is the agent's trial.
    """
    from rlhf_lightning.tracking.wandb_run import RunCard

    name = settings.name or run_name(distinguishing_overrides(run_dir, overrides), default=run_dir.resolve().name)
    if settings.goes_by_constitution:
        name += f" {settings.constitution.name}@{content_hash(settings.constitution)}"
    return RunCard(
        project=wandb.project,
        entity=wandb.entity,
        group=group_name(run_dir),
        job_type=stage,
        name=f"{stage} {name}",
        tags=settings.tags,
        notes=settings.notes,
        config=settings.model_dump(mode="json"),
        logged=settings.stage(stage).logged,
        trial=agent_trial() if is_trial(settings, run_dir, stage) else None,
    )


def is_trial(settings: RunSettings, run_dir: Path, stage: str) -> bool:
    """True if a stage's run is the trial of the W&B agent that started this process.

    The trial is the run of the pipeline's last stage. Jobs of our own sweeps are never trials: they would share one.
    """
    return agent_trial() is not None and stage == settings.pipeline.stages[-1] and not is_job(run_dir)


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Nested figures under one name each; an interval `[low, high]` becomes `.../low` and `.../high`.

    None values are left out.
    """
    flat: dict[str, float | str] = {}
    for key, value in figures.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
        elif isinstance(value, list | tuple) and len(value) == 2:
            flat |= flatten({"low": value[0], "high": value[1]}, f"{name}/")
        elif isinstance(value, str | int | float):
            flat[name] = value
        elif value is not None:
            flat[name] = str(value)
    return flat
