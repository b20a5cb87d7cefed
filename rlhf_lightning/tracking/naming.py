"""Names of runs, made only of the user's overrides, and of input and output artifacts, the same in all runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lightning.tracking.redaction import redact_override

LONGEST_RUN = 64
"""Most characters of a name; W&B's tables and legends truncate longer ones."""
HASH_LENGTH = 8
SWEEP_RECORD = "sweep.json"
NOT_PART_OF_THE_EXPERIMENT = ("name", "notes", "tags", "paths.", "hydra.", "logger", "callbacks")


def run_name(overrides: Sequence[str], default: str) -> str:
    """A name made of the overrides: `kl.coef=0.2,seed=1`; `default` without any.

    Overrides of output paths and display are left out. A name that would be too long is cut and ends in a hash of the
    whole, so that different runs keep different names.
    """
    told = [redact_override(override.lstrip("+~")) for override in overrides if _tells(override)]
    return _shortened(",".join(told)) if told else default


def distinguishing_overrides(run_dir: Path, overrides: Sequence[str]) -> Sequence[str]:
    """The overrides that distinguish a sweep's job from the others; for any other run, all.

    Overrides for all jobs, and swept ones, are in the sweep's record as they were typed.
    """
    sweep = sweep_directory(run_dir)
    if sweep is None:
        return overrides
    typed = json.loads((sweep / SWEEP_RECORD).read_text(encoding="utf-8"))["overrides"]
    return [override for override in overrides if override not in typed] or overrides


def group_name(run_dir: Path) -> str:
    """Group name shared by the stages of a run, or by all jobs of a sweep.

    The jobs of a sweep lie in folders 0, 1, 2, ... of the sweep's directory, which then gives the name; otherwise the
    run directory does. Directories named by date and time are named by both: `2026-03-01_14-05-09-123456`.
    """
    path = run_dir.resolve()
    shared = path.parent if is_job(path) else path
    named_by_date = shared.parent.name.replace("-", "").isdigit()
    return f"{shared.parent.name}_{shared.name}" if named_by_date else shared.name


def is_job(run_dir: Path) -> bool:
    """True if a run is a job of a sweep, by its directory."""
    return run_dir.resolve().name.isdigit()


def sweep_directory(run_dir: Path) -> Path | None:
    """The directory of the sweep that a run is a job of; None of any other run."""
    parent = run_dir.resolve().parent
    return parent if is_job(run_dir) and (parent / SWEEP_RECORD).exists() else None


def _tells(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return not any(key == prefix or key.startswith(f"{prefix.rstrip('.')}.") for prefix in NOT_PART_OF_THE_EXPERIMENT)


def _shortened(name: str) -> str:
    if len(name) <= LONGEST_RUN:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:HASH_LENGTH]
    return f"{name[: LONGEST_RUN - HASH_LENGTH - 1]}~{digest}"


KEY_DIGITS = 12
"""Digits of a stage's key in a name, enough to avoid collisions within a project."""

LONGEST_ARTIFACT = 128
"""Most characters of an artifact's name in W&B, which allows letters, digits, dots, dashes and underscores."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An output of a stage or an external model, which stages take as input.

    Attributes:
        name: the same in all runs that use the same thing.
        kind: the stage that makes it; `model` for one that no stage made.
        place: its directory, or its address on a hub.
        metadata: plain values that describe it.
    """

    name: str
    kind: str
    place: Path | str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def stage_artifact(stage: str, key: str, directory: Path, metadata: Mapping[str, Any]) -> Artifact:
    """Output artifact of a stage, named by stage and key: the same name in all jobs that share it."""
    return Artifact(f"{stage}-{key[:KEY_DIGITS]}", stage, directory, metadata)


def model_artifact(name: str, place: Path | str) -> Artifact:
    """A model that no stage made: of the hub, or in a directory."""
    return Artifact(f"model-{re.sub(r'[^a-zA-Z0-9_.-]', '.', name.strip('/'))}"[:LONGEST_ARTIFACT], "model", place)
