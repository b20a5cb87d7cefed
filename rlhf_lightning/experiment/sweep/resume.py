"""Resume a stopped sweep: its unfinished jobs, and changes to how they are launched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.job_overrides import section_of
from rlhf_lightning.experiment.config.preflight import check_job
from rlhf_lightning.experiment.config.sweep_jobs import OF_THE_SWEEP, is_of_the_sweep, shared_config
from rlhf_lightning.experiment.config.validation import settings_from
from rlhf_lightning.experiment.resume import continue_named, merged_overrides
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.sweep.prepare import launching
from rlhf_lightning.experiment.sweep.record import UNFINISHED, Sweep


def left_to_do(sweep: Sweep) -> list[RunDirectory]:
    """The unfinished jobs that no process runs, checked against this machine.

    Raises:
        ConfigError: something that a job's config names no longer exists.
        RunDirectoryError: a job was made by another version of the program.
    """
    tree = ConfigTree.load()
    jobs = sweep.in_state(*UNFINISHED)
    for job in jobs:
        continue_named(tree, job.path, ())
    return jobs


def tell_anew(sweep: Sweep, overrides: Sequence[str]) -> None:
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
    changes = launching(shared_config(tree, typed), [one.model_copy(update={"launcher": launcher}) for one in jobs])
    sweep.change_plan(on_failure=checked.settings.sweep.on_failure, **changes)


def _merged(tree: ConfigTree, before: Sequence[str], now: Sequence[str]) -> list[str]:
    """The overrides of a sweep merged with new ones; a new launcher drops earlier `hydra.launcher.*` overrides."""
    if any(section_of(override) == "launcher" for override in tree.parse(now)):
        before = [text for text in before if not text.startswith("hydra.launcher.")]
    return merged_overrides(tree, before, now)
