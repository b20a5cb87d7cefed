"""The overrides of one job, divided into those for Hydra and those for the schema, and the jobs of a sweep."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from rlhf_lightning.errors import ConfigError, Problem, did_you_mean, similar
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.schema import Schema, keys_like, options_like
from rlhf_lightning.runs.validation import NO_SUCH_KEY, misplaced_secret
from rlhf_lightning.tracking.redaction import REDACTED, redact_override


@dataclass(frozen=True)
class JobOverrides:
    """One job's overrides, and the problems of those that cannot be used."""

    choices: tuple[Override, ...]
    """Choices of group options, and overrides of Hydra's own keys."""
    values: tuple[Override, ...]
    """Values of the program's keys."""
    problems: tuple[Problem, ...]

    def setting(self, key: str) -> Override | None:
        """The last override of a key, a key above it or a key below it."""
        for override in reversed((*self.choices, *self.values)):
            own = section_of(override)
            if f"{key}.".startswith(f"{own}.") or f"{own}.".startswith(f"{key}."):
                return override
        return None


def sort_overrides(tree: ConfigTree, overrides: Iterable[Override]) -> JobOverrides:
    """Divides a job's overrides, and reports those that name no group or option."""
    choices: list[Override] = []
    values: list[Override] = []
    problems: list[Problem] = []
    for override in _with_implied(tree, overrides):
        if not _is_choice(tree, override):
            (choices if override.is_hydra_override() else values).append(override)
            continue
        problem = _choice_problem(tree, override, [section_of(choice) for choice in choices])
        if problem is not None:
            problems.append(problem)
        else:
            choices.append(override)
    return JobOverrides(tuple(choices), tuple(values), tuple(problems))


def without_unknown_keys(tree: ConfigTree, schema: Schema, job: JobOverrides) -> JobOverrides:
    """A job's overrides without those that name no key, which are reported."""
    found = [(override, _key_problem(tree, schema, override)) for override in job.values]
    values = tuple(override for override, problem in found if problem is None)
    problems = tuple(problem for _, problem in found if problem is not None)
    return JobOverrides(job.choices, values, (*job.problems, *problems))


def as_hydra_reads(tree: ConfigTree, overrides: Sequence[Override]) -> list[str]:
    """The overrides for Hydra's own composition.

    The schema has checked already that the keys exist, so no value needs the `+` that Hydra asks for where a file does
    not hold the key yet.
    """
    texts = []
    for override in _with_implied(tree, overrides):
        text = (override.input_line or "").lstrip("+")
        if override.is_delete() or override.is_hydra_override():
            texts.append(override.input_line or "")
        elif _is_choice(tree, override):
            texts.append(text if _choice_name(override) in tree.choices() else f"+{text}")
        else:
            texts.append(f"++{text}")
    return texts


def section_of(override: Override) -> str:
    """The dotted key that an override reaches: `kl` for `kl=none`, `sft` for `stage@sft=mine`."""
    return str(override.package or override.key_or_group.replace("/", "."))


def as_shown(override: Override) -> str:
    """An override as a message may quote it: as it was typed, without secrets."""
    return redact_override(override.input_line or "")


def _with_implied(tree: ConfigTree, overrides: Iterable[Override]) -> list[Override]:
    """The overrides, preceded by `constitution=file` if they set `constitution.path` and choose no constitution."""
    given = list(overrides)
    sections = {section_of(override) for override in given if override.is_delete() or override.value() is not None}
    if "constitution.path" in sections and "constitution" not in sections:
        return [*tree.parse(["constitution=file"]), *given]
    return given


def _choice_name(override: Override) -> str:
    return f"{override.key_or_group}@{override.package}" if override.package else str(override.key_or_group)


def _is_choice(tree: ConfigTree, override: Override) -> bool:
    is_mapping = isinstance(override.value(), dict)
    return override.package is not None or (bool(tree.options(override.key_or_group)) and not is_mapping)


def _choice_problem(tree: ConfigTree, override: Override, chosen: Sequence[str]) -> Problem | None:
    group, name, source = override.key_or_group, _choice_name(override), as_shown(override)
    options = tree.options(group)
    if not options:
        fix = did_you_mean(similar(group, tree.groups()))
        return Problem(name, "is no config group", source, fix)
    if name not in tree.choices() and not (override.is_add() or override.is_force_add()):
        places = [f"{choice}=..." for choice in tree.choices() if choice.startswith(f"{group}@")]
        return Problem(
            name, "is composed under other names", source, f"write {' or '.join(places)}" if places else None
        )
    if section_of(override) in chosen:
        return Problem(name, "is chosen twice", source, "keep one of the two")
    wanted = override.value()
    for option in wanted if isinstance(wanted, list) else [wanted]:
        if option is not None and option not in options and not override.is_delete():
            fix = did_you_mean(options_like(tree, name, str(option)))
            return Problem(name, f"has no option {option!r}; there are: {', '.join(options)}", source, fix)
    return None


def _key_problem(tree: ConfigTree, schema: Schema, override: Override) -> Problem | None:
    key, source = str(override.key_or_group), as_shown(override)
    group, _, leaf = key.rpartition(".")
    if schema.find(key) is None and group:
        misplaced = misplaced_secret(key)
        if misplaced is not None:
            return replace(misplaced, source=f"{override.get_key_element()}={REDACTED}")
        return Problem(key, NO_SUCH_KEY, source, did_you_mean(keys_like(schema, key)))
    if schema.find(key) is None:
        value = "".join(source.partition("=")[1:])
        meant = [f"{name}{value}" for name in similar(key, tree.groups())] or keys_like(schema, key)
        fix = did_you_mean(meant) or f"the groups are {', '.join(name for name in tree.groups() if '@' not in name)}"
        return Problem(key, "there is no such key or config group", source, fix)
    if leaf == "stage" and group in schema.sections_of_stages:
        what = "is that of the section's option and is not set alone"
        return Problem(key, what, source, f"choose one: stage@{group}=..., or +stage@NAME=... for a further section")
    if leaf == "kind" and tree.options(group):
        return Problem(
            key, "belongs to an option of its group and is not set alone", source, f"choose one: {group}=..."
        )
    return None


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
    if is_adaptive(config):
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


def is_adaptive(config: DictConfig) -> bool:
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
