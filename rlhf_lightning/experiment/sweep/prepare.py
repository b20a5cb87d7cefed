"""Create a sweep's directory, and those of its jobs, before the first job starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.preflight import Checked
from rlhf_lightning.experiment.config.sweep_jobs import draws, shared_config, split_jobs
from rlhf_lightning.experiment.config.task import told_to_job
from rlhf_lightning.experiment.run_directory import RunDirectory, now
from rlhf_lightning.experiment.sweep.record import Plan, Sweep
from rlhf_lightning.settings.sweeping import LauncherSettings
from rlhf_lightning.stages.run_settings import RunSettings


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
    jobs = {} if draws(config) else _made(sweep, split_jobs(tree, overrides), settings)
    sweep.write_plan(
        Plan(
            overrides=list(overrides),
            config_dir=str(config_dir.absolute()) if config_dir else None,
            on_failure=settings[0].sweep.on_failure,
            draws=draws(config),
            drawn_before=0,
            jobs=jobs,
            batch=config.hydra.sweeper.get("max_batch_size"),
            started=now(),
            pid=os.getpid(),
            **launching(config, settings),
        )
    )


def launching(config: DictConfig, settings: Sequence[RunSettings]) -> dict[str, Any]:
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


def placed(settings: RunSettings, sweep: Sweep, directory: Path) -> RunSettings:
    """The settings with the actual directories of a job and its sweep."""
    paths = settings.paths.model_copy(update={"run_dir": str(directory), "sweep_dir": str(sweep.directory)})
    return settings.model_copy(update={"paths": paths})


def _made(sweep: Sweep, jobs: Sequence[Sequence[str]], settings: Sequence[RunSettings]) -> dict[str, list[str]]:
    made = {}
    for number, (overrides, one) in enumerate(zip(jobs, settings, strict=True)):
        directory = sweep.directory / str(number)
        told = told_to_job(overrides)
        RunDirectory.create(directory, placed(one, sweep, directory).model_dump(mode="json"), told, "pending")
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
