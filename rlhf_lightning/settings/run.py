"""The whole config of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from rlhf_lightning.settings.cache import CacheSettings
from rlhf_lightning.settings.constitution import ConstitutionSettings
from rlhf_lightning.settings.data import DataSettings
from rlhf_lightning.settings.judge import JudgeSettings, SelfJudge
from rlhf_lightning.settings.model import ModelSettings
from rlhf_lightning.settings.peft import PeftSettings, ReferenceSettings
from rlhf_lightning.settings.reinforcement import AdvantageSettings, KlSettings, RewardSettings, RolloutSettings
from rlhf_lightning.settings.section import Count, Name, Section
from rlhf_lightning.settings.stages import (
    AiFeedbackSettings,
    ComparisonsSettings,
    CritiqueRevisionSettings,
    EvaluateSettings,
    JudgeCalibrationSettings,
    PpoSettings,
    RewardModelSettings,
    SftSettings,
)
from rlhf_lightning.settings.sweeping import LauncherSettings, SweepSettings

StageName = Literal[
    "sft",
    "critique_revision",
    "revision_sft",
    "comparisons",
    "judge_calibration",
    "ai_feedback",
    "reward_model",
    "ppo",
    "evaluate",
]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)

FROM_DATA = "data"
"""In the place of a stage: what the data group holds."""


class PipelineSettings(Section):
    """Which stages run, in order. Nothing else decides that."""

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
    """What watches a training."""

    progress_bar: bool
    diary_every: Count
    diary_samples: Count
    gold_monitor: bool
    plots: bool
    self_checks: bool
    save_every: Count
    save_every_steps: Count
    keep_last: Count
    extra: list[dict[str, Any]]


class PathSettings(Section):
    """Where runs are written."""

    outputs: Name
    run_dir: Name
    sweep_dir: Name


class RunSettings(Section):
    """A run, checked: what `rlhf train` was told."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    name: Name | None
    notes: str | None
    tags: list[Name]
    allow_targets: list[Name]
    resume: Name | None
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
    logger: LoggerSettings
    callbacks: CallbackSettings
    cache: CacheSettings
    sweep: SweepSettings
    launcher: LauncherSettings
    paths: PathSettings


def stage_inputs(settings: RunSettings, stage: StageName) -> list[tuple[str, str]]:
    """The inputs of a stage: config key and what it names (a stage, `base`, a path or a hub id)."""
    return [(key, name) for key, name in _INPUTS[stage](settings) if name is not None and name != FROM_DATA]


Inputs = list[tuple[str, str | None]]


def _sft(settings: RunSettings) -> Inputs:
    return [
        ("sft.policy_from", settings.sft.policy_from),
        ("sft.demonstrations_from", settings.sft.demonstrations_from),
    ]


def _critique_revision(settings: RunSettings) -> Inputs:
    own = settings.critique_revision
    return [
        ("critique_revision.policy_from", own.policy_from),
        ("critique_revision.reviser_from", own.reviser_from),
    ]


def _revision_sft(settings: RunSettings) -> Inputs:
    own = settings.revision_sft
    return [
        ("revision_sft.policy_from", own.policy_from),
        ("revision_sft.demonstrations_from", own.demonstrations_from),
    ]


def _comparisons(settings: RunSettings) -> Inputs:
    return [("comparisons.policy_from", settings.comparisons.policy_from)]


def _judge(settings: RunSettings) -> Inputs:
    return [("judge.model_from", settings.judge.model_from)] if isinstance(settings.judge, SelfJudge) else []


def _ai_feedback(settings: RunSettings) -> Inputs:
    own = settings.ai_feedback
    return [
        ("ai_feedback.policy_from", own.policy_from),
        ("ai_feedback.calibration_from", own.calibration_from),
        *_judge(settings),
    ]


def _reward_model(settings: RunSettings) -> Inputs:
    own = settings.reward_model
    return [
        ("reward_model.backbone_from", own.backbone_from),
        ("reward_model.comparisons_from", own.comparisons_from),
        ("reward_model.mix_from", own.mix_from),
    ]


def _ppo(settings: RunSettings) -> Inputs:
    inputs: Inputs = [("ppo.policy_from", settings.ppo.policy_from)]
    if settings.reward.kind == "learned":
        inputs.append(("ppo.reward_from", settings.ppo.reward_from))
    if settings.reward.kind == "ensemble":
        inputs.extend(("reward.models", model) for model in settings.reward.models)
    return inputs


def _evaluate(settings: RunSettings) -> Inputs:
    return [
        ("evaluate.reference_from", settings.evaluate.reference_from),
        ("evaluate.reward_from", settings.evaluate.reward_from),
        *(("evaluate.policies", policy) for policy in settings.evaluate.policies),
        *(_judge(settings) if settings.evaluate.satisfaction is not None else []),
    ]


_INPUTS: dict[StageName, Callable[[RunSettings], Inputs]] = {
    "sft": _sft,
    "critique_revision": _critique_revision,
    "revision_sft": _revision_sft,
    "comparisons": _comparisons,
    "judge_calibration": _judge,
    "ai_feedback": _ai_feedback,
    "reward_model": _reward_model,
    "ppo": _ppo,
    "evaluate": _evaluate,
}
