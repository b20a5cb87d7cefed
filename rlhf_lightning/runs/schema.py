"""Queries on the config schema: the keys that exist, the values a key takes, and suggestions for mistyped ones."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhf_lightning.errors import similar
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.stages.declaration import StageSection
from rlhf_lightning.stages.run_settings import RunSettings


@dataclass(frozen=True)
class SchemaNode:
    """One place in the schema: the type of its value, and the limits on it."""

    annotation: Any
    limits: tuple[Any, ...] = ()

    @property
    def sections(self) -> tuple[type[BaseModel], ...]:
        """The sections allowed here: one, several for a choice by `kind`, none for a value."""
        return tuple(member for member in _alternatives(self.annotation) if _is_section(member))

    @property
    def is_free(self) -> bool:
        """True if any key is allowed below (the arguments of an optimizer, for one)."""
        return any(get_origin(member) in (dict, Mapping) or member is Any for member in _alternatives(self.annotation))

    def child(self, key: str) -> SchemaNode | None:
        """The spot below, in whichever option has it."""
        for section in self.sections:
            if key in section.model_fields:
                return _spot(section.model_fields[key])
        return SchemaNode(Any) if self.is_free else None


@dataclass(frozen=True)
class Schema:
    """The schema of a config: the sections that all runs have, and those of its stages."""

    settings: type[RunSettings]

    @property
    def root(self) -> SchemaNode:
        """The whole config."""
        return SchemaNode(self.settings)

    @property
    def sections_of_stages(self) -> list[str]:
        """Names of the sections that are for stages."""
        found = {name: _spot(field).sections for name, field in self.settings.model_fields.items()}
        return [name for name, sections in found.items() if any(issubclass(one, StageSection) for one in sections)]

    def find(self, key: str) -> SchemaNode | None:
        """The spot of a dotted key, in whichever option of a group has it; None where there is none."""
        spot: SchemaNode | None = self.root
        for part in key.split("."):
            spot = spot.child(part) if spot else None
        return spot

    @functools.cache  # noqa: B019  there are as many as there are sets of stages
    def key_paths(self) -> tuple[str, ...]:
        """Every dotted key of every option, sections included."""
        return tuple(dict.fromkeys(_walk(self.root, "")))

    def options_with(self, section: str, key: str) -> list[str]:
        """The kinds of a section's options that have a key: `options_with("kl", "coef") == ["fixed"]`."""
        spot = self.find(section)
        return [kind_of(member) for member in spot.sections if key in member.model_fields] if spot else []

    def locate(self, location: Sequence[str | int]) -> tuple[str, SchemaNode]:
        """A pydantic error's location as the dotted key that a user writes, and its spot.

        In the location of a choice by `kind`, the kind is a step of its own; it is no key, and is left out.
        """
        keys: list[str] = []
        spot = self.root
        for step in location:
            chosen = [section for section in spot.sections if kind_of(section) == step]
            if len(spot.sections) > 1 and chosen:
                spot = SchemaNode(chosen[0])
                continue
            keys.append(str(step))
            spot = _item(spot) if isinstance(step, int) else spot.child(step) or SchemaNode(Any)
        return ".".join(keys), spot


def kind_of(section: type[BaseModel]) -> str:
    """The `kind` of a group's option; empty for a section that is no option."""
    field = section.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field and get_origin(field.annotation) is Literal else ""


def expectation(spot: SchemaNode) -> str:
    """Description of the values allowed at a spot: `a whole number >= 1, or null`."""
    alternatives = [member for member in _alternatives(spot.annotation) if member is not type(None)]
    words = " or ".join(dict.fromkeys(_words(member, spot.limits) for member in alternatives))
    return f"{words}, or null" if len(alternatives) < len(_alternatives(spot.annotation)) else words


def _spot(field: FieldInfo) -> SchemaNode:
    return SchemaNode(field.annotation, tuple(field.metadata))


def _walk(spot: SchemaNode, prefix: str) -> Iterator[str]:
    for section in spot.sections:
        for name, field in section.model_fields.items():
            yield prefix + name
            yield from _walk(_spot(field), f"{prefix}{name}.")


