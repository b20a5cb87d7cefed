"""The config keys that each stage reads, its inputs, and the keys without effect on results.

Derived from the stages' declarations (`settings/stages/`) and the marks of the keys. Used by the preflight, which
rejects an override that no stage of the pipeline reads; by the stage cache, whose keys hash the settings that a stage
reads; and by resuming, where keys without effect may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from rlhf_lightning.settings.marks import NO_EFFECT, WATCHING, marked, references
from rlhf_lightning.settings.run import RunSettings, StageName
from rlhf_lightning.settings.stages import STAGES, TRAINED
from rlhf_lightning.settings.stages.stage import BY_EVERY_STAGE, FROM_DATA

TRAINING = frozenset(TRAINED)
"""The stages that all processes of a run take part in; rank 0 alone runs the others."""

FREE = frozenset(marked(RunSettings, NO_EFFECT))
"""Sections and keys that affect neither the training nor the files of a stage."""

WATCHED = frozenset(marked(RunSettings, WATCHING))
"""Keys of monitoring and logging: they may change when a run resumes, but its files then differ."""

OF_THE_RUN = frozenset({"seed", "data", "callbacks.plots"})
"""Keys of a run as a whole, accepted even if no stage of the pipeline reads them."""


def reads(settings: RunSettings, stage: StageName, key: str) -> bool:
    """True if a stage reads a key under these settings."""
    declared = STAGES[stage]
    read = {stage, *declared.reads} | BY_EVERY_STAGE
    return is_among(key, read) and not is_among(key, declared.not_read | declared.unread(settings))


def readers_of(key: str) -> frozenset[StageName] | None:
    """The stages that may read a key, or part of a section; None if it concerns every run."""
    readers = frozenset(stage for stage in STAGES if _touches(stage, key))
    return readers if readers and not is_among(key, OF_THE_RUN) else None


def _touches(stage: StageName, key: str) -> bool:
    declared = STAGES[stage]
    if is_among(key, declared.not_read):
        return False
    read = (stage, *declared.reads, *BY_EVERY_STAGE)
    return is_among(key, read) or any(is_among(one, {key}) for one in read)


def judging_stages(settings: RunSettings) -> frozenset[StageName]:
    """The stages of the pipeline that ask the judge."""
    return frozenset(stage for stage in settings.pipeline.stages if reads(settings, stage, "judge"))


def named_inputs(settings: RunSettings, stage: StageName, *kinds: str) -> list[tuple[str, str]]:
    """Named inputs of a stage: pairs of config key and name, one pair per entry of a list.

    Args:
        kinds: of reference, as `settings.marks.Named` has them.
    """
    found = []
    for section in _sections_read(stage):
        value = getattr(settings, section)
        if isinstance(value, BaseModel):
            for key, mark, names in references(value, section):
                if mark.kind in kinds and reads(settings, stage, key):
                    found += [(key, name) for name in names if name != FROM_DATA]
    return found


def stage_inputs(settings: RunSettings, stage: StageName) -> list[tuple[str, str]]:
    """The inputs of a stage: config key and what it names (a stage, `base`, a path or a hub id)."""
    return named_inputs(settings, stage, "stage")


def names_only(settings: RunSettings, stage: StageName) -> frozenset[str]:
    """Keys that only name an input of a stage, whose identity enters the cache key in their place."""
    values = {section: getattr(settings, section) for section in _sections_read(stage)}
    return frozenset(
        key
        for section, value in values.items()
        if isinstance(value, BaseModel)
        for key, mark, _ in references(value, section)
        if not mark.shown
    )


def _sections_read(stage: StageName) -> list[str]:
    """The stage's own section, then those that it reads a part of."""
    return list(dict.fromkeys([stage, *(key.partition(".")[0] for key in STAGES[stage].reads)]))


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
