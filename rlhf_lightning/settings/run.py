"""The whole config of a run, and the rules that join its sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from rlhf_lightning.errors import Problem
from rlhf_lightning.settings.data import CourtesyData, DataSettings
from rlhf_lightning.settings.model import CourtesyModel, ModelSettings, ScratchModel
from rlhf_lightning.settings.peft import PeftSettings, ReferenceSettings
from rlhf_lightning.settings.reinforcement import AdvantageSettings, KlSettings, RewardSettings, RolloutSettings
from rlhf_lightning.settings.section import Count, Name, Section
from rlhf_lightning.settings.stages import (
    ComparisonsSettings,
    EvaluateSettings,
    PpoSettings,
    RewardModelSettings,
    SftSettings,
)

StageName = Literal["sft", "comparisons", "reward_model", "ppo", "evaluate"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)


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
    sft: SftSettings
    comparisons: ComparisonsSettings
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
    paths: PathSettings


def cross_field_problems(settings: RunSettings) -> list[Problem]:
    """What no single section can see: sections that contradict each other."""
    return [
        *_minibatch_problems(settings),
        *_process_problems(settings),
        *_share_problems(settings),
        *_precision_problems(settings),
        *_length_problems(settings),
        *_world_problems(settings),
        *_critic_problems(settings),
        *_pipeline_problems(settings),
    ]


def _minibatch_problems(settings: RunSettings) -> list[Problem]:
    ppo, rollout = settings.ppo, settings.rollout
    if rollout.batch_size % ppo.minibatches:
        return [
            Problem(
                "ppo.minibatches",
                f"{ppo.minibatches} minibatches do not divide rollout.batch_size={rollout.batch_size}",
                fix="choose a divisor, so that every minibatch has the same number of rollouts",
            )
        ]
    minibatch = rollout.batch_size // ppo.minibatches
    if minibatch % ppo.micro_batch_size:
        return [
            Problem(
                "ppo.micro_batch_size",
                f"{ppo.micro_batch_size} does not divide the minibatch of {minibatch} rollouts "
                f"(rollout.batch_size / ppo.minibatches)",
                fix=f"choose a divisor of {minibatch}",
            )
        ]
    return []


def _process_problems(settings: RunSettings) -> list[Problem]:
    """One process where several are asked for, and what FSDP cannot do."""
    trainer = settings.trainer
    problems = []
    if trainer.strategy == "single" and trainer.processes > 1:
        key = "trainer.devices" if trainer.devices > 1 else "trainer.nodes"
        what = f"{trainer.devices} devices on {trainer.nodes} nodes need {trainer.processes} processes, and one runs"
        problems.append(Problem(key, what, fix="choose trainer=ddp or trainer=fsdp"))
    if trainer.strategy == "fsdp" and trainer.precision == "16-mixed":
        what = "16-mixed scales the loss, which Lightning cannot do over shards (trainer=fsdp)"
        problems.append(Problem("trainer.precision", what, fix="choose bf16-mixed"))
    if trainer.strategy == "fsdp" and "ppo" in settings.pipeline.stages and settings.ppo.kl_budget is not None:
        what = "it keeps a copy of the weights to go back to, which trainer=fsdp holds in shards"
        problems.append(Problem("ppo.kl_budget", what, fix="choose trainer=ddp, or ppo.target_kl, or kl=adaptive"))
    return problems


def _share_problems(settings: RunSettings) -> list[Problem]:
    """Each process must get the same number of whole micro-batches of each optimizer step."""
    processes = settings.trainer.processes
    steps = {
        "sft": ("sft.batch_size", settings.sft.batch_size, settings.sft.micro_batch_size),
        "reward_model": (
            "reward_model.batch_size",
            settings.reward_model.batch_size,
            settings.reward_model.micro_batch_size,
        ),
        "ppo": (
            "ppo.minibatches",
            settings.rollout.batch_size // settings.ppo.minibatches,
            settings.ppo.micro_batch_size,
        ),
    }
    problems = []
    for stage, (key, size, micro_batch_size) in steps.items():
        if processes == 1 or stage not in settings.pipeline.stages:
            continue
        share, left_over = divmod(size, processes)
        if left_over or share % min(share, micro_batch_size):
            what = (
                f"an optimizer step of {size} does not divide into micro-batches of {micro_batch_size} "
                f"on {processes} processes"
            )
            problems.append(Problem(key, what, fix=f"choose a multiple of {processes} times {stage}.micro_batch_size"))
    return problems


def _precision_problems(settings: RunSettings) -> list[Problem]:
    if settings.trainer.precision != "16-mixed":
        return []
    problems = []
    if settings.trainer.accelerator == "cpu":
        problems.append(Problem("trainer.precision", "16-mixed needs a GPU", fix="use bf16-mixed, or 32-true"))
    if settings.model.dtype == "float16":
        what = "16-mixed scales the loss for weights in float32, and they are in float16"
        problems.append(Problem("model.dtype", what, fix="use model.dtype=float32"))
    return problems


def _length_problems(settings: RunSettings) -> list[Problem]:
    problems = []
    if isinstance(settings.model, ScratchModel):
        longest = settings.data.max_prompt_length + max(settings.data.max_reply_length, settings.rollout.max_new_tokens)
        if longest > settings.model.max_positions:
            problems.append(
                Problem(
                    "model.max_positions",
                    f"the model reads {settings.model.max_positions} tokens, but prompt and reply may take {longest}",
                    fix="raise model.max_positions, or lower data.max_prompt_length, data.max_reply_length "
                    "or rollout.max_new_tokens",
                )
            )
    return problems


def _world_problems(settings: RunSettings) -> list[Problem]:
    courtesy_model = isinstance(settings.model, CourtesyModel)
    courtesy_data = isinstance(settings.data, CourtesyData)
    if courtesy_model and not courtesy_data:
        return [
            Problem(
                "model",
                f"the courtesy model knows only the courtesy world's words, and data.kind is {settings.data.kind!r}",
                fix="add model=scratch or model=hub model.name_or_path=...",
            )
        ]
    return []


def _critic_problems(settings: RunSettings) -> list[Problem]:
    if settings.ppo.critic != "reward_model" or settings.reward.kind == "learned":
        return []
    what = f"a critic copied from ppo.reward_from would judge on another scale than reward={settings.reward.kind}"
    return [Problem("ppo.critic", what, fix="use ppo.critic=separate or policy_trunk, or reward=learned")]


def _pipeline_problems(settings: RunSettings) -> list[Problem]:
    """Every input that names a stage must come from a stage that runs earlier in this pipeline."""
    problems = []
    stages = settings.pipeline.stages
    if len(set(stages)) != len(stages):
        problems.append(Problem("pipeline.stages", f"a stage stands twice in {list(stages)}", fix="name each once"))
    for position, stage in enumerate(stages):
        earlier = stages[:position]
        for key, value in stage_inputs(settings, stage):
            if value in STAGE_NAMES and value not in earlier:
                problems.append(
                    Problem(
                        key,
                        f"stage {value!r} does not run before {stage!r} in pipeline {settings.pipeline.name!r}",
                        fix=f"give a path to an artifact, e.g. {key}=outputs/latest/{value}"
                        + (
                            ", or 'base' for the starting model"
                            if key.endswith(("policy_from", "backbone_from"))
                            else ""
                        ),
                    )
                )
    return problems


def stage_inputs(settings: RunSettings, stage: StageName) -> list[tuple[str, str]]:
    """The inputs of a stage: config key and what it names (a stage, `base`, a path or a hub id)."""
    if stage == "sft":
        return [("sft.policy_from", settings.sft.policy_from)]
    if stage == "comparisons":
        return [("comparisons.policy_from", settings.comparisons.policy_from)]
    if stage == "reward_model":
        return [
            ("reward_model.backbone_from", settings.reward_model.backbone_from),
            ("reward_model.comparisons_from", settings.reward_model.comparisons_from),
        ]
    if stage == "ppo":
        inputs = [("ppo.policy_from", settings.ppo.policy_from)]
        if settings.reward.kind == "learned":
            inputs.append(("ppo.reward_from", settings.ppo.reward_from))
        if settings.reward.kind == "ensemble":
            inputs.extend(("reward.models", model) for model in settings.reward.models)
        return inputs
    return [
        ("evaluate.reference_from", settings.evaluate.reference_from),
        *([("evaluate.reward_from", settings.evaluate.reward_from)] if settings.evaluate.reward_from else []),
        *(("evaluate.policies", policy) for policy in settings.evaluate.policies),
    ]
