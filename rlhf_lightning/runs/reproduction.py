"""Rerun of a finished run: its config in a new directory, changes that prevent it, and figures compared bitwise."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import ConfigError, Problem, ReproductionError
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.environment_checks import check_run_directory, environment_problems
from rlhf_lightning.runs.launch import LAUNCHER, Children, outcome_of
from rlhf_lightning.runs.machine import DECIDING_VARIABLES
from rlhf_lightning.runs.overrides import section_of
from rlhf_lightning.runs.preflight import check_run
from rlhf_lightning.runs.provenance import changes_of_machine, changes_of_origin, changes_since, gather_provenance
from rlhf_lightning.runs.run import Outcome
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.readers import is_among
from rlhf_lightning.stages.run_directory import CONFIG, PROVENANCE, REPRODUCE, RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings

NO_FIGURES = frozenset({"seconds", "memory", "key", "cache"})
"""Entries of metrics.json that are not compared: duration, memory, and the origin of an artifact."""

ABSENT = "(none)"


@dataclass(frozen=True)
class Difference:
    """A figure that two runs differ in."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    """All figures of two runs: how many there are, and those that differ."""

    compared: int
    differences: tuple[Difference, ...]


def compare_figures(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compares the contents of two metrics.json; figures are named by dotted path, `evaluate.ppo.iid.gold_reward`."""
    before, after = dict(_figures(first)), dict(_figures(second))
    names = list({**before, **after})
    pairs = [Difference(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in names]
    # 1, 1.0 and true are different entries, although they are equal in Python.
    different = tuple(pair for pair in pairs if repr(pair.first) != repr(pair.second))
    return Comparison(len(names), different)


def _figures(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts = [(key, part) for key, part in value.items() if key not in NO_FIGURES]
    elif isinstance(value, list):
        parts = [(str(index), part) for index, part in enumerate(value)]
    else:
        yield name, value
        return
    for key, part in parts:
        yield from _figures(part, f"{name}.{key}" if name else key)


ITS_OWN = ("logger=none", "cache=off")
"""Overrides of a rerun: it computes everything itself, and reports to no server unless asked to."""

MAY_DIFFER = frozenset({"logger", "callbacks.progress_bar", "name", "notes", "tags"})
"""Keys that may differ in a rerun, since they do not change a bit of the result."""


@dataclass(frozen=True)
class Rerun:
    """A run to repeat.

    Attributes:
        original: the finished run.
        origin: its provenance.
        settings: those of the run, except for the output directory, the logger and the cache.
        overrides: as typed for the run, and now.
        place: the working directory, to which relative paths refer.
    """

    original: RunDirectory
    origin: Mapping[str, Any]
    settings: RunSettings
    overrides: tuple[str, ...]
    place: Path

    @property
    def target(self) -> Path:
        """The new run's directory."""
        return Path(self.settings.paths.run_dir)

    def obstacles(self) -> list[str]:
        """Descriptions of changes since the run that decide the figures."""
        return changes_of_origin(self.origin, self._now)

    def doubts(self) -> list[str]:
        """Descriptions of changes since the run that may alter the last bits of the figures."""
        later = [change for now in self.origin.get("resumed", ()) for change in changes_since(self.origin, now)]
        resumed = [f"when the run was resumed: {change}" for change in dict.fromkeys(later)]
        return [*changes_of_machine(self.origin, self._now), *resumed]

    @functools.cached_property
    def _now(self) -> dict[str, Any]:
        with contextlib.chdir(self.place):
            return gather_provenance(self.settings, self.overrides)

    def environment(self) -> dict[str, str]:
        """The environment of this process, with the run's values of variables that change the bits of a result."""
        others = {name: value for name, value in os.environ.items() if name not in DECIDING_VARIABLES}
        return {**others, **self.origin["environment"], LAUNCHER: str(os.getpid())}

    def run(self) -> tuple[RunDirectory, Outcome]:
        """Runs it, in a process of its own.

        Raises:
            RunDirectoryError: the new directory cannot be claimed.
        """
        run = RunDirectory.create(self.target, self.settings.model_dump(mode="json"), self.overrides)
        command = [sys.executable, "-m", "rlhf_lightning", "run-job", str(run.path)]
        children = Children([subprocess.Popen(command, env=self.environment(), cwd=self.place)])
        with children.forwarding_signals():
            children.wait()
        return run, outcome_of(run, children)


def prepare(tree: ConfigTree, run: Path, to: Path | None, overrides: Sequence[str]) -> Rerun:
    """The rerun of a finished run in another directory (by default one beside it).

    Raises:
        RunDirectoryError: there is no run, or the new directory is taken.
        ReproductionError: it has not finished, or its config does not fit this version of the program.
        ConfigError: an override changes the result, or something that the config names does not exist.
    """
    original = RunDirectory.open(run.resolve())
    origin = original.provenance
    if original.status.state != "finished" or origin is None or "stages" not in origin:
        raise ReproductionError(
            "Only a run that has finished, and has noted where it came from, can be compared with.",
            where=str(original.path / PROVENANCE),
            fix=f"let it finish: rlhf train resume={original.path}",
        )
    target = to.absolute() if to is not None else _beside(original.path)
    check_run_directory(target)
    config = {**_with_overrides(tree, original.config, overrides), "resume": None}
    config["paths"] = {**config["paths"], "run_dir": str(target)}
    config |= _pinned(config, origin)
    recorded = Path(origin["directory"])
    rerun = Rerun(
        original,
        origin,
        _checked(config, original),
        (*original.overrides, *overrides),
        recorded if recorded.is_dir() else Path.cwd(),
    )
    with contextlib.chdir(rerun.place):
        if problems := environment_problems(rerun.settings):
            raise ConfigError(problems)
    return rerun


def _with_overrides(tree: ConfigTree, saved: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A run's config with the sections and keys that the overrides set, as composed with these overrides."""
    wrong = [
        Problem(key, "decides the result", text, fix=f"drop it; what may change: {', '.join(sorted(MAY_DIFFER))}")
        for key, text in _keys(tree, overrides)
        if not is_among(key, MAY_DIFFER)
    ]
    if wrong:
        raise ConfigError(wrong)
    chosen = {key for key, _ in _keys(tree, overrides)}
    given = [*(each for each in ITS_OWN if each.partition("=")[0] not in chosen), *overrides]
    settings = check_run(tree, given).settings
    assert settings is not None
    composed = settings.model_dump(mode="json")
    config = dict(saved)
    for key, _ in _keys(tree, given):
        _copy(composed, config, key.split("."))
    return config


def _keys(tree: ConfigTree, overrides: Sequence[str]) -> list[tuple[str, str]]:
    return [(section_of(override), override.input_line or "") for override in tree.parse(overrides)]


def _copy(source: Mapping[str, Any], target: dict[str, Any], path: Sequence[str]) -> None:
    """Copies the value at a path of keys; the mappings on the way are copied before they are changed."""
    name, *rest = path
    if not rest:
        target[name] = source[name]
        return
    target[name] = dict(target[name])
    _copy(source[name], target[name], rest)


def _pinned(config: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """Sections whose open settings are fixed to what the run used: threads, and the hub's commit."""
    trainer, model = dict(config["trainer"]), dict(config["model"])
    if trainer["threads"] is None:
        trainer["threads"] = origin["arithmetic"]["threads"]  # sums depend on it
    if model["kind"] == "hub":
        model["revision"] = origin["hub"].get(model["name_or_path"]) or model["revision"]
    return {"trainer": trainer, "model": model}


def _beside(run: Path) -> Path:
    """An unused path for a directory beside a run's."""
    name, number = f"{run.name}-rerun", 1
    while (run.parent / name).exists():
        number += 1
        name = f"{run.name}-rerun-{number}"
    return run.parent / name


def _checked(config: Mapping[str, Any], original: RunDirectory) -> RunSettings:
    try:
        return settings_from(config)
    except ConfigError as error:
        keys = ", ".join(problem.key for problem in error.problems)
        raise ReproductionError(
            f"The run's config does not fit this version of the program: {keys}.",
            where=str(original.path / CONFIG),
            fix=f"take the code that it ran with: bash {original.path / REPRODUCE}",
        ) from error
