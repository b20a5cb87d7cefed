"""Artifacts of W&B: by reference, unless weights are to be uploaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import wandb

from rlhf_lightning.tracking.lineage import Artifact
from rlhf_lightning.tracking.redaction import redact

Content = Literal["reference", "upload"]


def wandb_artifact(artifact: Artifact, content: Content) -> wandb.Artifact:
    """An artifact as W&B's client takes it.

    Its version depends on the content of its files, not on their path: jobs that share a stage get one version,
    whether it was uploaded or not. For a model on a hub only the address is kept.

    Args:
        content: `reference` notes names, sizes and checksums of files; `upload` sends them.
    """
    made = wandb.Artifact(artifact.name, type=artifact.kind, metadata=redact(_finite(artifact.metadata)))
    if isinstance(artifact.place, str):
        made.add_reference(redact(artifact.place), name="model", checksum=False)
        return made
    # One file at a time: for a whole directory the client prints that it computes checksums.
    for path in sorted(path for path in artifact.place.rglob("*") if path.is_file()):
        name = path.relative_to(artifact.place).as_posix()
        if content == "upload":
            made.add_file(str(path), name=name)
        else:
            made.add_reference(path.resolve().as_uri(), name=name)
    return made


def _finite(value: Any) -> Any:
    """Plain containers with None for every number that is not finite: W&B refuses an artifact that has one."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
