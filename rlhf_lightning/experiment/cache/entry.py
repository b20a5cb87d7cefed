"""One entry of the stage cache: a stage's files, and the record of their origin."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.experiment.provenance.hashes import file_hash

RECORD = "record.json"
FILES = "files"
VERSION = 1

HASHED_ON_USE = 64 * 2**20
"""Bytes. Before an entry is used, files up to this size are compared by hash, larger ones by size."""

APPENDED_TO = "*.jsonl"
"""Files that a stage appends to. They are copied, not linked: going back to a checkpoint truncates them in place."""

CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)
"""Error numbers for a file that cannot be hard-linked."""


@dataclass(frozen=True)
class Record:
    """Origin of an entry, and the results of its stage beside its files.

    Attributes:
        made: time, ISO 8601.
        made_by: the directory of the run.
        seconds: duration of the stage.
        ingredients: of the key.
        metrics: the stage's entry in metrics.json.
        evaluation: what it added to `evaluate` there.
        samples: rows of samples.jsonl; empty except for a stage that evaluates.
        history: its lines of history.csv.
        files: path below `files/` -> size in bytes and SHA-256.
    """

    stage: str
    key: str
    made: str
    made_by: str
    seconds: float
    ingredients: dict[str, Any]
    metrics: dict[str, Any]
    objective: float | None
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]
    history: str
    files: dict[str, dict[str, Any]]
    version: int = VERSION

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(int(file["size"]) for file in self.files.values())


@dataclass(frozen=True)
class Entry:
    """A finished entry.

    Attributes:
        used: time of the last use by a run, or of its making.
    """

    path: Path
    record: Record
    used: datetime

    @classmethod
    def read(cls, path: Path) -> Entry:
        """The entry in a directory.

        Raises:
            OSError, ValueError, TypeError, KeyError: it has no record, or one that cannot be read.
        """
        content = json.loads((path / RECORD).read_text(encoding="utf-8"))
        record = Record(**content)
        if record.version != VERSION or (record.stage, record.key) != (path.parent.name, path.name):
            raise ValueError("its record is not that of this place")
        return cls(path, record, datetime.fromtimestamp((path / RECORD).stat().st_mtime, UTC))

    def mark_used(self) -> None:
        """Sets the time of the last use to now."""
        os.utime(self.path / RECORD)

    def flaws(self, hash_up_to: float = HASHED_ON_USE) -> list[str]:
        """Descriptions of what is wrong with its files; empty if they are intact.

        Args:
            hash_up_to: larger files, in bytes, are compared by size only.
        """
        found = []
        for name, expected in self.record.files.items():
            path = self.path / FILES / name
            if not path.is_file():
                found.append(f"{name} is missing")
            elif path.stat().st_size != expected["size"]:
                found.append(f"{name} has {path.stat().st_size} bytes and not {expected['size']}")
            elif expected["size"] <= hash_up_to and file_hash(path) != expected["sha256"]:
                found.append(f"{name} was changed")
        return found

    def put_into(self, directory: Path) -> None:
        """Links or copies the entry's files into a directory."""
        for name in self.record.files:
            source, target = self.path / FILES / name, directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)


def write_entry(path: Path, record: Record, source: Path) -> None:
    """Writes an entry into a new directory and flushes it to disk.

    Args:
        record: without its files.
        source: the directory that the stage left.

    Raises:
        OSError: the entry cannot be written.
    """
    files = {}
    for name in sorted(str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()):
        target = path / FILES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source / name, target)
        target.chmod(target.stat().st_mode & ~0o222)
        files[name] = {"size": target.stat().st_size, "sha256": file_hash(target)}
    content = {**asdict(record), "files": files}
    (path / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    flush(path.rglob("*"))
    flush([path])


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-links a file; copies it where the filesystem has no links, or where the file will be appended to."""
    if source.match(APPENDED_TO):
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        shutil.copyfile(source, target)


def flush(paths: Iterable[Path]) -> None:
    """Flushes files and directories to disk (fsync)."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def origin(record: Record) -> Mapping[str, Any]:
    """Origin of a stage that was taken from the cache, for its entry in metrics.json."""
    return {"made_by": record.made_by, "made": record.made, "seconds": record.seconds}
