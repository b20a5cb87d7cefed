"""What a stage takes in and what it leaves, by the names under which runs find each other's work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY_DIGITS = 12
"""Digits of a stage's key in a name: two artifacts of a project will not share them by chance."""

LONGEST = 128
"""Characters of an artifact's name; W&B takes no more, and none but letters, digits, dots, dashes and underscores."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something that one stage left or that lay there before, and others take in.

    Attributes:
        name: the same in all runs that use the same thing.
        kind: the stage that makes it; `model` for what no stage made.
        place: its directory, or its address on a hub.
        metadata: plain values that tell about it.
    """

    name: str
    kind: str
    place: Path | str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def stage_artifact(stage: str, key: str, directory: Path, metadata: Mapping[str, Any]) -> Artifact:
    """What a stage left: named by stage and key, so that all jobs that share it name it alike."""
    return Artifact(f"{stage}-{key[:KEY_DIGITS]}", stage, directory, metadata)


def model_artifact(name: str, place: Path | str) -> Artifact:
    """A model that no stage made: of the hub, or in a directory."""
    return Artifact(f"model-{re.sub(r'[^a-zA-Z0-9_.-]', '.', name.strip('/'))}"[:LONGEST], "model", place)