def _item(spot: SchemaNode) -> SchemaNode:
    for member in _alternatives(spot.annotation):
        if get_origin(member) is list:
            return SchemaNode(get_args(member)[0])
    return SchemaNode(Any)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, each still with its own limits; the annotation itself where it is no union."""
    if get_origin(annotation) is Annotated:
        bare = _alternatives(get_args(annotation)[0])
        return bare if len(bare) > 1 else (annotation,)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _alternatives(part))
    return (annotation,)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _words(annotation: Any, limits: Sequence[Any]) -> str:
    if get_origin(annotation) is Annotated:
        bare, *inner = get_args(annotation)
        return _words(bare, [*limits, *_flat(inner)])
    origin = get_origin(annotation) or annotation
    if origin is Literal:
        choices = [str(choice) for choice in get_args(annotation)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if origin in (int, float):
        return f"{'a whole number' if origin is int else 'a number'}{_bounds(limits)}"
    if origin is str:
        return "text that is not empty" if any(isinstance(limit, MinLen) for limit in limits) else "text"
    if origin is list:
        return "a list that is not empty" if any(isinstance(limit, MinLen) for limit in limits) else "a list"
    if _is_section(annotation):
        return "a section"
    return {bool: "true or false", dict: "a mapping"}.get(origin, "a value")


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for limit in metadata:
        yield from limit.metadata if isinstance(limit, FieldInfo) else [limit]


def _bounds(limits: Sequence[Any]) -> str:
    signs = {Gt: ">", Ge: ">=", Lt: "<", Le: "<="}
    attributes = {Gt: "gt", Ge: "ge", Lt: "lt", Le: "le"}
    bounds = [
        f"{sign} {_shortest(getattr(limit, attributes[kind]))}"
        for kind, sign in signs.items()
        for limit in limits
        if isinstance(limit, kind)
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _shortest(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


RENAMED = {
    "advantage.lam": "advantage.gae_lambda",
    "ai_feedback.replies": "ai_feedback.responses",
    "callbacks.diary_every": "callbacks.sample_log_every",
    "callbacks.diary_samples": "callbacks.sample_log_size",
    "comparisons.replies": "comparisons.responses",
    "data.max_reply_length": "data.max_response_length",
    "reward_model.pairing": "data.pairing",
    "reward.running_normalisation": "reward.running_normalization",
    "reward.standardise_on_reference": "reward.standardize_on_reference",
    "reward_model.centring_coef": "reward_model.reward_centering_coef",
    "evaluate.batch_size": "measurement.batch_size",
    "evaluate.bootstrap_samples": "measurement.bootstrap_samples",
    "evaluate.seed": "measurement.seed",
}
"""Keys of earlier versions, and what they are called now."""


def keys_like(schema: Schema, key: str) -> list[str]:
    """Existing keys to suggest for a wrong one: its new name, similar spelling, or the same last name elsewhere."""
    if key in RENAMED:
        return [RENAMED[key]]
    leaf = key.rpartition(".")[2]
    namesakes = [
        path for path in schema.key_paths() if "." in path and path.rpartition(".")[2] == leaf and leaf != "kind"
    ]
    return list(dict.fromkeys([*similar(key, schema.key_paths()), *namesakes, *_same_section(schema, key)]))[:4]


def options_like(tree: ConfigTree, group: str, option: str) -> list[str]:
    """Existing choices to suggest for a wrong one, as a user writes them: `kl=fixed`, `experiment=tiny`."""
    alike = [f"{group}={name}" for name in similar(option, tree.options(group.partition("@")[0]))]
    elsewhere = [f"{other}={option}" for other in tree.groups() if "@" not in other and option in tree.options(other)]
    return [*alike, *elsewhere]


def _same_section(schema: Schema, key: str) -> list[str]:
    """Keys of the same section with a similar last name, which comparing whole dotted keys may miss."""
    section, _, leaf = key.rpartition(".")
    if not section:
        return []
    names = [path.rpartition(".")[2] for path in schema.key_paths() if path.rpartition(".")[0] == section]
    return [f"{section}.{name}" for name in similar(leaf, names)]
