"""Load a config's constitution with all its principles from the files that it names, and report its problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from rlhf_lightning.constitutions.composition import (
    INHERITED,
    ConstitutionSource,
    ResolvedConstitution,
    principle_problems,
    resolve,
)
from rlhf_lightning.constitutions.settings import ConstitutionSettings
from rlhf_lightning.errors import ConfigError, Problem, did_you_mean, similar
from rlhf_lightning.runs.compose import display, line_of, yaml_problem
from rlhf_lightning.runs.schema import Schema
from rlhf_lightning.runs.validation import schema_problems
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.worlds.courtesy.traits import TRAITS

GROUP = "constitution"

SUFFIXES = (".yaml", ".yml")
"""File suffixes that tell a path from the name of an option."""


class ConstitutionFiles:
    """Finds constitutions: options by name, files by path.

    Args:
        folders: config folders, first match wins.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folder / GROUP for folder in folders)
        self._read: dict[str, Path] = {}

    def names(self) -> list[str]:
        """The options."""
        return sorted({path.stem for folder in self.folders for path in folder.glob("*.yaml")})

    def path_of(self, option: str) -> Path | None:
        """The file of an option."""
        paths = (folder / f"{option}.yaml" for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)

    def load(self, name: str) -> ConstitutionSource:
        """A constitution by its name, or the path of its file.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        path = Path(name) if is_path(name) else self.path_of(name)
        if path is None:
            fix = did_you_mean(similar(name, self.names()))
            fix = fix or f"there are: {', '.join(self.names())}; a file's path ends in {' or '.join(SUFFIXES)}"
            raise _wrong(f"there is no constitution {name!r}", fix)
        if not path.exists():
            fix = did_you_mean(f"{GROUP}={option}" for option in similar(path.stem, self.names()))
            raise _wrong(f"{display(path)} does not exist", fix or "name an existing file")
        raw = _contents(path)
        place = display(path.resolve())
        self._read[place] = path
        return ConstitutionSource(place, with_absolute_paths(raw, [path.resolve().parent]))

    def line(self, place: str, key: str) -> str:
        """File and line of a key in a loaded file, e.g. `mine.yaml:3`; for an absent key, its nearest parent's."""
        if place not in self._read:
            return place
        parts = key.split(".")[1:]
        lines = (line_of(self._read[place], parts[:length]) for length in range(len(parts), -1, -1))
        return f"{place}:{next(filter(None, lines), 1)}"


@dataclass(frozen=True)
class CompletedConfig:
    """A job's plain config with its complete constitution, and the sources of its parts."""

    plain: dict[str, Any]
    problems: tuple[Problem, ...]
    files: ConstitutionFiles
    resolved: ResolvedConstitution | None

    def source(self, key: str) -> str | None:
        """The file and line that set a key of the constitution; None if the chosen option's file did."""
        section, *rest = key.split(".")
        if self.resolved is None or section != GROUP or not rest:
            return None
        place = self.resolved.places.get(rest[0])
        if rest[0] == "principles" and len(rest) > 1:
            place = self.resolved.origins[int(rest[1])].place
        return self.files.line(place, self.own_key(key)) if place else None

    def own_key(self, key: str) -> str:
        """A key with the index that it has in its own file, where no principles of other files precede it."""
        section, *rest = key.split(".")
        if self.resolved is None or section != GROUP or rest[:1] != ["principles"] or len(rest) < 2:
            return key
        number = self.resolved.origins[int(rest[1])].number
        return ".".join([section, rest[0], str(number), *rest[2:]])


def with_whole_constitution(plain: Mapping[str, Any], folders: Sequence[Path], option: str | None) -> CompletedConfig:
    """The config with all principles of its constitution in it.

    Args:
        plain: a job's config; what is wrong with its constitution's types is left for the schema.
        folders: config folders, first match wins.
        option: the constitution that is chosen. Paths in its file are relative to it, those in overrides to here.
    """
    files = ConstitutionFiles(folders)
    raw = plain.get(GROUP)
    if not isinstance(raw, dict):
        return CompletedConfig(dict(plain), (), files, None)
    own = files.path_of(option) if option else None
    raw = with_absolute_paths(raw, [Path.cwd(), *([own.parent] if own else [])])
    resolved = resolve(raw, files.load, display(own.resolve()) if own else None)
    problems = [
        *(replace(one, source=one.source and files.line(one.source, one.key)) for one in resolved.problems),
        *principle_problems(resolved, TRAITS),
    ]
    return CompletedConfig({**plain, GROUP: resolved.plain}, tuple(problems), files, resolved)


def load_constitution(name: str, folders: Sequence[Path]) -> ConstitutionSettings:
    """A constitution by its name, or the path of its file, checked.

    Raises:
        ConfigError: there is none, or with everything that is wrong with it.
    """
    files = ConstitutionFiles(folders)
    files.load(name)  # raises where there is none
    path = name if is_path(name) else files.path_of(name)
    completed = with_whole_constitution({GROUP: {"path": str(path)}}, folders, None)
    problems = list(completed.problems)
    try:
        constitution = ConstitutionSettings.model_validate(completed.plain[GROUP])
    except ValidationError as error:
        problems += schema_problems(Schema(RunSettings), error, completed.plain, GROUP)
    if problems:
        raise ConfigError([replace(one, source=one.source or completed.source(one.key)) for one in problems])
    return constitution


def with_absolute_paths(raw: Mapping[str, Any], places: Sequence[Path]) -> dict[str, Any]:
    """A constitution with the paths in it made absolute: each from the first place where there is such a file.

    Args:
        raw: its keys.
        places: the first one counts where there is no such file anywhere.
    """

    def absolute(name: str) -> str:
        return str(next((place / name for place in places if (place / name).exists()), places[0] / name))

    def named(name: Any) -> Any:
        return absolute(name) if isinstance(name, str) and is_path(name) else name

    whole = dict(raw)
    if isinstance(raw.get("path"), str):
        whole["path"] = absolute(raw["path"])
    for key in ("extends", INHERITED):
        if isinstance(raw.get(key), list):
            whole[key] = [named(name) for name in raw[key]]
    if isinstance(raw.get("mixture"), dict):
        whole["mixture"] = {named(name): share for name, share in raw["mixture"].items()}
    return whole


def is_path(name: str) -> bool:
    """True if a constitution is named by the path of its file."""
    return name.endswith(SUFFIXES) or Path(name).is_absolute()


def _contents(path: Path) -> Mapping[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            node = yaml.compose(file, yaml.SafeLoader)
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if isinstance(node, yaml.MappingNode) else {}
    except yaml.YAMLError as error:
        raise ConfigError([yaml_problem(error)]) from error
    except (OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        reason = "it is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else reason
        raise _wrong(f"{display(path)} cannot be read: {reason}", "name another file, or mend this one") from error
    if node is None:
        raise _wrong(f"{display(path)} is empty", "begin with: extends: [harmless]")
    if not isinstance(node, yaml.MappingNode):
        what = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise _wrong(f"{display(path)} holds {what}, not the keys of a constitution", "begin with: principles:")
    return cast(dict[str, Any], raw)


def _wrong(what: str, fix: str) -> ConfigError:
    return ConfigError([Problem(GROUP, what, fix=fix)])
