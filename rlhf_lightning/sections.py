"""Base class of config sections, common field types, marks for the effect of a key: `Annotated[Count, NO_EFFECT]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A config section: typed strictly, closed to unknown keys, never changed after it was checked.

    No field has a default: every value comes from `conf/`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Effect:
    """Effect of a key or a whole section; without this mark it affects the result.

    Attributes:
        watching: it affects only what is monitored and logged; otherwise it has no effect.
    """

    watching: bool = False


@dataclass(frozen=True)
class Named:
    """A key that names an input, whose content is in a stage's cache key in place of the name.

    Attributes:
        kind: `stage`: a stage of the pipeline, `base`, the directory of an artifact, or a hub id. `model`: a directory
            or a hub id. `file`: a path. `prompts`: kinds of prompts of the data.
        shown: the name decides the result by itself, and so it is in the cache key as well.
    """

    kind: str
    shown: bool = False


NO_EFFECT = Effect()
WATCHING = Effect(watching=True)

StageRef = Annotated[Name, Named("stage")]
"""A stage of the pipeline, `base` (the model group's), the directory of an artifact, or a hub id."""

ModelRef = Annotated[Name, Named("model")]
"""A model's directory or hub id."""

PromptKinds = Annotated[Annotated[list[Name], Field(min_length=1)] | None, Named("prompts", shown=True)]
"""Kinds of prompts; None: all of them."""

FileRef = Annotated[Name, Named("file")]
"""The path of a file of records."""


def marked(section: type[BaseModel], mark: Effect, prefix: str = "") -> Iterator[str]:
    """Dotted keys with a mark, in a section and those within it, in any option of a group."""
    for name, field in section.model_fields.items():
        if mark in field.metadata:
            yield f"{prefix}{name}"
        else:
            for inner in _sections(field.annotation):
                yield from marked(inner, mark, f"{prefix}{name}.")


def references(section: BaseModel, prefix: str) -> Iterator[tuple[str, Named, list[str]]]:
    """Keys of a section that name inputs, the mark of each, and the names; none for a null key."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        mark = next((one for one in _metadata(field.annotation, field.metadata) if isinstance(one, Named)), None)
        if mark is not None:
            yield f"{prefix}.{name}", mark, [] if value is None else value if isinstance(value, list) else [value]
        elif isinstance(value, BaseModel):
            yield from references(value, f"{prefix}.{name}")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not dict:
        for inner in get_args(annotation):
            yield from _sections(inner)


def _metadata(annotation: Any, metadata: list[Any]) -> Iterator[Any]:
    """Metadata of an annotation, including those inside a list or an optional value."""
    yield from metadata
    if get_origin(annotation) is Annotated:
        annotation, *marks = get_args(annotation)
        yield from marks
    for inner in get_args(annotation):
        yield from _metadata(inner, [])


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
