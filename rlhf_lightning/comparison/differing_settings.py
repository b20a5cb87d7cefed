"""The settings that differ among runs, and their values as one would type them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from rlhf_lightning.stages.plugins import stages_of
from rlhf_lightning.stages.readers import is_among, without_effect
from rlhf_lightning.stages.run_settings import schema_of

Flat = Mapping[str, Any]
"""A config by dotted keys."""

SEED = "seed"
ALIKE = frozenset({"callbacks", "trainer.threads", "allow_targets"})
"""Sections and keys that do not distinguish experiments, beside those without effect on results."""
ABSENT = "-"
"""Placeholder for a key that the chosen option does not have: `peft.rank` under `peft=none`."""
MISSING = "(missing)"
"""Placeholder for a key that a run lacks although others with the same option have it: it is of another version."""


def differing_keys(configs: Sequence[Flat]) -> list[str]:
    """The keys whose values differ, in the order of the configs; never the seed, nor one of `ALIKE` or without effect.

    Where a group's option differs (`peft=none`, `peft=lora`), the keys that come with an option are no differences of
    their own: they count if they differ between runs of the same option.
    """
    union = dict.fromkeys(key for config in configs for key in config)
    left_out = ALIKE.union(*(without_effect(schema_of(_stages(config))) for config in configs))
    return [key for key in union if key != SEED and not is_among(key, left_out) and _differs(key, configs)]


def _stages(config: Flat) -> dict[str, str]:
    """The sections of stages in a config: name -> stage. Those of earlier versions are named after their stage."""
    names = dict.fromkeys(key.partition(".")[0] for key in config)
    return stages_of({name: {"stage": config.get(f"{name}.stage", name)} for name in names})


def named(key: str) -> str:
    """A key as a column and the command line call it: `peft` for `peft.kind`."""
    return key.rpartition(".")[0] if _is_choice(key) else key


def key_named(name: str, configs: Iterable[Flat]) -> str | None:
    """The full key of a name; None if no config has it."""
    known = {key for config in configs for key in config}
    return next((key for key in (name, f"{name}.kind", f"{name}.name") if key in known), None)


def values_as_typed(
    keys: Sequence[str], configs: Sequence[Flat], overrides: Sequence[Sequence[str]]
) -> list[dict[str, str]]:
    """Each run's values of some keys by name, written as they were typed by whoever typed them first."""
    typed: dict[str, dict[str, str]] = {key: {} for key in keys}
    having: dict[str, set[str]] = {key: set() for key in keys}
    for config, told in zip(configs, overrides, strict=True):
        texts = dict(_split(override) for override in told)
        for key in config.keys() & typed.keys():
            having[key].add(_options_above(key, config))
            text = texts.get(named(key), texts.get(key))
            if text is not None and means(text, config[key]):
                typed[key].setdefault(as_typed(config[key]), text)

    def written(key: str, config: Flat) -> str:
        if key in config:
            return typed[key].get(as_typed(config[key]), as_typed(config[key]))
        return MISSING if _options_above(key, config) in having[key] else ABSENT

    return [{named(key): written(key, config) for key in keys} for config in configs]


def as_typed(value: Any) -> str:
    """A value as one would type it: `null`, `true`, `[a,b]`, `1e-5`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{','.join(as_typed(part) for part in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{as_typed(part)}' for key, part in value.items())}}}"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda found: "e" + found.group(1).strip("+"), repr(value))
    return json.dumps(value, default=str)


def means(text: str, value: Any) -> bool:
    """True if a text, typed as an override's value, parses to this value."""
    if as_typed(value) == text.strip("'\""):
        return True
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return type(read) is type(value) and bool(read == value)


def means_the_same(text: str, other: str) -> bool:
    """True if two texts parse to the same value: `1e-1` and `0.1`, `null` and `Null`."""
    if text == other:
        return True
    try:
        return float(text) == float(other)
    except ValueError:
        return bool(text.lower() == other.lower())


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts of a list typed with commas; a comma within brackets belongs to its part."""
    parts = [""]
    depth = 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts)


def _differs(key: str, configs: Sequence[Flat]) -> bool:
    seen: dict[str, set[str]] = {}
    for config in configs:
        seen.setdefault(_options_above(key, config), set()).add(_identity(key, config))
    return any(len(values) > 1 for values in seen.values())


def _options_above(key: str, config: Flat) -> str:
    """The options that decide whether a config has a key at all."""
    parts = key.split(".")
    sections = (".".join(parts[:length]) for length in range(1, len(parts)))
    heads = [head for section in sections for head in (f"{section}.kind", f"{section}.name") if head != key]
    return repr([config.get(head) for head in heads if _is_choice(head)])


def _is_choice(key: str) -> bool:
    """True if a key names the selected option of its group."""
    return key.endswith(".kind") or key == "pipeline.name"


def _identity(key: str, config: Flat) -> str:
    return as_typed(config[key]) if key in config else MISSING


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key.strip(), value.strip()
