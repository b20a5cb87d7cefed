"""Hash of the code that decides a stage's result.

The code is found by following imports from the stage's module through the package, those within functions included.
Comments, docstrings and formatting do not count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from rlhf_lightning.settings.stages import STAGES

PACKAGE = Path(__file__).resolve().parents[2]
NAME = PACKAGE.name

MODULES = f"{NAME}.experiment.stages"
"""Package of the modules that run the stages."""

DECIDES_NOTHING = {
    # Display and output paths: a stage's result does not depend on them.
    "cli": "the command line",
    "tracking": "figures on their way to files and services; the rows of history.csv are the stage's own",
    "diagnosis": "looks at finished runs",
    "comparison": "looks at finished runs",
    "evaluation.plots": "pictures, which are drawn anew in each run",
    "evaluation.summary": "the table at the end",
    "experiment.plotting": "pictures, which are drawn anew in each run",
    "experiment.progress": "progress bars",
    "experiment.provenance": "where a run came from",
    "experiment.run_directory": "where a run is written",
    "errors": "the words of a failure; what fails is not kept",
    # Composition and checks of the config, whose values are in the key.
    "experiment.config": "composes and checks the config",
    "settings.cache": "where things are kept",
    "settings.readers": "which values are in a key",
    "settings.rules": "refuses a config",
    "settings.sweeping": "how jobs are started",
    # Measurement of memory.
    "experiment.memory": "counts and measures memory",
    # Interruption and resuming, with the same result, which is tested.
    "callbacks.checkpoint_reading": "goes on from a checkpoint",
    "callbacks.checkpoints": "writes checkpoints",
    "callbacks.divergence": "stops a run that has diverged",
    "callbacks.interruption": "signals",
    "callbacks.journals": "goes on from a checkpoint",
    "experiment.rewind": "goes on from a checkpoint",
    "experiment.cache": "keeps what was left",
}
"""Modules and packages whose code is not hashed, with the reason."""


def code_hash(stage: str, package: Path = PACKAGE) -> str:
    """SHA-256 of the code that a stage's result depends on."""
    return hash_of_module(f"{MODULES}.{STAGES[stage].module}", package)


def hash_of_module(module: str, package: Path = PACKAGE) -> str:
    """SHA-256 of a module and of all that it imports from the package, directly or not."""
    digest = hashlib.sha256()
    for name in sorted(modules_below(module, package)):
        digest.update(f"{name}\0{_read(_file_of(name, package)).code}\0".encode())
    return digest.hexdigest()


def modules_below(module: str, package: Path = PACKAGE) -> set[str]:
    """The modules of the package that decide what a module does, itself included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or _decides_nothing(name):
            continue
        found.add(name)
        waiting.extend(_imported(_read(_file_of(name, package)).imports, package))
    return found


class _Source:
    """The part of a module that is hashed: its code without comments and docstrings, and the names it imports.

    Attributes:
        imports: `module` or `module.name`, as the import statements have them.
    """

    def __init__(self, text: str) -> None:
        tree = ast.parse(text)
        self.imports = tuple(_named_imports(tree))
        self.code = ast.unparse(_without_docstrings(tree))


def _read(path: Path) -> _Source:
    return _parsed(path, path.stat().st_mtime_ns)


@functools.cache
def _parsed(path: Path, _changed: int) -> _Source:
    return _Source(path.read_text(encoding="utf-8"))


def _named_imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def _imported(names: tuple[tuple[str, str | None], ...], package: Path) -> Iterator[str]:
    """The modules of the package that import statements name: of `from a import b`, `a.b` if that is one, else `a`."""
    for module, name in names:
        if module.split(".")[0] != NAME:
            continue
        inner = f"{module}.{name}"
        yield inner if name is not None and _exists(inner, package) else module


@functools.cache
def _exists(module: str, package: Path) -> bool:
    return _file_of(module, package).exists()


@functools.cache  # every stage's key reads the same modules
def _file_of(module: str, package: Path) -> Path:
    place = package.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree without docstrings, those of attributes included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _decides_nothing(module: str) -> bool:
    return any(f"{module}.".startswith(f"{NAME}.{left_out}.") for left_out in DECIDES_NOTHING)
