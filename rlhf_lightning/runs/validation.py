"""Convert a composed config to checked settings, and schema errors to readable problems."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlhf_lightning.errors import ConfigError, Problem, did_you_mean, similar
from rlhf_lightning.runs.schema import Schema, SchemaNode, expectation, keys_like, kind_of
from rlhf_lightning.sections import stages_named
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.plugins import load_plugins, stages_of
from rlhf_lightning.stages.run_settings import RunSettings, schema_of
from rlhf_lightning.tracking.redaction import is_secret, redact

NO_SUCH_KEY = "there is no such key"

NEEDS_A_VALUE = "needs a value"

PLACEHOLDER = "missing"
"""Stand-in for a value that was not given, so that later checks can run."""

REPAIRS = 3
"""Rounds of repair: pydantic runs a section's own validators only once its fields are valid."""

LONGEST_VALUE = 60
"""Most characters of a wrong value that are shown."""


def settings_from(config: Mapping[str, Any], sections: Mapping[str, str] = MappingProxyType({})) -> RunSettings:
    """Checked settings from a plain, resolved config.

    Args:
        sections: known ones of stages, name -> stage, which the config may have spoilt.

    Raises:
        ConfigError: a plugin cannot be imported, or with everything that the schema does not allow.
    """
    if problems := [*load_plugins(config), *unknown_stages(config, sections)]:
        raise ConfigError(problems)
    schema = schema_for(config, sections)
    try:
        return schema.settings.model_validate(dict(config))
    except ValidationError as error:
        raise ConfigError(schema_problems(schema, error, config)) from error


def unknown_stages(config: Mapping[str, Any], sections: Mapping[str, str] = MappingProxyType({})) -> list[Problem]:
    """Problems for sections and pipelines of a plain config that name a stage which does not exist."""
    named = {**sections, **stages_named(config)}
    problems = [
        Problem(f"{name}.stage", f"there is no stage {stage!r}", fix=_alternatives(stage, STAGES))
        for name, stage in named.items()
        if stage not in STAGES
    ]
    pipeline = config.get("pipeline")
    stages = pipeline.get("stages") if isinstance(pipeline, Mapping) else None
    for number, name in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(name, str) and name not in named:
            fix = f"{_alternatives(name, named)}; +stage@{name}=STAGE makes one for a second run of a stage"
            what = f"no section of a stage is called {name!r}"
            problems.append(Problem(f"pipeline.stages.{number}", what, fix=fix))
    return problems


def schema_for(config: Mapping[str, Any], sections: Mapping[str, str] = MappingProxyType({})) -> Schema:
    """The schema of a plain config, whose plugins have been imported."""
    return Schema(schema_of({**sections, **stages_of(config)}))


def _alternatives(name: str, names: Iterable[str]) -> str:
    return did_you_mean(similar(name, names)) or f"there are: {', '.join(names)}"


def apply_value(config: DictConfig, override: Override) -> None:
    """Sets (or deletes, for `~key`) one value in place.

    Raises:
        OmegaConfBaseException: if the value is not allowed there.
        KeyError: if there is nothing to delete.
    """
    key = str(override.key_or_group)
    if not override.is_delete():
        OmegaConf.update(config, key, override.value(), force_add=True)
        return
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or leaf not in node:
        raise KeyError(key)
    with open_dict(node):
        del node[leaf]


def resolve(config: DictConfig) -> tuple[dict[str, Any], list[Problem]]:
    """The config as plain containers, values still missing (`???`) left out, and every interpolation that failed."""
    problems: list[Problem] = []
    plain = _plain(config, "", problems)
    return plain, problems


def schema_problems(
    schema: Schema, error: ValidationError, config: Mapping[str, Any], section: str | None = None
) -> list[Problem]:
    """A pydantic error as problems that use config keys and plain wording.

    Args:
        error: of the whole config, or of a section.
        config: the whole config.
        section: that the error is about; None: all.
    """
    above = () if section is None else (section,)
    found = error.errors(include_url=False)
    return [_problem(schema, {**details, "loc": (*above, *details["loc"])}, config) for details in found]


def repaired(config: Mapping[str, Any], defaults: Mapping[str, Any], sections: Mapping[str, str]) -> RunSettings | None:
    """Settings from a config with mistakes, for later checks; None if it cannot be repaired.

    Wrong values are replaced by the defaults, unknown keys removed, and missing values filled with a placeholder.
    """
    plain = copy.deepcopy(dict(config))
    if unknown_stages(plain, sections) and "pipeline" in defaults:
        plain["pipeline"] = copy.deepcopy(defaults["pipeline"])
    if unknown_stages(plain, sections):
        return None
    for _ in range(REPAIRS):
        schema = schema_for(plain, sections)
        try:
            return schema.settings.model_validate(plain)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                _repair(plain, details, schema, defaults)
    return None


def _repair(plain: dict[str, Any], details: ErrorDetails, schema: Schema, defaults: Mapping[str, Any]) -> None:
    key, _ = schema.locate(details["loc"])
    parts = key.split(".")
    in_list = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    *sections, leaf = parts[:in_list]  # a list is replaced as a whole
    node: Any = plain
    default: Any = defaults
    for section in sections:
        node, default = node.get(section, {}), default.get(section, {})
    if not isinstance(node, dict):
        return
    if details["type"] == "extra_forbidden" and in_list is None:
        node.pop(leaf, None)
    elif details["type"] == "missing" and leaf not in default:
        node[leaf] = PLACEHOLDER
    elif leaf in default:
        node[leaf] = copy.deepcopy(default[leaf])


