"""Checks that the files, directories and import targets named by a config exist, without loading any of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from rlhf_lightning.data.settings import CourtesyData, FileData, HHRlhfData, HubData
from rlhf_lightning.errors import Problem, RunDirectoryError
from rlhf_lightning.feedback.settings import HubJudge, OpenAiJudge
from rlhf_lightning.models.settings import HubModel, PeftSettings, QLora
from rlhf_lightning.ranks import rank_info
from rlhf_lightning.stages.readers import judging_stages, named_inputs
from rlhf_lightning.stages.run_directory import already_taken, holds_a_run
from rlhf_lightning.stages.run_settings import RunSettings, TrainerSettings
from rlhf_lightning.stages.targets import refusals
from rlhf_lightning.tracking.settings import logger_problems
from rlhf_lightning.worlds.courtesy.grammar import PROMPT_KINDS


def environment_problems(settings: RunSettings) -> list[Problem]:
    """Problems with what a config names and this machine does not have."""
    return [
        *_file_problems(settings),
        *_artifact_problems(settings),
        *_kind_problems(settings),
        *_target_problems(settings),
        *_process_problems(settings.trainer),
        *_judge_problems(settings),
        *(() if _runs_elsewhere(settings) else _gpu_problems(settings)),
        *logger_problems(settings.logger),
    ]


def check_run_directory(path: Path) -> None:
    """Refuses a directory that a run cannot be written to.

    Raises:
        RunDirectoryError: if it holds a run already, is a file, or cannot be written.
    """
    if holds_a_run(path):
        raise already_taken(path)
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        fix = "choose another place with paths.outputs=... or paths.run_dir=..."
        raise RunDirectoryError("The run directory cannot be made: a file is in the way.", where=str(nearest), fix=fix)
    if not os.access(nearest, os.W_OK | os.X_OK):
        fix = "choose a place you may write to with paths.outputs=... or paths.run_dir=..."
        raise RunDirectoryError("The run directory cannot be written.", where=str(nearest), fix=fix)


def _file_problems(settings: RunSettings) -> Iterator[Problem]:
    named = list(_files_named(settings))
    if isinstance(settings.data, FileData) and not any(key.startswith("data.") for key, _ in named):
        keys = "data.demonstrations, data.preferences, data.rankings, data.prompts"
        yield Problem("data", "names no file", fix=f"give at least one of {keys}")
    for key, value in named:
        path = Path(value)
        if not path.exists():
            yield _absent(key, value)
        elif not os.access(path, os.R_OK):
            yield Problem(key, f"{value} cannot be read", fix="check its permissions")


def _files_named(settings: RunSettings) -> Iterator[tuple[str, str]]:
    data, model = settings.data, settings.model
    if isinstance(data, HHRlhfData):
        yield "data.path", data.path
    if isinstance(data, FileData):
        for name in ("demonstrations", "preferences", "rankings", "prompts"):
            value = getattr(data, name)
            if value is not None:
                yield f"data.{name}", value
    if isinstance(model, HubModel) and model.chat_template is not None:
        yield "model.chat_template", model.chat_template
    yield from feedback_files(settings)


def feedback_files(settings: RunSettings) -> Iterator[tuple[str, str]]:
    """Files that stages of the pipeline read beside the data group's."""
    for stage in settings.pipeline.stages:
        yield from named_inputs(settings, stage, "file")
    judge = settings.judge
    if isinstance(judge, HubJudge) and judge.chat_template is not None and judging_stages(settings):
        yield "judge.chat_template", judge.chat_template


def _artifact_problems(settings: RunSettings) -> Iterator[Problem]:
    """Paths that do not exist; names that may be a hub id are not checked."""
    for key, value in artifacts_named(settings):
        if value not in (*settings.sections_of_stages, "base") and _is_path(value) and not Path(value).exists():
            yield _absent(key, value)


def artifacts_named(settings: RunSettings) -> Iterator[tuple[str, str]]:
    """Config keys that name a model, a dataset or an artifact, and what they name."""
    if isinstance(settings.model, HubModel):
        yield "model.name_or_path", settings.model.name_or_path
    if isinstance(settings.data, HubData):
        yield "data.name", settings.data.name
    for stage in settings.pipeline.stages:
        yield from named_inputs(settings, stage, "model", "stage")


