"""The whole config of a run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model

from rlhf_lightning.constitutions.settings import ConstitutionSettings
from rlhf_lightning.data.settings import DataSettings
from rlhf_lightning.feedback.settings import JudgeSettings
from rlhf_lightning.models.settings import ModelSettings, PeftSettings, ReferenceSettings
from rlhf_lightning.rollouts.settings import AdvantageSettings, KlSettings, RewardSection, RolloutSettings
from rlhf_lightning.sections import NO_EFFECT, WATCHING, Count, Name, Section
from rlhf_lightning.stages.declaration import STAGES, Stage, StageSection
from rlhf_lightning.stages.reward_kinds import REWARDS
from rlhf_lightning.stages.settings import CacheSettings, LauncherSettings, SweepSettings
from rlhf_lightning.tracking.settings import LoggerSettings


class PipelineSettings(Section):
    """The names of the config sections of the stages to run, in order."""

    name: Name
    stages: Annotated[list[Name], Field(min_length=1)]


class TrainerSettings(Section):
    """Hardware, processes, precision and determinism, handed to Lightning's Trainer."""

    accelerator: Literal["cpu", "gpu", "auto"]
    strategy: Literal["single", "ddp", "fsdp"]
    devices: Count
    nodes: Count
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    deterministic: bool
    threads: Count | None

    @property
    def processes(self) -> int:
        """Processes of a run, one a device, on all nodes."""
        return self.devices * self.nodes


class CallbackSettings(Section):
    """Callbacks of a training."""

    progress_bar: Annotated[bool, NO_EFFECT]
    sample_log_every: Annotated[Count, WATCHING]
    sample_log_size: Annotated[Count, WATCHING]
    gold_monitor: Annotated[bool, WATCHING]
    plots: Annotated[bool, WATCHING]
    self_checks: Annotated[bool, NO_EFFECT]
    save_every: Annotated[Count, NO_EFFECT]
    save_every_steps: Annotated[Count, NO_EFFECT]
    keep_last: Annotated[Count, NO_EFFECT]
    extra: Annotated[list[dict[str, Any]], WATCHING]


class MeasurementSettings(Section):
    """Measurement of trained models, with a seed apart from the run's: runs are compared on the same prompts."""

    batch_size: Annotated[Count, NO_EFFECT]
    bootstrap_samples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


class PathSettings(Section):
    """Output directories of runs."""

    outputs: Name
    run_dir: Name
    sweep_dir: Name


class RunSettings(Section):
    """The checked settings of a run: the sections that stages share.

    `schema_of` adds a section for each stage, and the kinds of rewards.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    name: Annotated[Name | None, NO_EFFECT]
    notes: Annotated[str | None, NO_EFFECT]
    tags: Annotated[list[Name], NO_EFFECT]
    allow_targets: list[Name]
    plugins: Annotated[list[Name], NO_EFFECT]
    resume: Annotated[Name | None, NO_EFFECT]
    pipeline: PipelineSettings
    data: DataSettings
    model: ModelSettings
    peft: PeftSettings
    optimizer: dict[str, Any]
    constitution: ConstitutionSettings
    judge: JudgeSettings
    measurement: MeasurementSettings
    rollout: RolloutSettings
    kl: KlSettings
    reference: ReferenceSettings
    advantage: AdvantageSettings
    reward: RewardSection
    trainer: TrainerSettings
    logger: Annotated[LoggerSettings, NO_EFFECT]
    callbacks: CallbackSettings
    cache: Annotated[CacheSettings, NO_EFFECT]
    sweep: Annotated[SweepSettings, NO_EFFECT]
    launcher: Annotated[LauncherSettings, NO_EFFECT]
    paths: Annotated[PathSettings, NO_EFFECT]

    def section(self, name: str) -> StageSection:
        """The config section of a stage."""
        section = getattr(self, name)
        assert isinstance(section, StageSection)
        return section

    def stage(self, name: str) -> Stage:
        """The stage whose config section has a name."""
        return STAGES[self.section(name).stage]

    @property
    def goes_by_constitution(self) -> bool:
        """True if a stage of the pipeline reads the principles of the constitution, and there are some."""
        from rlhf_lightning.stages.readers import reads

        return bool(self.constitution.principles) and any(
            reads(self, name, "constitution.principles") for name in self.pipeline.stages
        )

    @property
    def sections_of_stages(self) -> list[str]:
        """Names of the sections that are for stages, whether the pipeline runs them or not."""
        return [name for name, section in self if isinstance(section, StageSection)]

    def trains(self, name: str) -> bool:
        """True if an instance trains a model; all processes of a run take part in it."""
        return self.stage(name).trained is not None


def schema_of(stages: Mapping[str, str]) -> type[RunSettings]:
    """The schema of a config with these sections of stages.

    Args:
        stages: name of the section -> name of a registered stage.
    """
    own = {name: stage for name, stage in stages.items() if name not in RunSettings.model_fields}
    sections = tuple((name, STAGES[stage].Settings) for name, stage in own.items())
    return _schema(sections, tuple(reward.Settings for reward in REWARDS.values()))


@functools.cache
def _schema(sections: tuple[tuple[str, type[Section]], ...], rewards: tuple[type[Section], ...]) -> type[RunSettings]:
    fields: dict[str, Any] = {name: (section, ...) for name, section in sections}
    fields["reward"] = (Annotated[Union[rewards], Field(discriminator="kind")], ...)  # noqa: UP007  a tuple of kinds
    schema: type[RunSettings] = create_model("RunSettings", __base__=RunSettings, **fields)
    return schema
