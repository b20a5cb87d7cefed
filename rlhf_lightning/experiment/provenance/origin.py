"""Gather the content of `provenance.json`, and list the differences between two of them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning import __version__
from rlhf_lightning.experiment.provenance.code import PACKAGE, code_hash, git_state
from rlhf_lightning.experiment.provenance.inputs import data_hashes, hub_commits, model_hashes, module_hashes
from rlhf_lightning.experiment.provenance.machine import arithmetic, deciding, environment, installed, machine
from rlhf_lightning.experiment.provenance.secrets import redact
from rlhf_lightning.stages.run_settings import RunSettings

Origin = Mapping[str, Any]


def gather_provenance(settings: RunSettings, overrides: Sequence[str]) -> dict[str, Any]:
    """The provenance of a run, as plain containers. Paths are relative to the working directory."""
    packages = installed()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [redact(word) for word in sys.argv],
        "interpreter": sys.executable,
        "directory": str(Path.cwd()),
        "overrides": [redact(override) for override in overrides],
        "config_sha256": config_hash(settings),
        "rlhf_lightning": __version__,
        "code_sha256": code_hash(PACKAGE),
        "git": git_state(PACKAGE),
        "packages": deciding(packages),
        "installed": packages,
        "machine": machine(),
        "environment": environment(),
        "data": data_hashes(settings),
        "models": model_hashes(settings),
        "modules": module_hashes(settings),
        "hub": hub_commits(settings),
    }


def config_hash(settings: RunSettings) -> str:
    """SHA-256 of the settings without the output paths: the same run in another directory has the same hash."""
    content = settings.model_dump(mode="json", exclude={"paths", "cache"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def completed(origin: Origin, settings: RunSettings) -> dict[str, Any]:
    """A run's provenance with what is known only at its end: torch's arithmetic settings, and the hub's commits."""
    asked = hub_commits(settings)
    return {**origin, "arithmetic": arithmetic(), "hub": {**asked, **_known(origin["hub"])}}


def changes_since(first: Origin, now: Origin) -> list[str]:
    """Descriptions of all changes since a run was started that may alter a result."""
    return [*changes_of_origin(first, now), *changes_of_machine(first, now), *changes_of_environment(first, now)]


def changes_of_origin(first: Origin, now: Origin) -> list[str]:
    """Descriptions of changes that decide a result since a run was started: code, packages, data, models.

    Args:
        first: of the run; an older version of the program may have recorded less.
        now: of this process.
    """
    changes = _different(first["packages"], now["packages"])
    if first["machine"]["python"] != now["machine"]["python"]:
        changes.append(f"Python {first['machine']['python']} -> {now['machine']['python']}")
    if first.get("code_sha256") != now["code_sha256"]:
        changes.append("the code of rlhf_lightning")
    for kind in ("data", "models", "modules"):
        before, after = first.get(kind, {}), now[kind]
        named = sorted(before.keys() | after.keys())
        changes += [f"the content of {path}" for path in named if before.get(path) != after.get(path)]
    # What the hub's cache holds is known only after the first use.
    recorded, cached = _known(first.get("hub", {})), _known(now["hub"])
    both = recorded.keys() & cached.keys()
    return changes + _different({name: recorded[name] for name in both}, {name: cached[name] for name in both})


def changes_of_machine(first: Origin, now: Origin) -> list[str]:
    """Descriptions of changes since a run was started that may alter the last bits of a result."""
    before, after = ({name: origin["machine"].get(name) for name in ("cpu", "gpus")} for origin in (first, now))
    return _different(before, after)


def changes_of_environment(first: Origin, now: Origin) -> list[str]:
    """Environment variables that may alter the last bits and have changed since a run was started."""
    return _different(first.get("environment", {}), now["environment"])


def _different(first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {first.get(name) or 'none'} -> {now.get(name) or 'none'}"
        for name in {**first, **now}
        if first.get(name) != now.get(name)
    ]


def _known(commits: Mapping[str, str | None]) -> dict[str, str]:
    return {name: commit for name, commit in commits.items() if commit is not None}
