"""Sweeps whose sweeper chooses jobs as it goes, by how the last ones went (Optuna, for one)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.errors import RlhfError
from rlhf_lightning.experiment.config.compose import CONFIG_NAME, ConfigTree
from rlhf_lightning.experiment.config.job_overrides import as_hydra_reads
from rlhf_lightning.experiment.config.sweep_jobs import is_of_the_sweep, shared_config, swept_overrides
from rlhf_lightning.experiment.config.task import job_settings, typed_overrides
from rlhf_lightning.experiment.run_directory import RunDirectory, holds_a_run
from rlhf_lightning.experiment.sweep.job import run_job
from rlhf_lightning.experiment.sweep.launchers import await_jobs, launcher_error, placed_by_hydra
from rlhf_lightning.experiment.sweep.prepare import placed
from rlhf_lightning.experiment.sweep.record import Sweep


class JobFailedError(RlhfError):
    """A job of a sweep did not finish, or has no objective."""


class SweepStopped(BaseException):
    """The sweep is being stopped. Not an `Exception`: Hydra takes those for the failure of one job, and goes on."""


def draw(sweep: Sweep, tree: ConfigTree, overrides: Sequence[str], further: Sequence[str] = ()) -> None:
    """Has Hydra's sweeper draw jobs, runs them, and tells it their objectives.

    Args:
        sweep: held by this process.
        tree: the config folder.
        overrides: as the user typed them.
        further: Hydra's own overrides, for this time.

    Raises:
        LauncherError: a launcher's worker was killed, or what it had to run.
        JobFailedError: no job has an objective, or more failed than the sweeper is told to bear.
    """
    own = as_hydra_reads(tree, [override for override in tree.parse(overrides) if is_of_the_sweep(override)])
    of_hydra = [*further, "hydra.sweeper.params=null", placed_by_hydra(sweep), "hydra.mode=MULTIRUN"]
    texts = [*own, *told_to_sweeper(tree, overrides), *of_hydra]
    try:
        tree.hydra.multirun(CONFIG_NAME, run_drawn, texts)
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


def told_to_sweeper(tree: ConfigTree, overrides: Sequence[str]) -> list[str]:
    """What Hydra's sweeper draws from, and what all jobs have in common, as overrides for Hydra.

    The sweeper names a parameter as its override is written, and would not see that two spellings are one key: what is
    in the config has no `++`.
    """
    typed = tree.parse(overrides)
    config = shared_config(tree, typed)
    texts = as_hydra_reads(tree, swept_overrides(tree, config, typed))
    return [text[2:] if _is_there(config, text) else text for text in texts]


def draw_missing(sweep: Sweep) -> bool:
    """Has the sweeper of a sweep that was stopped draw the jobs that it had not drawn yet.

    Returns:
        Whether that can be done: the sweeper has a number of trials, and a storage that remembers the earlier ones.
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
        if seed is not None:  # else it would begin with the draws that were made already
            further.append(f"hydra.sweeper.sampler.seed={seed + drawn}")
        sweep.change_plan(drawn_before=drawn)
        draw(sweep, tree, plan.overrides, further)
    return True


def run_drawn(config: DictConfig) -> float:
    """What Hydra calls for each job that its sweeper draws, in whatever process.

    Returns:
        The job's objective, a finite number.

    Raises:
        JobFailedError: there is none. The sweeper counts a failure.
        SweepStopped: no further job shall be drawn.
    """
    hydra = HydraConfig.get()
    sweep = Sweep(Path(hydra.sweep.dir))
    if sweep.stopped:
        raise SweepStopped
    directory = sweep.directory / str(sweep.plan.drawn_before + hydra.job.num)
    if holds_a_run(directory):  # SLURM has started this job again
        job = RunDirectory.open(directory)
    else:
        settings = placed(job_settings(config, directory), sweep, directory)
        job = RunDirectory.create(directory, settings.model_dump(mode="json"), typed_overrides(), "pending")
    run_job(sweep, job)
    if sweep.stopped:
        await_jobs(sweep.jobs)  # a launcher kills them when one of its workers gives up
        raise SweepStopped
    objective = (job.metrics or {}).get("objective")
    if job.status.state != "finished" or objective is None:
        raise JobFailedError("A job of the sweep has no objective.", where=str(job.path), fix="see error.log in there")
    return float(objective)


def _is_there(config: DictConfig, text: str) -> bool:
    key = text.removeprefix("++").split("=")[0]
    return text.startswith("++") and OmegaConf.select(config, key, throw_on_missing=False) is not None
