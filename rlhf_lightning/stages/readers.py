"""The config keys that each stage reads, its inputs, and the keys without effect on results.

Derived from the stages' declarations and the marks of the keys. Used by the preflight, which rejects an override that
no stage of the pipeline reads; by the stage cache, whose keys hash the settings that a stage reads; by resuming, where
keys without effect may change; and by a stage's view of the config.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from rlhf_lightning.sections import NO_EFFECT, WATCHING, marked, references
from rlhf_lightning.stages.declaration import BY_EVERY_STAGE, FROM_DATA, Stage
from rlhf_lightning.stages.run_settings import RunSettings

M = TypeVar("M", bound=BaseModel)

OF_THE_RUN = frozenset({"seed", "data", "callbacks.plots"})
"""Keys of a run as a whole, accepted even if no stage of the pipeline reads them."""


@functools.cache
def without_effect(schema: type[RunSettings]) -> frozenset[str]:
    """Sections and keys that affect neither the training nor the files of a stage."""
    return frozenset(marked(schema, NO_EFFECT))


@functools.cache
def watched(schema: type[RunSettings]) -> frozenset[str]:
    """Keys of monitoring and logging: they may change when a run resumes, but its files then differ."""
    return frozenset(marked(schema, WATCHING))


def reads(settings: RunSettings, name: str, key: str) -> bool:
    """True if an instance of a stage reads a key under these settings."""
    stage = settings.stage(name)
    return is_among(key, {name, *stage.reads} | BY_EVERY_STAGE) and not is_among(
        key, stage.not_read | stage.unread(settings, name)
    )


def readers_of(key: str, stages: Mapping[str, Stage]) -> frozenset[str] | None:
    """The names under which stages may read a key, or part of a section; None if it concerns every run.

    Args:
        stages: name of the config section -> stage.
    """
    readers = frozenset(name for name, stage in stages.items() if _touches(name, stage, key))
    return readers if readers and not is_among(key, OF_THE_RUN) else None


def _touches(name: str, stage: Stage, key: str) -> bool:
    if is_among(key, stage.not_read):
        return False
    read = (name, *stage.reads, *BY_EVERY_STAGE)
    return is_among(key, read) or any(is_among(one, {key}) for one in read)


def projected(settings: RunSettings, name: str) -> RunSettings:
    """The settings without the keys that other stages read and this one does not: reading one is an AttributeError."""
    stage = settings.stage(name)
    others = {one: settings.stage(one) for one in settings.sections_of_stages}

    def hidden(key: str) -> bool:
        return not _touches(name, stage, key) and any(_touches(one, other, key) for one, other in others.items())

    return _without(settings, "", hidden)


def _without(section: M, prefix: str, hidden: Callable[[str], bool]) -> M:
    """The section without hidden keys."""
    kept = {
        field: _without(value, f"{prefix}{field}.", hidden) if isinstance(value, BaseModel) else value
        for field, value in section
        if not hidden(f"{prefix}{field}")
    }
    return type(section).model_construct(set(kept), **kept)


def judging_stages(settings: RunSettings) -> frozenset[str]:
    """The stages of the pipeline that ask the judge."""
    return frozenset(name for name in settings.pipeline.stages if reads(settings, name, "judge"))


def named_inputs(settings: RunSettings, name: str, *kinds: str) -> list[tuple[str, str]]:
    """Named inputs of a stage: pairs of config key and name, one pair per entry of a list.

    Args:
        kinds: of reference, as `settings.marks.Named` has them.
    """
    found = []
    for section in _sections_read(settings, name):
        value = getattr(settings, section)
        if isinstance(value, BaseModel):
            for key, mark, names in references(value, section):
                if mark.kind in kinds and reads(settings, name, key):
                    found += [(key, named) for named in names if named != FROM_DATA]
    return found


def stage_inputs(settings: RunSettings, name: str) -> list[tuple[str, str]]:
    """The inputs of a stage: config key and what it names (a stage, `base`, a path or a hub id)."""
    return named_inputs(settings, name, "stage")


def names_only(settings: RunSettings, name: str) -> frozenset[str]:
    """Keys that only name an input of a stage, whose identity enters the cache key in their place."""
    values = {section: getattr(settings, section) for section in _sections_read(settings, name)}
    return frozenset(
        key
        for section, value in values.items()
        if isinstance(value, BaseModel)
        for key, mark, _ in references(value, section)
        if not mark.shown
    )


def _sections_read(settings: RunSettings, name: str) -> list[str]:
    """The stage's own section, then those that it reads a part of."""
    return list(dict.fromkeys([name, *(key.partition(".")[0] for key in settings.stage(name).reads)]))


def is_among(key: str, sections: Iterable[str]) -> bool:
    """True if a key is one of these sections or keys, or lies in one of them."""
    return any(place in sections for place in _places(key))


def _places(key: str) -> Iterator[str]:
    """A key and its enclosing sections, innermost first."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a plain config under its dotted key; an empty section counts as a value."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
