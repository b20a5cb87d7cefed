"""Every check of a config that needs nothing loaded, with all problems at once; settings of Hydra's current job."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.constitution import GROUP, CompletedConfig, with_whole_constitution
from rlhf_lightning.runs.environment_checks import environment_problems
from rlhf_lightning.runs.overrides import (
    OF_THE_SWEEP,
    JobOverrides,
    as_hydra_reads,
    as_shown,
    section_of,
    sort_overrides,
    split_jobs,
    without_unknown_keys,
)
from rlhf_lightning.runs.rules import cross_field_problems
from rlhf_lightning.runs.schema import Schema
from rlhf_lightning.runs.validation import NEEDS_A_VALUE, NO_SUCH_KEY, apply_value, repaired, resolve, settings_from
from rlhf_lightning.stages.declaration import JUDGE, STAGES, Stage
from rlhf_lightning.stages.plugins import load_plugins, stages_of
from rlhf_lightning.stages.readers import is_among, readers_of, reads
from rlhf_lightning.stages.run_settings import RunSettings, schema_of
from rlhf_lightning.tracking.redaction import redact_override


def job_settings(config: DictConfig, directory: Path) -> RunSettings:
    """The checked settings of a Hydra job, with `paths.run_dir` set to the directory that it writes to.

    Raises:
        ConfigError: if a sweeper drew a job that the schema does not allow.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    completed = with_whole_constitution(plain, folders, runtime.choices.get(GROUP))
    if completed.problems:
        raise ConfigError(completed.problems)
    plain = completed.plain
    plain["paths"]["run_dir"] = str(directory)
    return settings_from(plain)


def typed_overrides() -> list[str]:
    """The current Hydra job's overrides as a user types them."""
    return told_to_job(HydraConfig.get().overrides.task)


def told_to_job(overrides: Sequence[str]) -> list[str]:
    """A job's overrides as a user types them, without those that concern its sweep and not the job."""
    texts = [override.lstrip("+") for override in overrides]
    return [text for text in texts if re.split(r"[./=]", text)[0] not in (*OF_THE_SWEEP, "hydra")]


DECIDING = ("plugins", "allow_targets")
"""Keys that decide which stages there are."""


@dataclass(frozen=True)
class Structure:
    """Sections of stages in a config.

    Attributes:
        stages: name of the section -> stage.
        problems: of plugins that cannot be used.
    """

    schema: Schema
    stages: Mapping[str, Stage]
    problems: tuple[Problem, ...]


def structure_of(composed: DictConfig, values: Sequence[Override]) -> Structure:
    """The structure of a composed config with values set; its plugins are imported."""
    config = copy.deepcopy(OmegaConf.masked_copy(composed, [key for key in DECIDING if key in composed]))
    for override in values:
        if section_of(override).split(".")[0] in DECIDING:
            try:
                apply_value(config, override)
            except (OmegaConfBaseException, KeyError):
                continue  # reported where all values are set
    plain: Any = OmegaConf.to_container(config, resolve=False)
    problems = load_plugins(plain)
    composed_plain: Any = OmegaConf.to_container(composed, resolve=False)
    names = stages_of({key: section for key, section in composed_plain.items() if key != "hydra"})
    return Structure(Schema(schema_of(names)), {name: STAGES[stage] for name, stage in names.items()}, tuple(problems))


OF_THE_JUDGE = frozenset(JUDGE)
"""Sections that evaluation reads only if it asks a judge."""

JOBS_NAMED = 3
"""Most jobs of a sweep that are named beside a problem which not all of them share."""


@dataclass(frozen=True)
class Directories:
    """Hydra's output directories, for a single run and for a sweep."""

    run: Path
    sweep: Path


@dataclass(frozen=True)
class Assembled:
    """A job's config with its values set and its constitution complete, and the problems found on the way."""

    completed: CompletedConfig
    directories: Directories
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Checked:
    """Result of checking one job: its settings if they are valid, Hydra's output directories, and its problems."""

    settings: RunSettings | None
    directories: Directories
    problems: tuple[Problem, ...]


def check_run(tree: ConfigTree, overrides: Sequence[str], *, to_show: bool = False) -> Checked:
    """Checks a single run.

    Args:
        tree: the config folder.
        overrides: as the user typed them.
        to_show: the config is only shown: values and files may be missing.

    Raises:
        ConfigError: with everything that is wrong.
    """
    parsed = tree.parse(overrides)
    swept = [override for override in parsed if override.is_sweep_override()]
    problems = [
        Problem(
            section_of(override), "several values are a sweep", as_shown(override), "add -m, or write [a,b] for a list"
        )
        for override in swept
    ]
    checked = check_job(tree, [override for override in parsed if override not in swept], to_show=to_show)
    problems += checked.problems
    if problems:
        raise ConfigError(problems)
    return checked


