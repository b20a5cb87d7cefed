"""SHA-256 of files and directories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_hash(directory: Path) -> str:
    """SHA-256 of the names and contents of the files below a directory, hidden ones and compiled code apart."""
    return combined_hash(directory, visible_files(directory))


def combined_hash(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of some files' contents and of their names as seen from a directory."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def visible_files(directory: Path) -> list[Path]:
    """The files below a directory in a fixed order, without hidden ones and compiled code."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    shown = (path for path in found if not any(part.startswith(".") or part == "__pycache__" for part in path.parts))
    return [directory / path for path in sorted(shown)]
