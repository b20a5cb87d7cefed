"""List the jobs of a sweep before it starts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.job_overrides import as_hydra_reads, as_shown, section_of, sort_overrides

OF_THE_SWEEP = ("sweep", "launcher")
"""Sections that concern a sweep as a whole, as do Hydra's own."""


def split_jobs(tree: ConfigTree, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, in the order they will run.

    The jobs of an adaptive sweeper (Optuna, for one) are not known in advance: every swept value is then listed once,
    the bounds of an interval included, with the other swept keys at their first value.

    Raises:
        ConfigError: if an override cannot be read, or sweeps over what cannot be swept.
    """
    typed = tree.parse(overrides)
    own = [override.input_line or "" for override in typed if is_of_the_sweep(override)]
    swept = [override for override in typed if is_of_the_sweep(override) and override.is_sweep_override()]
    if swept:
        what = "Hydra's own settings, launcher and sweep concern the sweep as a whole and cannot be swept"
        raise ConfigError([Problem(section_of(one), what, as_shown(one), "give one value") for one in swept])
    config = shared_config(tree, typed)
    task = swept_overrides(tree, config, typed)
    if draws(config):
        return [[*own, *job] for job in _each_value_once(task)]
    intervals = [override for override in task if override.is_interval_sweep()]
    if intervals:
        what = "an interval needs a sweeper that draws from it"
        fix = "list values (a,b,c) or range(start,stop,step), or choose hydra/sweeper="
        raise ConfigError([Problem(section_of(one), what, as_shown(one), fix) for one in intervals])
    jobs = [[*own, *job] for job in itertools.product(*map(_values, task))]  # the last key changes fastest
    if not jobs:
        raise ConfigError([Problem("-m", "the sweep has no job", fix="a range(...) or glob(...) in it is empty")])
    return jobs


def is_of_the_sweep(override: Override) -> bool:
    """True if an override concerns the sweep as a whole rather than its jobs."""
    return override.is_hydra_override() or section_of(override).split(".")[0] in OF_THE_SWEEP


def shared_config(tree: ConfigTree, overrides: Sequence[Override]) -> DictConfig:
    """The composed config without the swept keys: its launcher and sweeper are those of the sweep.

    Raises:
        ConfigError: if the files cannot be put together.
    """
    fixed = [override for override in overrides if not override.is_sweep_override()]
    return tree.compose(tuple(as_hydra_reads(tree, sort_overrides(tree, fixed).choices)))


def draws(config: DictConfig) -> bool:
    """True if the sweeper draws each job from the results of earlier ones."""
    return bool(config.hydra.runtime.choices["hydra/sweeper"] != "basic")


def swept_overrides(tree: ConfigTree, config: DictConfig, overrides: Sequence[Override]) -> list[Override]:
    """Overrides of the jobs: those of a file (`hydra.sweeper.params`), then those of the command line.

    The command line wins where both name a key.
    """
    params = config.hydra.sweeper.get("params") or {}
    from_files = tree.parse([f"{key}={value}" for key, value in params.items()])
    typed = [override for override in overrides if not is_of_the_sweep(override)]
    typed_keys = {section_of(override) for override in typed}
    return [*(override for override in from_files if section_of(override) not in typed_keys), *typed]


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
