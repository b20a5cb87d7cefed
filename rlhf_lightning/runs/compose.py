"""Access to `conf/` through Hydra: groups and options, composition, and the file that set a key."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.stages.run_directory import Loader
from rlhf_lightning.tracking.redaction import redact_override

CONFIG_NAME = "train"
PACKAGE = Path(__file__).resolve().parents[1]


def conf_directory() -> Path:
    """Directory of the configs: inside the package in a wheel, beside it in a source tree."""
    packed = PACKAGE / "conf"
    return packed if packed.is_dir() else PACKAGE.parent / "conf"


@dataclass(frozen=True)
class ConfigTree:
    """The config folder: its groups, options, and configs composed from it.

    Args:
        hydra: the instance in `GlobalHydra` after Hydra was initialized on the folder.
        folders: where config files are looked for, first match wins.
    """

    hydra: Any
    folders: tuple[Path, ...]

    @classmethod
    def load(cls, extra: Path | None = None) -> ConfigTree:
        """The program's config folder, with a user's own folder before it in the search path; read once per process.

        Raises:
            ConfigError: if `extra` is no directory.
        """
        if extra is not None and not extra.is_dir():
            raise ConfigError([Problem("--config-dir", f"{extra} is not a directory", fix="name an existing folder")])
        conf = conf_directory()
        tree = _opened((extra.resolve(), conf) if extra else (conf,))
        GlobalHydra.instance().clear()
        GlobalHydra.instance().initialize(tree.hydra)
        return tree

    def __hash__(self) -> int:
        return id(self)

    @functools.cache  # noqa: B019  a tree lives as long as the process
    def options(self, group: str) -> tuple[str, ...]:
        """The options of a group; empty where there is no such group."""
        parent, _, name = group.rpartition("/")
        if "=" in group or name not in self._groups_in(parent):
            return ()
        return tuple(self.hydra.config_loader.get_group_options(group))

    @functools.cache  # noqa: B019
    def _groups_in(self, parent: str) -> frozenset[str]:
        return frozenset(self.hydra.config_loader.list_groups(parent))

    @functools.cache  # noqa: B019
    def choices(self) -> dict[str, str | None]:
        """The groups of the primary config's defaults list, as the command line writes them, with their defaults."""
        return dict(self._defaults(()).overrides.known_choices)

    def groups(self) -> list[str]:
        """The program's own groups, in the order of the primary config."""
        return [name for name in reversed(self.choices()) if not name.startswith("hydra")]

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Overrides as Hydra reads them.

        Raises:
            ConfigError: with every override that cannot be read.
        """
        parser = OverridesParser.create(config_loader=self.hydra.config_loader)
        parsed, problems = [], []
        for text in overrides:
            try:
                parsed += parser.parse_overrides([text])
            except HydraException as error:
                problems.append(_unreadable(text, error))
        if problems:
            raise ConfigError(problems)
        return parsed

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """The composed config, Hydra's own node included. Callers copy it before they change it.

        Raises:
            ConfigError: if the files cannot be composed.
        """
        try:
            return hydra.compose(CONFIG_NAME, list(overrides), return_hydra_config=True)
        except yaml.YAMLError as error:
            raise ConfigError([yaml_problem(error)]) from error
        except MissingConfigException as error:
            raise ConfigError([_missing_problem(error)]) from error
        except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
            raise ConfigError([Problem("config", _reason(error))]) from error

    def origin(self, key: str, overrides: tuple[str, ...]) -> str | None:
        """The file and line that set a key last, e.g. `conf/kl/fixed.yaml:3`; None where no file did."""
        for default in reversed(self._defaults(overrides).defaults):
            found = self._find_in(default, key)
            if found:
                return found
        return None

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _defaults(self, overrides: tuple[str, ...]) -> Any:
        return self.hydra.config_loader.compute_defaults_list(CONFIG_NAME, list(overrides), RunMode.RUN)

    def _find_in(self, default: ResultDefault, key: str) -> str | None:
        package = (default.package or "").removeprefix("_global_").strip(".")
        if package and not f"{key}.".startswith(f"{package}."):
            return None
        relative = key.removeprefix(package).strip(".")
        path = next((path for path in self._files(default) if path.is_file()), None)
        line = line_of(path, relative.split(".") if relative else []) if path else None
        return f"{display(path)}:{line}" if path and line else None

    def _files(self, default: ResultDefault) -> Iterator[Path]:
        for folder in self.folders:
            yield folder / f"{default.config_path}.yaml"


def display(path: Path) -> str:
    """A path for messages: relative to the working directory where it lies below, `conf/...` for the program's own."""
    conf = conf_directory()
    if path.is_relative_to(conf):
        return str(Path("conf") / path.relative_to(conf))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


