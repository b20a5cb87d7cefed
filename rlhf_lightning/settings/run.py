"""The whole config of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rlhf_lightning.settings.cache import CacheSettings
from rlhf_lightning.settings.constitution import ConstitutionSettings
from rlhf_lightning.settings.data import DataSettings
from rlhf_lightning.settings.judge import JudgeSettings
from rlhf_lightning.settings.marks import NO_EFFECT, WATCHING
from rlhf_lightning.settings.model import ModelSettings
from rlhf_lightning.settings.peft import PeftSettings, ReferenceSettings
from rlhf_lightning.settings.reinforcement import AdvantageSettings, KlSettings, RewardSettings, RolloutSettings
from rlhf_lightning.settings.section import Count, Name, Section
from rlhf_lightning.settings.stages import STAGES
from rlhf_lightning.settings.stages.ai_feedback import AiFeedbackSettings
from rlhf_lightning.settings.stages.comparisons import ComparisonsSettings
from rlhf_lightning.settings.stages.critique_revision import CritiqueRevisionSettings
from rlhf_lightning.settings.stages.evaluate import EvaluateSettings
from rlhf_lightning.settings.stages.judge_calibration import JudgeCalibrationSettings
from rlhf_lightning.settings.stages.ppo import PpoSettings
from rlhf_lightning.settings.stages.reward_model import RewardModelSettings
from rlhf_lightning.settings.stages.sft import SftSettings
from rlhf_lightning.settings.sweeping import LauncherSettings, SweepSettings

if TYPE_CHECKING:
    StageName = str
else:
    StageName = Literal[tuple(STAGES)]


class PipelineSettings(Section):
    """The stages to run, in order."""

    name: Name
    stages: Annotated[list[StageName], Field(min_length=1)]


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


class WandbLogging(Section):
    """Weights & Biases, beside the files that every run writes."""

    kind: Literal["wandb"]
    project: Name
    entity: Name | None
    mode: Literal["auto", "online", "offline"]
    artifacts: Literal["reference", "upload", "none"]


class FilesOnly(Section):
    """Only the run directory's own files."""

    kind: Literal["none"]


class TensorBoardLogging(Section):
    """TensorBoard event files in the run directory."""

    kind: Literal["tensorboard"]


LoggerSettings = Annotated[WandbLogging | FilesOnly | TensorBoardLogging, Field(discriminator="kind")]


class CallbackSettings(Section):
    """Callbacks of a training."""

    progress_bar: Annotated[bool, NO_EFFECT]
    diary_every: Annotated[Count, WATCHING]
    diary_samples: Annotated[Count, WATCHING]
    gold_monitor: Annotated[bool, WATCHING]
    plots: Annotated[bool, WATCHING]
    self_checks: Annotated[bool, NO_EFFECT]
    save_every: Annotated[Count, NO_EFFECT]
    save_every_steps: Annotated[Count, NO_EFFECT]
    keep_last: Annotated[Count, NO_EFFECT]
    extra: Annotated[list[dict[str, Any]], WATCHING]


class PathSettings(Section):
    """Output directories of runs."""

    outputs: Name
    run_dir: Name
    sweep_dir: Name


class RunSettings(Section):
    """The checked settings of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    name: Annotated[Name | None, NO_EFFECT]
    notes: Annotated[str | None, NO_EFFECT]
    tags: Annotated[list[Name], NO_EFFECT]
    allow_targets: list[Name]
    resume: Annotated[Name | None, NO_EFFECT]
    pipeline: PipelineSettings
    data: DataSettings
    model: ModelSettings
    peft: PeftSettings
    optimizer: dict[str, Any]
    constitution: ConstitutionSettings
    judge: JudgeSettings
    sft: SftSettings
    critique_revision: CritiqueRevisionSettings
    revision_sft: SftSettings
    comparisons: ComparisonsSettings
    judge_calibration: JudgeCalibrationSettings
    ai_feedback: AiFeedbackSettings
    reward_model: RewardModelSettings
    ppo: PpoSettings
    evaluate: EvaluateSettings
    rollout: RolloutSettings
    kl: KlSettings
    reference: ReferenceSettings
    advantage: AdvantageSettings
    reward: RewardSettings
    trainer: TrainerSettings
    logger: Annotated[LoggerSettings, NO_EFFECT]
    callbacks: CallbackSettings
    cache: Annotated[CacheSettings, NO_EFFECT]
    sweep: Annotated[SweepSettings, NO_EFFECT]
    launcher: Annotated[LauncherSettings, NO_EFFECT]
    paths: Annotated[PathSettings, NO_EFFECT]
