"""Everything that can be known to be wrong before anything is loaded, reported at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.experiment.compose import ConfigTree
from rlhf_lightning.experiment.job_overrides import JobOverrides, section_of, sort_overrides
from rlhf_lightning.experiment.surroundings import surrounding_problems
from rlhf_lightning.experiment.sweep_jobs import split_jobs
from rlhf_lightning.experiment.validation import apply_value, resolve, settings_from
from rlhf_lightning.settings.run import STAGE_NAMES, RunSettings, cross_field_problems

STAGES_OF_SECTION: dict[str, frozenset[str]] = {
    **{stage: frozenset({stage}) for stage in STAGE_NAMES},
    **{section: frozenset({"ppo"}) for section in ("rollout", "kl", "advantage", "reward")},
}
"""The stages that read a section. A section that is not listed concerns every run."""

PLACEHOLDER = "missing"
"""Stands in for a value that was not given, so that the checks after it can run."""

JOBS_NAMED = 3
"""Jobs of a sweep named beside a problem that not all of them share."""


@dataclass(frozen=True)
class Checked:
    """One job, checked: its settings where they could be made, and what is wrong with it."""

    settings: RunSettings | None
    hydra: DictConfig
    problems: tuple[Problem, ...]


def check_run(tree: ConfigTree, overrides: Sequence[str], *, to_show: bool = False) -> Checked:
    """Checks a single run.

    Args:
        tree: the config folder.
        overrides: as the user typed them.
        to_show: the config is only shown, so that values may be missing and files absent.

    Raises:
        ConfigError: with everything that is wrong.
    """
    parsed = tree.parse(overrides)
    swept = [override for override in parsed if override.is_sweep_override()]
    problems = [
        Problem(
            section_of(override), "several values are a sweep", override.input_line, "add -m, or write [a,b] for a list"
        )
        for override in swept
    ]
    checked = check_job(tree, [override for override in parsed if override not in swept], to_show=to_show)
    problems += checked.problems
    if checked.hydra.mode == RunMode.MULTIRUN:
        problems.append(Problem("hydra.mode", "a sweep is asked for on the command line", fix="drop it and add -m"))
    if problems:
        raise ConfigError(problems)
    return checked


def check_sweep(tree: ConfigTree, overrides: Sequence[str]) -> list[Checked]:
    """Checks every job of a sweep before the first one starts.

    Raises:
        ConfigError: with everything that is wrong; a problem that only some jobs have names them.
    """
    jobs = split_jobs(tree, overrides)
    checked = [check_job(tree, tree.parse(job)) for job in jobs]
    seen: dict[Problem, list[int]] = {}
    for number, result in enumerate(checked):
        for problem in result.problems:
            seen.setdefault(problem, []).append(number)
    if seen:
        raise ConfigError([_in_jobs(problem, numbers, jobs) for problem, numbers in seen.items()])
    return checked


def check_job(tree: ConfigTree, overrides: Sequence[Override], *, to_show: bool = False) -> Checked:
    """Composes and checks one job; all problems are in the result, none is raised but a tree that cannot be composed.

    Where a value is wrong, the one it was to replace stands in for it in the checks that follow, so that one mistake
    does not hide the next.

    Raises:
        ConfigError: if the files cannot be put together.
    """
    job = sort_overrides(tree, overrides)
    composed = tree.compose(job.for_composition)
    plain, unresolved = _assemble(composed, job.values)
    settings, wrong = _attempt(plain)
    problems = _distinct([*job.problems, *unresolved, *wrong])
    problems = [replace(problem, source=problem.source or _source(tree, job, problem)) for problem in problems]
    if to_show:
        return Checked(settings, composed.hydra, tuple(problem for problem in problems if not _is_gap(problem)))
    if settings is None:
        settings = _repaired(composed, job, problems)
    keys = {problem.key for problem in problems}
    later = _inert_problems(plain, job, keys)
    if settings is not None:
        joint = [*cross_field_problems(settings), *surrounding_problems(settings)]
        later += [problem for problem in joint if not _concerns(problem, keys)]
    later = [replace(problem, source=problem.source or _source(tree, job, problem)) for problem in later]
    return Checked(settings, _paths_of(composed, plain), tuple(_distinct([*problems, *later])))


def _assemble(composed: DictConfig, values: Sequence[Override]) -> tuple[dict[str, Any], list[Problem]]:
    """The composed config with values set on it, plain, and what could not be set or worked out."""
    config = copy.deepcopy(composed)
    problems = []
    for override in values:
        try:
            apply_value(config, override)
        except (OmegaConfBaseException, KeyError) as error:
            what = "there is nothing to delete" if isinstance(error, KeyError) else f"cannot be set: {error}"
            problems.append(Problem(section_of(override), what.splitlines()[0], override.input_line))
    _as_if_running(config)
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        plain, unresolved = resolve(config)
    finally:
        HydraConfig.instance().cfg = before
    return plain, [*problems, *unresolved]


def _as_if_running(config: DictConfig) -> None:
    """Fills in what Hydra itself fills in when a job starts, for interpolations that read it."""
    with open_dict(config.hydra):
        config.hydra.job.num = 0
        config.hydra.job.id = "0"
        config.hydra.runtime.output_dir = "."


def _attempt(plain: Mapping[str, Any]) -> tuple[RunSettings | None, list[Problem]]:
    try:
        return settings_from(plain), []
    except ConfigError as error:
        return None, list(error.problems)


def _repaired(composed: DictConfig, job: JobOverrides, problems: Sequence[Problem]) -> RunSettings | None:
    """The settings without the overrides that are wrong, and with a placeholder for what is missing."""
    sources = {problem.source for problem in problems}
    plain, _ = _assemble(composed, [value for value in job.values if value.input_line not in sources])
    for problem in problems:
        if _is_gap(problem):
            *sections, leaf = problem.key.split(".")
            node: Any = plain
            for section in sections:
                node = node.get(section, {}) if isinstance(node, dict) else {}
            if isinstance(node, dict):
                node.setdefault(leaf, PLACEHOLDER)
    return _attempt(plain)[0]


def _inert_problems(plain: Mapping[str, Any], job: JobOverrides, wrong: set[str]) -> list[Problem]:
    """Overrides of sections that no stage of the chosen pipeline reads."""
    pipeline = plain.get("pipeline")
    if not isinstance(pipeline, dict) or any(key.startswith("pipeline") for key in wrong):
        return []
    running = set(pipeline["stages"])
    problems = []
    for override in (*job.choices, *job.values):
        readers = STAGES_OF_SECTION.get(section_of(override).split(".")[0])
        if readers is not None and not readers & running:
            absent = " or ".join(sorted(readers))
            what = f"has no effect: pipeline {pipeline['name']!r} has no {absent} stage"
            fix = f"drop it, or choose a pipeline that runs {absent}"
            problems.append(Problem(section_of(override), what, override.input_line, fix))
    return problems


def _source(tree: ConfigTree, job: JobOverrides, problem: Problem) -> str | None:
    """The override that set what a problem is about; failing that, the file."""
    mentioned = re.findall(r"[a-z_]+(?:\.[a-z_]+)+", f"{problem.key} {problem.what}")
    section = problem.key.rpartition(".")[0]
    siblings = [f"{section}.{word}" for word in re.findall(r"[a-z_]{4,}", problem.what)] if section else []
    for key in (problem.key, *mentioned):
        override = job.setting(key)
        if override is not None:
            return override.input_line
    for key in siblings:
        for value in job.values:
            if value.key_or_group == key:
                return value.input_line
    return tree.origin(problem.key, job.for_composition)


def _distinct(problems: Sequence[Problem]) -> list[Problem]:
    """One problem a key and override: the first, which is the nearest to the cause."""
    first: dict[tuple[str, str | None], Problem] = {}
    for problem in problems:
        first.setdefault((problem.key, problem.source), problem)
    return list(first.values())


def _concerns(problem: Problem, keys: set[str]) -> bool:
    text = f"{problem.key} {problem.what}"
    return any(re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", text) for key in keys)


def _is_gap(problem: Problem) -> bool:
    return problem.what.startswith("needs a value")


def _in_jobs(problem: Problem, numbers: Sequence[int], jobs: Sequence[Sequence[str]]) -> Problem:
    with_source = [number for number, job in enumerate(jobs) if problem.source in job]
    if len(numbers) == len(jobs) or numbers == with_source:
        return problem
    named = "; ".join(f"job {number}: {' '.join(jobs[number])}" for number in numbers[:JOBS_NAMED])
    more = f"; and {len(numbers) - JOBS_NAMED} more" if len(numbers) > JOBS_NAMED else ""
    return replace(problem, source=", ".join(filter(None, [problem.source, f"{named}{more}"])))


def _paths_of(composed: DictConfig, plain: Mapping[str, Any]) -> DictConfig:
    """Hydra's own node beside the job's final values, so that `hydra.run.dir` resolves to what it will be."""
    config = copy.deepcopy(composed)
    with open_dict(config):
        config.merge_with({"paths": plain.get("paths", {})})
    node: DictConfig = config.hydra
    return node