def _kind_problems(settings: RunSettings) -> Iterator[Problem]:
    """Kinds of prompts that the courtesy world does not have; recorded data may have any kind."""
    if not isinstance(settings.data, CourtesyData):
        return
    named = [
        *(pair for name in settings.pipeline.stages for pair in named_inputs(settings, name, "prompts")),
        *(
            (f"constitution.principles.{number}.applies_to", kind)
            for number, principle in enumerate(settings.constitution.principles)
            for kind in principle.applies_to or ()
        ),
    ]
    for key in dict.fromkeys(key for key, _ in named):
        unknown = [kind for each, kind in named if each == key and kind not in PROMPT_KINDS]
        if unknown:
            what = f"the courtesy world has no prompts of the kind {', '.join(unknown)}"
            yield Problem(key, what, fix=f"there are: {', '.join(PROMPT_KINDS)}")


def _is_path(name: str) -> bool:
    """True if absolute, dotted, deeper or in an existing folder, since a hub id is `name` or `owner/name`."""
    parts = Path(name).parts
    return name.startswith((".", "/", "~")) or len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())


def _absent(key: str, value: str) -> Problem:
    return Problem(key, f"{value} does not exist", fix=f"it is looked for from {Path.cwd()}; name an existing path")


def _process_problems(trainer: TrainerSettings) -> Iterator[Problem]:
    """Mismatch between the processes that were started and those that the config asks for."""
    started, asked = rank_info().world_size, trainer.processes
    if started > 1 and started != asked:
        what = (
            f"{trainer.nodes} nodes times {trainer.devices} devices are {asked} processes, and {started} were started"
        )
        yield Problem("trainer.devices", what, fix="set trainer.nodes and trainer.devices to what was started")
    elif started == 1 and trainer.nodes > 1:
        fix = "start the same command on each node with torchrun or srun (conf/README.md, Several processes)"
        yield Problem("trainer.nodes", f"{trainer.nodes} nodes need a launcher, and none started this", fix=fix)


def _judge_problems(settings: RunSettings) -> Iterator[Problem]:
    """A judge behind a server whose API key or client library is missing."""
    judge = settings.judge
    if not isinstance(judge, OpenAiJudge) or not judging_stages(settings):
        return
    if find_spec("openai") is None:
        yield Problem(
            "judge", "needs the openai package, which is not installed", fix="pip install 'rlhf-lightning[judge]'"
        )
    if judge.api_key_env is not None and not os.environ.get(judge.api_key_env, "").strip():
        what = f"the environment variable {judge.api_key_env} is not set"
        fix = f"export {judge.api_key_env}=..., or set judge.api_key_env=null for a server that wants no key"
        yield Problem("judge.api_key_env", what, fix=fix)


def _runs_elsewhere(settings: RunSettings) -> bool:
    """True if the jobs run on machines that SLURM assigns, so that the hardware of this one does not matter."""
    return settings.launcher.kind == "submitit_slurm"


def _gpu_problems(settings: RunSettings) -> Iterator[Problem]:
    trainer = settings.trainer
    yield from _quantization_problems(settings.peft)
    if trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and trainer.devices > 1):
        import torch  # here, since only this check needs it

        there = torch.cuda.device_count()
        if there < trainer.devices and (there or trainer.accelerator == "gpu"):
            what = f"{trainer.devices} GPUs are asked for, and there are {there}"
            yield Problem(
                "trainer.devices", what, fix=f"lower it to {there}" if there else "add trainer.accelerator=cpu"
            )


def _quantization_problems(peft: PeftSettings) -> Iterator[Problem]:
    if not isinstance(peft, QLora):
        return
    import torch  # here, since only this check needs it

    if not torch.cuda.is_available():
        yield Problem("peft", "weights in 4 bits need a CUDA GPU, and there is none", fix="use peft=lora")
    if find_spec("bitsandbytes") is None:
        fix = "pip install 'rlhf-lightning[gpu]', or use peft=lora"
        yield Problem("peft", "weights in 4 bits need bitsandbytes, which is not installed", fix=fix)


def _target_problems(settings: RunSettings) -> list[Problem]:
    return [
        *refusals(settings.optimizer, "optimizer", settings.allow_targets),
        *refusals(settings.callbacks.extra, "callbacks.extra", settings.allow_targets),
    ]
