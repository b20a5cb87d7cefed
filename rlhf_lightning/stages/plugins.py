"""A user's own modules, which register stages, rewards and metrics, and the schema of a config that uses them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rlhf_lightning.errors import Problem
from rlhf_lightning.sections import instances_of, stages_named
from rlhf_lightning.stages.declaration import STAGES, TrainedModel
from rlhf_lightning.stages.targets import is_allowed


def load_plugins(config: Mapping[str, Any]) -> list[Problem]:
    """Import the modules that a plain config names in `plugins`, if `allow_targets` trusts them.

    Returns:
        A problem for each that is not trusted or cannot be imported.
    """
    found = [_load(name, config.get("allow_targets")) for name in _names(config)]
    return [problem for problem in found if problem is not None]


def stages_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The sections of registered stages in a plain config: name of the section -> name of the stage."""
    return {name: stage for name, stage in stages_named(config).items() if stage in STAGES}


def trained_models(config: Mapping[str, Any]) -> dict[str, TrainedModel]:
    """The models that the pipeline of a plain config trains, by instance; without those of unregistered stages."""
    stages = {name: STAGES[stage] for name, stage in instances_of(config) if stage in STAGES}
    return {name: stage.trained for name, stage in stages.items() if stage.trained is not None}


def _names(config: Mapping[str, Any]) -> list[str]:
    names = config.get("plugins")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _load(name: str, trusted: Any) -> Problem | None:
    prefixes = [prefix for prefix in trusted if isinstance(prefix, str)] if isinstance(trusted, list) else []
    if not is_allowed(name, prefixes):
        what = f"{name} may not be imported: it is code that a config names"
        return Problem("plugins", what, fix=f"if you trust it, add 'allow_targets=[{name}]'")
    try:
        import_module(name)
    except Exception as error:  # noqa: BLE001  whatever a user's module raises
        what = f"{name} cannot be imported: {type(error).__name__}: {error}"
        return Problem("plugins", what, fix="check its name and PYTHONPATH, or mend it")
    return None