def check_sweep(tree: ConfigTree, overrides: Sequence[str]) -> list[Checked]:
    """Checks every job of a sweep before the first one starts.

    Raises:
        ConfigError: with everything that is wrong; a problem that only some jobs have names them.
    """
    jobs = split_jobs(tree, overrides)
    checked = [check_job(tree, tree.parse(job), number=number) for number, job in enumerate(jobs)]
    seen: dict[Problem, list[int]] = {}
    for number, result in enumerate(checked):
        for problem in result.problems:
            seen.setdefault(problem, []).append(number)
    if seen:
        raise ConfigError([_in_jobs(problem, numbers, jobs) for problem, numbers in seen.items()])
    return checked


def check_job(
    tree: ConfigTree, overrides: Sequence[Override], *, to_show: bool = False, number: int | None = None
) -> Checked:
    """Composes and checks one job; problems are returned, and only a config that cannot be composed raises.

    A wrong value is replaced by the one that it was to override for the checks that follow, so that one mistake does
    not hide the next.

    Args:
        tree: the config folder.
        overrides: the job's.
        to_show: the config is only shown.
        number: of the job in its sweep; None for a single run.

    Raises:
        ConfigError: if the files cannot be put together.
    """
    job = sort_overrides(tree, overrides)
    composed = tree.compose(tuple(as_hydra_reads(tree, job.choices)))
    structure = structure_of(composed, job.values)
    job = without_unknown_keys(tree, structure.schema, job)
    assembled = _assemble(tree, composed, job.values, number or 0)
    completed, directories = assembled.completed, assembled.directories
    plain = completed.plain
    sections = {name: stage.name for name, stage in structure.stages.items()}
    settings, wrong = _attempt(plain, sections)
    problems = _distinct(
        [
            *job.problems,
            *structure.problems,
            *_hydra_problems(composed, number is not None),
            *assembled.problems,
            *wrong,
        ]
    )
    problems = [_sourced(tree, job, completed, problem) for problem in problems]
    if to_show:
        return Checked(settings, directories, tuple(problem for problem in problems if not _is_gap(problem)))
    if settings is None:
        # Values of the chosen options, since a pipeline names inputs; the defaults if the choices themselves are wrong.
        settings = repaired(plain, _assemble(tree, composed, (), 0).completed.plain, sections)
    if settings is None:
        settings = repaired(plain, _assemble(tree, tree.compose(()), (), 0).completed.plain, sections)
    keys = {problem.key for problem in problems}
    later = [
        *_inert_problems(settings, structure.stages, job, keys),
        *(_lonely_problems(job) if number is None else ()),
    ]
    if settings is not None:
        joint = [*cross_field_problems(settings), *environment_problems(settings)]
        later += [problem for problem in joint if not _concerns(problem, keys)]
    later = [_sourced(tree, job, completed, problem) for problem in later]
    return Checked(settings, directories, tuple(_distinct([*problems, *later])))


def _assemble(tree: ConfigTree, composed: DictConfig, values: Sequence[Override], number: int) -> Assembled:
    config = copy.deepcopy(composed)
    problems = []
    for override in values:
        try:
            apply_value(config, override)
        except (OmegaConfBaseException, KeyError) as error:
            what = "there is nothing to delete" if isinstance(error, KeyError) else f"cannot be set: {error}"
            problems.append(Problem(section_of(override), what.splitlines()[0], as_shown(override)))
    _as_if_running(config, number)
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)
        directories = Directories(*(Path(_worked_out(config, f"hydra.{kind}.dir")) for kind in ("run", "sweep")))
        with open_dict(config):
            del config["hydra"]
        plain, unresolved = resolve(config)
    finally:
        HydraConfig.instance().cfg = before
    completed = with_whole_constitution(plain, tree.folders, composed.hydra.runtime.choices.get(GROUP))
    return Assembled(completed, directories, (*problems, *unresolved, *completed.problems))


def _worked_out(config: DictConfig, key: str) -> str:
    """A value as text; empty if it cannot be resolved, which is reported for the key that it refers to."""
    try:
        return str(OmegaConf.select(config, key))
    except OmegaConfBaseException:
        return ""


def _as_if_running(config: DictConfig, number: int) -> None:
    """Sets the keys that Hydra itself sets when a job starts, for interpolations that read them."""
    with open_dict(config.hydra):
        config.hydra.job.num = number
        config.hydra.job.id = str(number)
        config.hydra.runtime.output_dir = "."


def _attempt(plain: Mapping[str, Any], sections: Mapping[str, str]) -> tuple[RunSettings | None, list[Problem]]:
    try:
        return settings_from(plain, sections), []
    except ConfigError as error:
        return None, list(error.problems)


def _inert_problems(
    settings: RunSettings | None, stages: Mapping[str, Stage], job: JobOverrides, wrong: set[str]
) -> Iterator[Problem]:
    """Overrides of sections that no stage of the chosen pipeline reads."""
    if settings is None or any(key.startswith("pipeline") for key in wrong):
        return
    running = set(settings.pipeline.stages)
    for override in (*job.choices, *job.values):
        key = section_of(override)
        readers = readers_of(key, stages)
        if readers is not None and is_among(key, OF_THE_JUDGE):
            readers -= {name for name in running if not reads(settings, name, key)}
        if readers is not None and not readers & running:
            absent = " or ".join(sorted(readers))
            what = f"has no effect: pipeline {settings.pipeline.name!r} has no {absent} stage"
            fix = f"drop it, or choose a pipeline that runs {absent}"
            yield Problem(key, what, as_shown(override), fix)


