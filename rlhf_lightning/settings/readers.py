"""Which stage reads which key of a config, what it takes in, and which keys decide nothing.

Derived from what the stages declare (`settings/stages/`) and from the marks of the keys, for all who ask: the
preflight, which refuses an override that no stage of the pipeline reads; the stage cache, whose keys hold what a stage
reads; and a run that goes on, which may be told anew what decides nothing.
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
"""The stages that all processes of a run take part in; the others are the first one's."""

FREE = frozenset(marked(RunSettings, NO_EFFECT))
"""Sections and keys that decide neither what a stage learns nor what it leaves."""

WATCHED = frozenset(marked(RunSettings, WATCHING))
"""What is watched and written along the way: a run may go on with other values, but what it leaves is another."""

OF_THE_RUN = frozenset({"seed", "data", "callbacks.plots"})
"""What concerns a run as a whole, even where a stage that reads it does not run."""


def reads(settings: RunSettings, stage: StageName, key: str) -> bool:
    """Whether a stage reads a key under these settings."""
    declared = STAGES[stage]
    read = {stage, *declared.reads} | BY_EVERY_STAGE
    return is_among(key, read) and not is_among(key, declared.not_read | declared.unread(settings))


def readers_of(key: str) -> frozenset[StageName] | None:
    """The stages that may read a key, or part of a section; None where it concerns every run."""
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
    """What a stage takes in by name: config key and name, one pair each of a list.

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
    """Keys that a stage reads and that only name an input, whose identity counts in their place."""
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
    """Whether a key is one of these, or lies in one of them."""
    return any(place in sections for place in _places(key))


def _places(key: str) -> Iterator[str]:
    """A key, and the sections that it lies in, from the inside out."""
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
