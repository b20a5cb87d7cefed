"""Optuna study of a resumed sweep, rebuilt from the directories of its finished jobs.

The directories are the only record. Optuna's own storage in a file is not used: the Optuna version that Hydra's
sweeper requires cannot open it with current SQLAlchemy.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.sweep.draw import told_to_sweeper
from rlhf_lightning.experiment.sweep.record import Sweep


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
    distributions, _ = create_params_from_overrides(told_to_sweeper(tree, plan.overrides))
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=study_name, direction=direction)
    for job in sweep.in_state("finished"):
        objective = (job.metrics or {}).get("objective")
        params = _drawn(tree, job, distributions)
        if objective is not None and params.keys() == distributions.keys():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=objective))
    return storage


def _drawn(tree: ConfigTree, job: RunDirectory, distributions: dict[str, Any]) -> dict[str, Any]:
    """The values that were drawn for a job, by the sweeper's parameter names."""
    told = {override.get_key_element(): override.value() for override in tree.parse(job.overrides)}
    names = {name.lstrip("+"): name for name in distributions}
    return {names[key]: _as_drawn(value, distributions[names[key]]) for key, value in told.items() if key in names}


def _as_drawn(value: Any, distribution: Any) -> Any:
    """A value in the form of its distribution: for a categorical one, the text of the choice."""
    choices = getattr(distribution, "choices", None)
    if choices is None:
        return value
    return next((choice for choice in choices if str(choice) == str(value)), value)
