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
def temporary_beside(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A temporary path in the directory of `path`; a file or directory left there is removed.

    Args:
        shared: other processes may write `path` at the same time, so each has a temporary path of its own. Otherwise
            what a killed process left is overwritten.
    """
    mark = f".{os.getpid()}.{os.urandom(4).hex()}" if shared else ""
    temporary = path.with_name(f".{path.name}{mark}{SUFFIX}")
    try:
        yield temporary
    finally:
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A temporary path to write a file to: flushed to disk and renamed to `path` if the `with` block succeeds."""
    with temporary_beside(path, shared=shared) as temporary:
        yield temporary
        flush([temporary])
        temporary.replace(path)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file atomically."""
    with replacing(path, shared=shared) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(paths: Iterable[Path]) -> None:
    """Flush files and directories to disk (fsync). A rename survives a power failure once its directory is flushed."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
