"""The stages of a plain config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def stages_named(config: Mapping[str, Any]) -> dict[str, str]:
    """The config sections that are for stages: name of the section -> name of the stage."""
    sections = {name: section for name, section in config.items() if isinstance(section, Mapping)}
    return {name: section["stage"] for name, section in sections.items() if isinstance(section.get("stage"), str)}


def instances_of(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and stage of the sections that the pipeline runs; those of earlier versions are named after their stage."""
    pipeline, named = config.get("pipeline"), stages_named(config)
    stages = pipeline.get("stages") if isinstance(pipeline, Mapping) else None
    for name in stages if isinstance(stages, list) else ():
        if isinstance(name, str):
            yield name, named.get(name, name)
