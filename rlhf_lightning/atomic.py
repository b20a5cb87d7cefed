"""Atomic writes: a file or directory is there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIX = ".part"
"""Ending of a temporary path, whose name begins with a dot."""


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary path in the directory of `path`, no other writer's; a file or directory left there is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}{SUFFIX}")
    try:
        yield temporary
    finally:
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write a file to: flushed to disk and renamed to `path` if the `with` block succeeds."""
    with temporary_beside(path) as temporary:
        yield temporary
        flush([temporary])
        temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(paths: Iterable[Path]) -> None:
    """Flush files and directories to disk (fsync). A rename survives a power failure once its directory is flushed."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
