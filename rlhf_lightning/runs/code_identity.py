"""Hash of the code that decides a stage's result: the rooms that compute, and the stage's own file.

Comments, docstrings and formatting do not count.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import CodeType

from rlhf_lightning.stages.declaration import STAGES, Stage

PACKAGE = Path(__file__).resolve().parents[1]
NAME = PACKAGE.name

ROOMS = (
    *("objectives", "constitutions", "models", "worlds", "data", "rollouts", "feedback", "algorithms"),
    *("evaluation", "stages"),
)
"""Rooms that compute. The others compose configs, keep records, report and compare."""

SHARED = ("batches.py", "distributed.py", "records.py")
"""Files beside the rooms that compute."""


def code_of(stage: Stage, package: Path = PACKAGE) -> dict[str, str]:
    """SHA-256 of the code that a stage's result depends on: of the package, and of the stage's own file.

    Args:
        package: directory of the package's code.
    """
    module = type(stage).__module__
    own = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return {NAME: hash_of_rooms(package), module: hash_of_files([own]) if is_ours(module) else hash_of_module(module)}


def hash_of_rooms(package: Path = PACKAGE) -> str:
    """SHA-256 of the rooms that compute, without the stages' own files."""
    own = {f"{type(stage).__module__.rpartition('.')[2]}.py" for stage in STAGES.values()}
    rooms = [path for room in ROOMS for path in sorted((package / room).rglob("*.py"))]
    files = [*(package / name for name in SHARED), *rooms]
    return hash_of_files(path for path in files if path.parent.name != "stages" or path.name not in own)


def hash_of_module(module: str) -> str:
    """SHA-256 of the file of a module from outside the package, or of its whole package; its name if it has no file."""
    top = find_spec(module.partition(".")[0])
    if top is not None and top.origin is not None and Path(top.origin).name == "__init__.py":
        return hash_of_files(sorted(Path(top.origin).parent.rglob("*.py")))  # what it imports from there counts too
    found = find_spec(module)
    return hash_of_files([Path(found.origin)]) if found is not None and found.origin is not None else module


def is_ours(module: str) -> bool:
    """True if a module belongs to this package."""
    return module.split(".")[0] == NAME


def hash_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the names and the code of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{_hash(path, path.stat().st_mtime_ns)}\0".encode())
    return digest.hexdigest()


@functools.cache
def _hash(path: Path, _changed: int) -> str:
    code = compile(path.read_bytes(), "", "exec", dont_inherit=True, optimize=2)  # without docstrings
    return hashlib.sha256("\0".join(_parts(code)).encode()).hexdigest()


def _parts(code: CodeType) -> Iterator[str]:
    """All of a code object but its line numbers."""
    yield code.co_code.hex()
    yield code.co_exceptiontable.hex()
    for part in (
        *(code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags),
        *(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
    ):
        yield repr(part)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
        else:
            yield _written(constant)


def _written(constant: object) -> str:
    """A constant as text; the elements of a set in an order that is the same in each process."""
    if isinstance(constant, frozenset):
        return f"{{{', '.join(sorted(map(_written, constant)))}}}"
    return f"({', '.join(map(_written, constant))})" if isinstance(constant, tuple) else repr(constant)
