"""Input and output artifacts of stages, under names that are the same in all runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY_DIGITS = 12
"""Digits of a stage's key in a name, enough to avoid collisions within a project."""

LONGEST = 128
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
    return Artifact(f"model-{re.sub(r'[^a-zA-Z0-9_.-]', '.', name.strip('/'))}"[:LONGEST], "model", place)
