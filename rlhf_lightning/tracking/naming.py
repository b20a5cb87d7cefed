"""Names of runs: short, stable, and made only of the user's overrides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.tracking.redaction import redact_override

LONGEST = 64
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


def chosen_for(run_dir: Path, overrides: Sequence[str]) -> Sequence[str]:
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
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:HASH_LENGTH]
    return f"{name[: LONGEST - HASH_LENGTH - 1]}~{digest}"
