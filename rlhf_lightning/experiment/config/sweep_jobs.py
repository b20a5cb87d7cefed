"""The jobs that a sweep will run, known before it starts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.job_overrides import section_of

BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


def split_jobs(tree: ConfigTree, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, in the order they will run.

    A sweeper that chooses its jobs as it goes (optuna, for one) cannot be foreseen: every swept value is then tried
    once, the bounds of an interval included, with the other sweeps at their first value.

    Raises:
        ConfigError: if an override cannot be read, or sweeps over what cannot be swept.
    """
    typed = tree.parse(overrides)
    own = [override.input_line or "" for override in typed if override.is_hydra_override()]
    swept_hydra = [override for override in typed if override.is_hydra_override() and override.is_sweep_override()]
    if swept_hydra:
        what = "Hydra's own settings cannot be swept"
        raise ConfigError([Problem(section_of(one), what, one.input_line, "give one value") for one in swept_hydra])
    sweeper = tree.compose(tuple(own)).hydra.sweeper
    task = [*_configured(tree, sweeper), *(override for override in typed if not override.is_hydra_override())]
    if sweeper.get("_target_") != BASIC_SWEEPER:
        return [[*own, *job] for job in _each_value_once(task)]
    intervals = [override for override in task if override.is_interval_sweep()]
    if intervals:
        what = "an interval needs a sweeper that draws from it"
        fix = "list values (a,b,c) or range(start,stop,step), or choose hydra/sweeper="
        raise ConfigError([Problem(section_of(one), what, one.input_line, fix) for one in intervals])
    jobs = [[*own, *job] for batch in BasicSweeper.split_arguments(task, None) for job in batch]
    if not jobs:
        raise ConfigError([Problem("-m", "the sweep has no job", fix="a range(...) or glob(...) in it is empty")])
    return jobs


def _configured(tree: ConfigTree, sweeper: DictConfig) -> list[Override]:
    """Sweeps that a file asks for: `hydra.sweeper.params`."""
    return tree.parse([f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()])


def _each_value_once(overrides: Sequence[Override]) -> list[list[str]]:
    columns = [_values(override) for override in overrides]
    first = [values[0] for values in columns]
    jobs = [first]
    for place, values in enumerate(columns):
        jobs += [[*first[:place], value, *first[place + 1 :]] for value in itertools.islice(values, 1, None)]
    return jobs


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return [f"{key}={sweep.start}", f"{key}={sweep.end}"]
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [override.input_line or ""]
