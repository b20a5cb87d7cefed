"""Validation rules across the sections of a config."""

from __future__ import annotations

from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.errors import Problem
from rlhf_lightning.models.settings import CourtesyModel, NoPeft, QLora, ScratchModel
from rlhf_lightning.stages.ppo import PpoSettings
from rlhf_lightning.stages.readers import judging_stages, stage_inputs
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.stages.supervised import SupervisedLoop


def cross_field_problems(settings: RunSettings) -> list[Problem]:
    """Problems across sections: settings that contradict each other."""
    return [
        *_process_problems(settings),
        *_share_problems(settings),
        *_precision_problems(settings),
        *_length_problems(settings),
        *_world_problems(settings),
        *_phrasing_problems(settings),
        *_sharing_problems(settings),
        *_quantization_problems(settings),
        *_pipeline_problems(settings),
        *(one for name in settings.pipeline.stages for one in settings.stage(name).problems(settings, name)),
    ]


def _process_problems(settings: RunSettings) -> list[Problem]:
    """A single-process strategy with several processes, and options that FSDP does not support."""
    trainer = settings.trainer
    problems = []
    if trainer.strategy == "single" and trainer.processes > 1:
        key = "trainer.devices" if trainer.devices > 1 else "trainer.nodes"
        what = f"{trainer.devices} devices on {trainer.nodes} nodes need {trainer.processes} processes, and one runs"
        problems.append(Problem(key, what, fix="choose trainer=ddp or trainer=fsdp"))
    if trainer.strategy == "fsdp" and trainer.precision == "16-mixed":
        what = "16-mixed scales the loss, which Lightning cannot do over shards (trainer=fsdp)"
        problems.append(Problem("trainer.precision", what, fix="choose bf16-mixed"))
    return problems


def _share_problems(settings: RunSettings) -> list[Problem]:
    """Each process must get the same number of whole micro-batches of each optimizer step."""
    processes = settings.trainer.processes
    problems = []
    for stage in settings.pipeline.stages if processes > 1 else ():
        section = settings.section(stage)
        if isinstance(section, SupervisedLoop):
            key, size = f"{stage}.batch_size", section.batch_size
        elif isinstance(section, PpoSettings):
            key, size = f"{stage}.minibatches", settings.rollout.batch_size // section.minibatches
        else:
            continue
        micro_batch_size = section.micro_batch_size
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
        longest = settings.data.max_prompt_length + max(
            settings.data.max_response_length, settings.rollout.max_new_tokens
        )
        if longest > settings.model.max_positions:
            problems.append(
                Problem(
                    "model.max_positions",
                    f"the model reads {settings.model.max_positions} tokens; prompt and response may take {longest}",
                    fix="raise model.max_positions, or lower data.max_prompt_length, data.max_response_length "
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


def _phrasing_problems(settings: RunSettings) -> list[Problem]:
    """Principles and options without wording in the courtesy world, where models are prompted in its wording."""
    stages = {settings.section(name).stage for name in settings.pipeline.stages}
    in_world = isinstance(settings.data, CourtesyData)
    to_judge = bool(judging_stages(settings)) and (
        settings.judge.phrasing == "world" or (settings.judge.phrasing == "auto" and in_world)
    )
    to_revise = in_world and "critique_revision" in stages
    problems = []
    for number, principle in enumerate(settings.constitution.principles if to_judge or to_revise else ()):
        if principle.world is None:
            what = f"principle {principle.id!r} has no name in the courtesy world, whose model knows no English"
            fix = "give it one, e.g. world: {tag: harmless}, or choose other data and another model"
            problems.append(Problem(f"constitution.principles.{number}.world", what, fix=fix))
    if to_judge and settings.judge.cot:
        fix = "set judge.cot=false, or judge.phrasing=english with a judge that knows it"
        problems.append(Problem("judge.cot", "the courtesy world has no words for reasoning", fix=fix))
    return problems


def _sharing_problems(settings: RunSettings) -> list[Problem]:
    if settings.model.share_backbone is True and isinstance(settings.peft, NoPeft):
        what = "peft=none trains all weights: there are no frozen ones to share"
        return [Problem("model.share_backbone", what, fix="choose an adapter, e.g. peft=lora, or share_backbone=auto")]
    return []


def _quantization_problems(settings: RunSettings) -> list[Problem]:
    if not isinstance(settings.peft, QLora):
        return []
    problems = []
    if settings.trainer.accelerator == "cpu":
        what = "weights in 4 bits need a CUDA GPU, and trainer.accelerator is cpu"
        problems.append(Problem("peft", what, fix="use peft=lora, or trainer=gpu on a machine with one"))
    if settings.trainer.strategy == "fsdp":
        problems.append(
            Problem("peft", "weights in 4 bits cannot be put in shards", fix="use trainer=ddp, or peft=lora")
        )
    return problems


def _pipeline_problems(settings: RunSettings) -> list[Problem]:
    """Every input that names a stage must come from a stage that runs earlier in this pipeline."""
    problems = []
    stages, sections = settings.pipeline.stages, set(settings.sections_of_stages)
    if len(set(stages)) != len(stages):
        what = f"a name stands twice in {', '.join(stages)}"
        fix = "give one of them a section of its own: +stage@NAME=STAGE"
        problems.append(Problem("pipeline.stages", what, fix=fix))
    for position, stage in enumerate(stages):
        earlier = stages[:position]
        for key, value in stage_inputs(settings, stage):
            if value in sections and value not in earlier:
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
