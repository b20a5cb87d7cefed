"""`resume=...`: find the run, and check that it may resume with the given overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from rlhf_lightning.errors import ConfigError, Problem, RunDirectoryError
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.environment_checks import environment_problems
from rlhf_lightning.runs.identity import deciding_settings
from rlhf_lightning.runs.overrides import section_of
from rlhf_lightning.runs.preflight import check_run
from rlhf_lightning.runs.validation import settings_from, show
from rlhf_lightning.stages.run_directory import CONFIG, RunDirectory, holds_a_run
from rlhf_lightning.stages.run_settings import RunSettings

AUTO = "auto"
KEY = "resume"

MISSING = "(none)"


@dataclass(frozen=True)
class ResumedRun:
    """A run to resume, with its settings and overrides."""

    run: RunDirectory
    settings: RunSettings
    overrides: tuple[str, ...]

    def record(self) -> None:
        """Updates the run's own record of its config and overrides."""
        self.run.write_settings(self.settings.model_dump(mode="json"), self.overrides)


def split_resume(tree: ConfigTree, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `resume` on the command line, and the other overrides.

    Raises:
        ConfigError: an override cannot be read.
    """
    parsed = tree.parse(overrides)
    own = [override for override in parsed if section_of(override) == KEY]
    value = own[-1].value() if own and not own[-1].is_sweep_override() else None
    if value is not None and not isinstance(value, str):
        raise ConfigError([Problem(KEY, f"expects a run directory or {AUTO}, got {value!r}", own[-1].input_line)])
    return value, [override.input_line or "" for override in parsed if override not in own]


def resumes_by_itself(settings: RunSettings) -> bool:
    """True if an existing run is to be resumed: on request, or because SLURM has restarted the job."""
    return settings.resume == AUTO or int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def resume_from_directory(tree: ConfigTree, directory: Path, overrides: Sequence[str]) -> ResumedRun:
    """A run by its directory, with its own config; overrides may change only keys that do not decide the result.

    Raises:
        RunDirectoryError: there is no run, or it was made by another version.
        ConfigError: the overrides change the result, or something that the config names no longer exists.
    """
    if not holds_a_run(directory):
        fix = "name the directory of a run, e.g. resume=outputs/latest, or resume=auto"
        raise RunDirectoryError("There is no run to resume here.", where=str(directory), fix=fix)
    run = RunDirectory.open(directory.resolve())
    saved = _saved_settings(run)
    if not overrides:
        if problems := environment_problems(saved):
            raise ConfigError(problems)
        return ResumedRun(run, saved, tuple(run.overrides))
    merged = merged_overrides(tree, run.overrides, overrides)
    _refuse_other_places(tree.parse(overrides), run)
    checked = check_run(tree, merged)
    assert checked.settings is not None
    return resume_with_settings(run, checked.settings, merged)


def resume_with_settings(run: RunDirectory, asked: RunSettings, overrides: Sequence[str]) -> ResumedRun:
    """A run with newly composed settings, if they give the same result.

    Raises:
        RunDirectoryError: the run was made by another version.
        ConfigError: with every key that would change the result.
    """
    saved = _saved_settings(run)
    fix = "a run goes on with the config it was started with: drop it, or start a new run"
    problems = [Problem(key, f"{before} -> {now}", fix=fix) for key, before, now in differences(saved, asked)]
    if problems:
        raise ConfigError(problems)
    return ResumedRun(run, _placed(asked, run), tuple(overrides))


def differences(saved: RunSettings, asked: RunSettings) -> list[tuple[str, str, str]]:
    """Keys that decide the result and differ: dotted key, value before, value now."""
    before, now = deciding_settings(saved), deciding_settings(asked)
    pairs = [(key, before.get(key, MISSING), now.get(key, MISSING)) for key in {**before, **now}]
    return [(key, _shown(old), _shown(new)) for key, old, new in pairs if old != new]


def _saved_settings(run: RunDirectory) -> RunSettings:
    if not (run.path / CONFIG).exists():
        what = "The run was cut off before it had written down its config, or this is a sweep."
        fix = "remove it and start anew; a sweep: rlhf sweep resume DIR, or one of its jobs: resume=DIR/0"
        raise RunDirectoryError(what, where=str(run.path), fix=fix)
    try:
        return _placed(settings_from(run.config), run)
    except ConfigError as error:
        keys = ", ".join(problem.key for problem in error.problems)
        raise RunDirectoryError(
            f"The run's config does not fit this version of the program: {keys}.",
            where=str(run.path / CONFIG),
            fix="resume it with the version that started it (provenance.json names it), or start a new run",
        ) from error


def _placed(settings: RunSettings, run: RunDirectory) -> RunSettings:
    """The settings with the actual directory of the run, which may have been moved."""
    return settings.model_copy(update={"paths": settings.paths.model_copy(update={"run_dir": str(run.path)})})


def merged_overrides(tree: ConfigTree, before: Sequence[str], now: Sequence[str]) -> list[str]:
    """The overrides of a run merged with new ones, each in the place of the one it replaces."""
    replaced = [section_of(override) for override in tree.parse(now)]
    kept = [
        override.input_line or ""
        for override in tree.parse(before)
        if not any(f"{section_of(override)}.".startswith(f"{section}.") for section in (*replaced, KEY))
    ]
    return [*kept, *now]


def _refuse_other_places(overrides: Sequence[Override], run: RunDirectory) -> None:
    for override in overrides:
        if section_of(override) == "paths.run_dir" and Path(str(override.value())).resolve() != run.path:
            fix = "drop it: a run stays where it is"
            raise ConfigError([Problem("paths.run_dir", "is another than that of resume", override.input_line, fix)])


def _shown(value: Any) -> str:
    return MISSING if value is MISSING else show(value)