def _plain(node: Any, prefix: str, problems: list[Problem]) -> Any:
    if not isinstance(node, DictConfig | ListConfig):
        return node
    plain: dict[str, Any] = {}
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        path = f"{prefix}{key}"
        try:
            plain[str(key)] = _plain(node[key], f"{path}.", problems)
        except MissingMandatoryValue:
            continue
        except OmegaConfBaseException as error:
            reason = (error.msg or str(error)).splitlines()[0]
            problems.append(Problem(path, f"cannot be worked out: {reason}", fix="mend the ${...} in its value"))
    return list(plain.values()) if isinstance(node, ListConfig) else plain


@dataclass(frozen=True)
class SchemaError:
    """One error of a pydantic `ValidationError`, with the key and spot that it concerns."""

    schema: Schema
    key: str
    spot: SchemaNode
    given: Any
    message: str
    config: Mapping[str, Any]


def _problem(schema: Schema, details: ErrorDetails, config: Mapping[str, Any]) -> Problem:
    key, spot = schema.locate(details["loc"])
    explain = _EXPLANATIONS.get(details["type"], _wrong_value)
    return explain(SchemaError(schema, key, spot, details["input"], details["msg"], config))


def misplaced_secret(key: str) -> Problem | None:
    """Problem for an unknown key that would put the judge's secret into the config; None for any other key."""
    section, _, leaf = key.partition(".")
    if section != "judge" or not is_secret(leaf):
        return None
    what = "keys never stand in a config, which is written down with every run: they are read from the environment"
    return Problem(key, what, fix="set judge.api_key_env=NAME, and export NAME in the shell")


def _missing(error: SchemaError) -> Problem:
    key, spot = error.key, error.spot
    if spot.sections or spot.is_free:
        return Problem(key, "the whole section is missing", fix=f"choose an option: {key}=...")
    words = expectation(spot)
    fix = "add it where the list stands" if _in_list(key) else f"add {key}=..."
    return Problem(key, NEEDS_A_VALUE + ("" if words.startswith("text") else f": {words}"), fix=fix)


def _unknown(error: SchemaError) -> Problem:
    key, schema = error.key, error.schema
    section, _, leaf = key.rpartition(".")
    if _in_list(key):
        names = _names_in(schema, section)
        return Problem(key, NO_SUCH_KEY, fix=did_you_mean(similar(leaf, names)) or f"there are: {', '.join(names)}")
    owners = [kind for kind in schema.options_with(section, leaf) if kind] if section else []
    if not owners:
        return misplaced_secret(key) or Problem(key, NO_SUCH_KEY, fix=did_you_mean(keys_like(schema, key)))
    chosen = error.config[section]["kind"]
    wanted = " or ".join(f"{section}={owner}" for owner in owners)
    return Problem(
        key, f"belongs to {wanted}, and {section}={chosen} is chosen", fix=f"choose {wanted}, or drop the key"
    )


def _wrong_kind(error: SchemaError) -> Problem:
    key, given = error.key, error.given
    kinds = [kind_of(section) for section in error.spot.sections]
    got = show(given["kind"]) if isinstance(given, Mapping) and "kind" in given else "none"
    return Problem(f"{key}.kind", f"expects one of {', '.join(kinds)}, got {got}", fix=f"choose an option: {key}=...")


def _contradiction(error: SchemaError) -> Problem:
    """The problem reported by a section's own validator, whose message begins with the field that it concerns."""
    message = error.message.removeprefix("Value error, ")
    first = f"{error.key}.{message.split()[0]}"
    return Problem(first if error.schema.find(first) else error.key, message)


def _not_a_section(error: SchemaError) -> Problem:
    key = error.key
    names = [name for section in error.spot.sections for name in section.model_fields if name != "kind"]
    fix = f"set its keys one by one, e.g. {key}.{names[0]}=..." if names else None
    if names and _in_list(key):
        fix = f"write a mapping: {{{names[0]}: ...}}"
    return Problem(key, f"is a section, not a single value; got {show(redact(error.given, key))}", fix=fix)


def _wrong_value(error: SchemaError) -> Problem:
    given, words = redact(error.given, error.key), expectation(error.spot)
    allowed = words.removeprefix("one of ").split(", ") if words.startswith("one of ") else []
    fix = did_you_mean(similar(str(given), allowed))
    return Problem(error.key, f"expects {words}, got {show(given)}", fix=fix)


_EXPLANATIONS: dict[str, Callable[[SchemaError], Problem]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "union_tag_invalid": _wrong_kind,
    "union_tag_not_found": _wrong_kind,
    "value_error": _contradiction,
    "model_type": _not_a_section,
    "model_attributes_type": _not_a_section,
}


def _in_list(key: str) -> bool:
    """True if a key lies inside a list, where no override can set it."""
    return any(part.isdigit() for part in key.split("."))


def _names_in(schema: Schema, section: str) -> list[str]:
    """The keys allowed in a section; its path may lead through list entries."""
    _, spot = schema.locate([int(part) if part.isdigit() else part for part in section.split(".")])
    return [name for option in spot.sections for name in option.model_fields]


def show(value: Any) -> str:
    """A value as YAML writes it, cut to a readable length."""
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
