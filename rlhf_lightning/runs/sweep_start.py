"""Start of a sweep: its directory and those of its jobs are made; a stopped one resumes with its unfinished jobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.overrides import (
    OF_THE_SWEEP,
    is_adaptive,
    is_of_the_sweep,
    section_of,
    shared_config,
    split_jobs,
)
from rlhf_lightning.runs.preflight import Checked, check_job, told_to_job
from rlhf_lightning.runs.resume import merged_overrides, resume_from_directory
from rlhf_lightning.runs.sweep_record import UNFINISHED, Plan, Sweep
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.run_directory import RunDirectory, now
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.stages.settings import LauncherSettings


def prepare(
    sweep: Sweep, tree: ConfigTree, overrides: Sequence[str], checked: Sequence[Checked], config_dir: Path | None
) -> None:
    """Writes sweep.json and, if the jobs are known, their directories.

    sweep.json is written last: a sweep that has one is complete.

    Args:
        sweep: a new one, held by this process.
        tree: the config folder.
        overrides: as the user typed them.
        checked: its jobs, as `check_sweep` returned them.
        config_dir: the user's own folder of configs.

    Raises:
        RunDirectoryError: if the directories cannot be made.
    """
    config = shared_config(tree, tree.parse(overrides))
    settings = [job.settings for job in checked if job.settings is not None]
    jobs = {} if is_adaptive(config) else _made(sweep, split_jobs(tree, overrides), settings)
    sweep.write_plan(
        Plan(
            overrides=list(overrides),
            config_dir=str(config_dir.absolute()) if config_dir else None,
            on_failure=settings[0].sweep.on_failure,
            draws=is_adaptive(config),
            sampled_before=0,
            jobs=jobs,
            batch=config.hydra.sweeper.get("max_batch_size"),
            started=now(),
            pid=os.getpid(),
            **launch_settings(config, settings),
        )
    )


def launch_settings(config: DictConfig, settings: Sequence[RunSettings]) -> dict[str, Any]:
    """The part of a plan that says how jobs are launched.

    Args:
        config: the composed config that they share.
        settings: of the jobs.
    """
    launcher = settings[0].launcher
    return {
        "launcher": launcher.model_dump(mode="json"),
        "hydra_launcher": OmegaConf.to_container(config.hydra.launcher, resolve=False),
        "gpus": _gpus(launcher, settings),
        "cores": _cores(launcher),
    }


def with_directories(settings: RunSettings, sweep: Sweep, directory: Path) -> RunSettings:
    """The settings with the actual directories of a job and its sweep."""
    paths = settings.paths.model_copy(update={"run_dir": str(directory), "sweep_dir": str(sweep.directory)})
    return settings.model_copy(update={"paths": paths})


def _made(sweep: Sweep, jobs: Sequence[Sequence[str]], settings: Sequence[RunSettings]) -> dict[str, list[str]]:
    made = {}
    for number, (overrides, one) in enumerate(zip(jobs, settings, strict=True)):
        directory = sweep.directory / str(number)
        told = told_to_job(overrides)
        RunDirectory.create(directory, with_directories(one, sweep, directory).model_dump(mode="json"), told, "pending")
        made[str(number)] = told
    return made


def _gpus(launcher: LauncherSettings, settings: Sequence[RunSettings]) -> list[str]:
    """The GPUs that concurrent jobs share; empty if one job at a time has them all, or SLURM assigns them."""
    shared = launcher.kind in ("joblib", "submitit_local")
    if not shared or all(one.trainer.accelerator == "cpu" for one in settings):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch  # here, since only this needs it

    return [str(number) for number in range(torch.cuda.device_count())]


def _cores(launcher: LauncherSettings) -> int | None:
    """The cores that concurrent jobs share; None for one job at a time, or if the user set the number of threads."""
    shared = launcher.kind in ("joblib", "submitit_local")
    return len(os.sched_getaffinity(0)) if shared and "OMP_NUM_THREADS" not in os.environ else None


def unfinished_jobs(sweep: Sweep) -> list[RunDirectory]:
    """The unfinished jobs that no process runs, checked against this machine.

    Raises:
        ConfigError: something that a job's config names no longer exists.
        RunDirectoryError: a job was made by another version of the program.
    """
    tree = ConfigTree.load()
    jobs = sweep.in_state(*UNFINISHED)
    for job in jobs:
        resume_from_directory(tree, job.path, ())
    return jobs


def update_plan(sweep: Sweep, overrides: Sequence[str]) -> None:
    """Changes a sweep's launcher settings, and what it does when a job fails.

    Args:
        sweep: held by this process.
        overrides: of sections `launcher` and `sweep`, and of Hydra's launcher.

    Raises:
        ConfigError: they set other sections, or wrong values.
    """
    plan = sweep.plan
    tree = ConfigTree.load(Path(plan.config_dir) if plan.config_dir else None)
    others = [override for override in tree.parse(overrides) if not is_of_the_sweep(override)]
    if others:
        what = "is another than that of the sweep"
        fix = "drop it: a job goes on with its config. launcher=... and sweep.on_failure=... may change"
        raise ConfigError([Problem(section_of(one), what, one.input_line, fix) for one in others])
    typed = [one for one in tree.parse(_merged(tree, plan.overrides, overrides)) if not one.is_sweep_override()]
    checked = check_job(tree, typed, number=0)
    wrong = [problem for problem in checked.problems if problem.key.split(".")[0] in (*OF_THE_SWEEP, "hydra")]
    if wrong or checked.settings is None:
        raise ConfigError(wrong or checked.problems)
    launcher = checked.settings.launcher
    jobs = [settings_from(job.config) for job in sweep.jobs] or [checked.settings]
    changes = launch_settings(
        shared_config(tree, typed), [one.model_copy(update={"launcher": launcher}) for one in jobs]
    )
    sweep.change_plan(on_failure=checked.settings.sweep.on_failure, **changes)


def _merged(tree: ConfigTree, before: Sequence[str], now: Sequence[str]) -> list[str]:
    """The overrides of a sweep merged with new ones; a new launcher drops earlier `hydra.launcher.*` overrides."""
    if any(section_of(override) == "launcher" for override in tree.parse(now)):
        before = [text for text in before if not text.startswith("hydra.launcher.")]
    return merged_overrides(tree, before, now)
