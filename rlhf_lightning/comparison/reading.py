"""Find runs under directories and read their records, whatever their state."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.comparison.differing_settings import SEED
from rlhf_lightning.comparison.metrics import SECONDS, figures_of
from rlhf_lightning.comparison.records import Run
from rlhf_lightning.errors import ComparisonError
from rlhf_lightning.stages.readers import leaves
from rlhf_lightning.stages.run_directory import CONFIG, METRICS, OVERRIDES, PROVENANCE, STATUS, Loader

DEEPEST = 6
"""Folders above a run within a directory given: outputs/multirun/DATE/TIME/JOB is four."""


@dataclass
class FoundRuns:
    """The runs under the directories given, in order, and those directories that hold none or were given before."""

    directories: list[Path] = field(default_factory=list)
    without: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)


def find_runs(given: Sequence[Path]) -> FoundRuns:
    """The runs in each directory: itself, a sweep's jobs, or whatever lies deeper.

    Raises:
        ComparisonError: a directory does not exist, or there is no run in any of them.
    """
    found = FoundRuns()
    for path in given:
        if not path.exists():
            raise _nothing_there("There is no such directory.", path)
        runs = list(_runs_in(path.resolve(), DEEPEST)) if path.is_dir() else []
        found.without += [] if runs else [path]
        for run in runs:
            (found.repeated if run in found.directories else found.directories).append(run)
    if not found.directories:
        raise _nothing_there("There is no run here.", *given)
    return found


def read_run(directory: Path, name: str) -> Run:
    """Read a run's directory. Missing or malformed files are listed in `read_problems`, and never raised."""
    problems: list[str] = []

    def mapping(file: str, parse: Callable[[str], Any]) -> Mapping[str, Any]:
        content = _content(directory / file, parse, problems)
        if content is not None and not isinstance(content, Mapping):
            problems.append(f"{file} holds no mapping")
        return content if isinstance(content, Mapping) else {}

    config = dict(leaves(mapping(CONFIG, lambda text: yaml.load(text, Loader))))
    status, metrics = mapping(STATUS, json.loads), mapping(METRICS, json.loads)
    provenance = mapping(PROVENANCE, json.loads)
    overrides = _content(directory / OVERRIDES, str.splitlines, problems)
    policies, seed, error = config.get("evaluate.policies"), config.get(SEED), status.get("error")
    seconds = _seconds(status)
    figures = figures_of(metrics, str(policies[-1]) if isinstance(policies, list) and policies else None)
    return Run(
        name=name,
        directory=directory,
        overrides=tuple(overrides or ()),
        state=str(status.get("state", "unknown")),
        stage=status.get("stage"),
        seed=seed if isinstance(seed, int) else None,
        config=config,
        settings={},
        metrics=metrics,
        figures=figures | ({SECONDS: seconds} if figures and seconds is not None else {}),
        error=str(error["what"]) if isinstance(error, Mapping) and error.get("what") else None,
        provenance=provenance,
        started=status.get("started"),
        seconds=seconds,
        read_problems=tuple(problems),
    )


def short_names(directories: Sequence[Path]) -> list[str]:
    """Each directory relative to what all have in common; a single one by its own name."""
    shared = Path(os.path.commonpath([directory.parent for directory in directories]))
    return [str(directory.relative_to(shared)) for directory in directories]


def _runs_in(path: Path, depth: int) -> Iterator[Path]:
    """The runs at or under a path. Links are not followed: outputs/latest points to a run that is there anyway."""
    if (path / CONFIG).exists() or (path / STATUS).exists():
        yield path
    elif depth > 0 and os.access(path, os.R_OK | os.X_OK):
        folders = [child for child in path.iterdir() if _may_hold_runs(child)]
        for folder in sorted(folders, key=_in_order):
            yield from _runs_in(folder, depth - 1)


def _may_hold_runs(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".")


def _in_order(path: Path) -> tuple[bool, int, str]:
    """Jobs 0, 1, ..., 10 by number, everything else by name."""
    return not path.name.isdigit(), int(path.name) if path.name.isdigit() else 0, path.name


def _content(path: Path, parse: Callable[[str], Any], problems: list[str]) -> Any:
    """A file's parsed content; None where it is missing or cannot be parsed."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        problems.append(f"{path.name} cannot be read: {first}")
        return None


def _seconds(status: Mapping[str, Any]) -> float | None:
    """From the start to the last change of status."""
    try:
        began, ended = (datetime.fromisoformat(status[name]) for name in ("started", "updated"))
        return (ended - began).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _nothing_there(what: str, *paths: Path) -> ComparisonError:
    fix = "name a run, a sweep, or a folder that holds some, such as outputs/latest"
    return ComparisonError(what, where=", ".join(map(str, paths)), fix=fix)