class OwnFolder(SearchPathPlugin):
    """Hydra plugin that puts a user's own config folder before the program's in the search path."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepends the folder, where there is one."""
        if self.folder is not None:
            anchor = SearchPathQuery(provider="main")
            search_path.prepend(provider="command-line", path=f"file://{self.folder}", anchor=anchor)


@functools.cache
def _opened(folders: tuple[Path, ...]) -> ConfigTree:
    *own, conf = folders
    Plugins.instance().register(OwnFolder)
    GlobalHydra.instance().clear()
    OwnFolder.folder = own[0] if own else None
    try:
        hydra.initialize_config_dir(str(conf), job_name="rlhf", version_base="1.3")
    finally:
        OwnFolder.folder = None
    return ConfigTree(GlobalHydra.instance().hydra, folders)


def line_of(path: Path, keys: Sequence[str]) -> int | None:
    """The line (from 1) of a nested key in a YAML file; the keys of a list are the numbers of its entries."""
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader)
    line = node.start_mark.line + 1 if node else None
    for wanted in keys:
        found = dict(_entries(node)).get(wanted)
        if found is None:
            return None
        line, node = found
    return line


def _entries(node: yaml.Node | None) -> Iterator[tuple[str, tuple[int, yaml.Node]]]:
    """Children of a YAML node: key, line and node of each."""
    if isinstance(node, yaml.MappingNode):
        yield from ((name.value, (name.start_mark.line + 1, value)) for name, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((str(number), (value.start_mark.line + 1, value)) for number, value in enumerate(node.value))


def _unreadable(text: str, error: HydraException) -> Problem:
    key, _, value = text.partition("=")
    shown = redact_override(text)
    if value.startswith("~") and shown == text:
        return Problem(key, "~ means nothing here", text, f"write the path out: {key}={Path(value).expanduser()}")
    # Hydra quotes what it could not read.
    reason = f": {str(error).splitlines()[0]}" if shown == text else ""
    fix = "write KEY=VALUE; quote what the shell or Hydra reads as syntax, e.g. 'notes=\"a, b\"'"
    return Problem(shown, f"cannot be read as an override{reason}", fix=fix)


def yaml_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"{display(Path(mark.name))}:{mark.line + 1}" if mark else None
    what = getattr(error, "problem", None) or "cannot be read"
    return Problem("config", f"a config file is not valid YAML: {what}", where, "mend the syntax at that line")


def _missing_problem(error: MissingConfigException) -> Problem:
    """Problem for a missing config file. Hydra's launchers and sweepers bring theirs, and are not always installed."""
    plugin = re.fullmatch(
        r"hydra/(launcher|sweeper)/(joblib|submitit_local|submitit_slurm|optuna)", error.missing_cfg_file or ""
    )
    if plugin is None:
        return Problem("config", _reason(error))
    what = f"Hydra's {plugin[1]} {plugin[2]} is not installed"
    return Problem(f"hydra/{plugin[1]}", what, fix="pip install 'rlhf-lightning[sweeps]'")


def _reason(error: BaseException) -> str:
    """Hydra's error message on one line, first cause first, without its advice on `+` and its search path."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).partition("Config search path")[0].partition("To append")[0]
    return " ".join(text.split())
