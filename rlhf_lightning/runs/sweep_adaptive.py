"""Adaptive sweeps: the sweeper draws each job from results of earlier ones; Optuna's study of a resumed sweep."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.errors import RlhfError
from rlhf_lightning.runs.compose import CONFIG_NAME, ConfigTree
from rlhf_lightning.runs.overrides import as_hydra_reads, is_of_the_sweep, shared_config, swept_overrides
from rlhf_lightning.runs.preflight import job_settings, typed_overrides
from rlhf_lightning.runs.sweep_jobs import await_jobs, launcher_error, run_job, sweep_directory_override
from rlhf_lightning.runs.sweep_record import Sweep
from rlhf_lightning.runs.sweep_start import with_directories
from rlhf_lightning.stages.run_directory import RunDirectory, holds_a_run


class JobFailedError(RlhfError):
    """A job of a sweep did not finish, or has no objective."""


class SweepStopped(BaseException):
    """The sweep is being stopped. Not an `Exception`: Hydra takes those for the failure of one job, and continues."""


def run_adaptive(sweep: Sweep, tree: ConfigTree, overrides: Sequence[str], further: Sequence[str] = ()) -> None:
    """Lets Hydra's sweeper draw jobs, runs them, and reports their objectives to it.

    Args:
        sweep: held by this process.
        tree: the config folder.
        overrides: as the user typed them.
        further: Hydra's own overrides, for this time.

    Raises:
        LauncherError: a launcher's worker was killed, or what it had to run.
        JobFailedError: no job has an objective, or more failed than the sweeper tolerates.
    """
    own = as_hydra_reads(tree, [override for override in tree.parse(overrides) if is_of_the_sweep(override)])
    of_hydra = [*further, "hydra.sweeper.params=null", sweep_directory_override(sweep), "hydra.mode=MULTIRUN"]
    texts = [*own, *sweeper_overrides(tree, overrides), *of_hydra]
    try:
        tree.hydra.multirun(CONFIG_NAME, run_sampled_job, texts)
    except SweepStopped:
        return
    except RuntimeError as error:
        if sweep.stopped != "interrupted":
            raise launcher_error(sweep, error) from error
        await_jobs(sweep.jobs)
    except ValueError as error:  # Optuna's, at the end of a study without a result
        if sweep.in_state("finished"):
            raise
        raise JobFailedError("No job has an objective.", where=str(sweep.directory), fix="see their logs") from error


def sweeper_overrides(tree: ConfigTree, overrides: Sequence[str]) -> list[str]:
    """Overrides for Hydra's sweeper: the search space, and those that all jobs share.

    The sweeper names a parameter by its override as written, and would take two spellings for two keys: keys that the
    config has are written without `++`.
    """
    typed = tree.parse(overrides)
    config = shared_config(tree, typed)
    texts = as_hydra_reads(tree, swept_overrides(tree, config, typed))
    return [text[2:] if _is_there(config, text) else text for text in texts]


def run_missing(sweep: Sweep) -> bool:
    """Resumes the sweeper of a stopped sweep for the jobs that it has not drawn yet.

    Returns:
        True if that is possible: the sweeper has a number of trials, and a storage with the earlier ones.
    """
    plan = sweep.plan
    tree = ConfigTree.load(Path(plan.config_dir) if plan.config_dir else None)
    sweeper = shared_config(tree, tree.parse(plan.overrides)).hydra.sweeper
    wanted = OmegaConf.select(sweeper, "n_trials")
    if wanted is None or sweeper.get("storage") is None:
        return False
    drawn = max((int(job.path.name) + 1 for job in sweep.jobs), default=0)
    if drawn < wanted:
        seed = OmegaConf.select(sweeper, "sampler.seed")
        further = [f"hydra.sweeper.n_trials={wanted - drawn}"]
        if seed is not None:  # otherwise it would repeat the draws already made
            further.append(f"hydra.sweeper.sampler.seed={seed + drawn}")
        sweep.change_plan(sampled_before=drawn)
        run_adaptive(sweep, tree, plan.overrides, further)
    return True


def run_sampled_job(config: DictConfig) -> float:
    """Run one job that the sweeper has drawn: the task function that Hydra calls, in any process.

    Returns:
        The job's objective, a finite number.

    Raises:
        JobFailedError: there is none. The sweeper counts it as a failure.
        SweepStopped: the sweep is being stopped.
    """
    hydra = HydraConfig.get()
    sweep = Sweep(Path(hydra.sweep.dir))
    if sweep.stopped:
        raise SweepStopped
    directory = sweep.directory / str(sweep.plan.sampled_before + hydra.job.num)
    if holds_a_run(directory):  # SLURM has restarted this job
        job = RunDirectory.open(directory)
    else:
        settings = with_directories(job_settings(config, directory), sweep, directory)
        job = RunDirectory.create(directory, settings.model_dump(mode="json"), typed_overrides(), "pending")
    run_job(sweep, job)
    if sweep.stopped:
        await_jobs(sweep.jobs)  # a launcher kills them when one of its workers fails
        raise SweepStopped
    objective = (job.metrics or {}).get("objective")
    if job.status.state != "finished" or objective is None:
        raise JobFailedError("A job of the sweep has no objective.", where=str(job.path), fix="see error.log in there")
    return float(objective)


def _is_there(config: DictConfig, text: str) -> bool:
    key = text.removeprefix("++").split("=")[0]
    return text.startswith("++") and OmegaConf.select(config, key, throw_on_missing=False) is not None


def finished_trials(directory: str, study_name: str, direction: str) -> Any:
    """An in-memory Optuna storage with a trial for each finished job, for `hydra.sweeper.storage` of a preset.

    Args:
        directory: of the sweep.
        study_name: the study's name in the storage.
        direction: `maximize` or `minimize`.
    """
    import optuna
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

    sweep = Sweep(Path(directory))
    plan = sweep.plan
    tree = ConfigTree.load(Path(plan.config_dir) if plan.config_dir else None)
    distributions, _ = create_params_from_overrides(sweeper_overrides(tree, plan.overrides))
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=study_name, direction=direction)
    for job in sweep.in_state("finished"):
        objective = (job.metrics or {}).get("objective")
        params = _sampled_values(tree, job, distributions)
        if objective is not None and params.keys() == distributions.keys():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=objective))
    return storage


def _sampled_values(tree: ConfigTree, job: RunDirectory, distributions: dict[str, Any]) -> dict[str, Any]:
    """The values that were drawn for a job, by the sweeper's parameter names."""
    told = {override.get_key_element(): override.value() for override in tree.parse(job.overrides)}
    names = {name.lstrip("+"): name for name in distributions}
    return {names[key]: _as_sampled(value, distributions[names[key]]) for key, value in told.items() if key in names}


def _as_sampled(value: Any, distribution: Any) -> Any:
    """A value in the form of its distribution: for a categorical one, the text of the choice."""
    choices = getattr(distribution, "choices", None)
    if choices is None:
        return value
    return next((choice for choice in choices if str(choice) == str(value)), value)