def _lonely_problems(job: JobOverrides) -> list[Problem]:
    """Overrides that only a sweep reads, given to a single run."""
    lonely = [
        override for override in (*job.choices, *job.values) if section_of(override).split(".")[0] in OF_THE_SWEEP
    ]
    what = "has no effect: it is for sweeps, and this is a single run"
    return [Problem(section_of(one), what, as_shown(one), "add -m, or drop it") for one in lonely]


def _hydra_problems(composed: DictConfig, to_sweep: bool) -> list[Problem]:
    """Problems with Hydra settings that conflict with how this program starts its runs."""
    problems = []
    if composed.hydra.mode == RunMode.MULTIRUN and not to_sweep:
        what = "a sweep is asked for with -m on the command line, not by a key"
        problems.append(Problem("hydra.mode", what, fix="drop it and add -m"))
    if composed.hydra.job.chdir:
        what = "paths in the config are relative to where the program was started, and this would move it"
        problems.append(Problem("hydra.job.chdir", what, fix="leave it false; a run writes to paths.run_dir"))
    if composed.hydra.callbacks:
        what = "Hydra's callbacks are not called: a run and the jobs of a sweep are not Hydra's jobs"
        problems.append(Problem("hydra.callbacks", what, fix="use callbacks.extra for Lightning's"))
    if composed.hydra.job.env_set:
        what = "is not set: a run and the jobs of a sweep are not Hydra's jobs"
        problems.append(Problem("hydra.job.env_set", what, fix="export the variables in the shell"))
    return problems


def _sourced(tree: ConfigTree, job: JobOverrides, completed: CompletedConfig, problem: Problem) -> Problem:
    """A problem with its source, an override or a file, filled in where it names none."""
    if problem.what == NO_SUCH_KEY and problem.key in tree.groups():
        what = "its keys landed under its group's name"
        problem = replace(problem, what=what, fix="begin its file with the line: # @package _global_")
    source = problem.source or completed.source(problem.key)
    return replace(problem, source=source or _source(tree, job, completed.own_key(problem.key), problem.what))


def _source(tree: ConfigTree, job: JobOverrides, key: str, what: str) -> str | None:
    """The override that set a key, or another key that the text mentions; failing that, the file that set the key."""
    section = key.rpartition(".")[0]
    mentioned = re.findall(r"[a-z_]+(?:\.[a-z_]+)+", what)
    siblings = [f"{section}.{word}" for word in re.findall(r"[a-z_]+", what)] if section else []
    setting = job.setting(key) or next(filter(None, map(job.setting, mentioned)), None)
    own = [value for value in job.values if value.key_or_group in siblings]
    override = setting or next(iter(own), None)
    if override is None:
        return tree.origin(key, tuple(as_hydra_reads(tree, job.choices)))
    line = _line_of_entry(tree, job, key) if override in job.choices else None
    return line or as_shown(override)


def _line_of_entry(tree: ConfigTree, job: JobOverrides, key: str) -> str | None:
    """The file and line of a key in a list's entry, or of the entry where it lacks the key; None for any other key.

    A choice alone does not tell which entry of a long list in its file is meant.
    """
    parts = key.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    lengths = range(len(parts), numbers[-1], -1) if numbers else ()
    choices = tuple(as_hydra_reads(tree, job.choices))
    return next(filter(None, (tree.origin(".".join(parts[:length]), choices) for length in lengths)), None)


def _distinct(problems: Sequence[Problem]) -> list[Problem]:
    """The first problem of each key and override, which is the nearest to the cause."""
    first: dict[tuple[str, str | None], Problem] = {}
    for problem in problems:
        first.setdefault((problem.key, problem.source), problem)
    return list(first.values())


def _concerns(problem: Problem, keys: set[str]) -> bool:
    text = f"{problem.key} {problem.what}"
    return any(re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", text) for key in keys)


def _is_gap(problem: Problem) -> bool:
    return problem.what.startswith(NEEDS_A_VALUE)


def _in_jobs(problem: Problem, numbers: Sequence[int], jobs: Sequence[Sequence[str]]) -> Problem:
    shown = [[redact_override(text) for text in job] for job in jobs]
    with_source = [number for number, job in enumerate(shown) if problem.source in job]
    if len(numbers) == len(jobs) or numbers == with_source:
        return problem
    named = "; ".join(f"job {number}: {' '.join(shown[number])}" for number in numbers[:JOBS_NAMED])
    more = f"; and {len(numbers) - JOBS_NAMED} more" if len(numbers) > JOBS_NAMED else ""
    return replace(problem, source=", ".join(filter(None, [problem.source, f"{named}{more}"])))
