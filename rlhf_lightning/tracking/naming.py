"""Names that tell runs apart: short, stable, and made of nothing but what the user asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.tracking.redaction import redact_override

LONGEST = 64
"""Characters of a name; W&B's tables and legends cut off what is longer."""
HASH_LENGTH = 8
SWEEP_RECORD = "sweep.json"
NOT_PART_OF_THE_EXPERIMENT = ("name", "notes", "tags", "paths.", "hydra.", "logger", "callbacks")


def run_name(overrides: Sequence[str], default: str) -> str:
    """A name from what was overridden: `kl.coef=0.2,seed=1`; `default` where nothing was.

    Overrides that only say where things are written or how they are shown are left out. A name that would be too long
    is cut and ends in a hash of the whole, so that different runs keep different names.
    """
    told = [redact_override(override.lstrip("+~")) for override in overrides if _tells(override)]
    return _shortened(",".join(told)) if told else default


def chosen_for(run_dir: Path, overrides: Sequence[str]) -> Sequence[str]:
    """Of a sweep's job, the overrides that are its own; of any other run, all.

    What was typed for all jobs, or swept over, stands in the sweep's record as it was typed.
    """
    sweep = sweep_directory(run_dir)
    if sweep is None:
        return overrides
    typed = json.loads((sweep / SWEEP_RECORD).read_text(encoding="utf-8"))["overrides"]
    return [override for override in overrides if override not in typed] or overrides


def group_name(run_dir: Path) -> str:
    """What the stages of a run, or all jobs of a sweep, have in common.

    The jobs of a sweep lie in folders 0, 1, 2, ... of the sweep's directory, which then gives the name; otherwise the
    run directory does. Directories named by date and time are named by both: `2026-03-01_14-05-09-123456`.
    """
    path = run_dir.resolve()
    shared = path.parent if is_job(path) else path
    named_by_date = shared.parent.name.replace("-", "").isdigit()
    return f"{shared.parent.name}_{shared.name}" if named_by_date else shared.name


def is_job(run_dir: Path) -> bool:
    """Whether a run is a job of a sweep, by the folder it lies in."""
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
